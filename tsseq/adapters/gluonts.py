"""gluonts models: `TsseqPredictor`, and `TsseqEstimator` which trains one."""

from tsseq.adapters.gluonts_estimator import TsseqEstimator
from tsseq.adapters.gluonts_predictor import TsseqPredictor

__all__ = ["TsseqEstimator", "TsseqPredictor"]
