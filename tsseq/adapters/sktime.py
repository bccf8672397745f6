"""sktime estimators: `TsseqForecaster` and `TsseqClassifier`."""

from tsseq.adapters.sktime_classifier import TsseqClassifier
from tsseq.adapters.sktime_forecaster import TsseqForecaster

__all__ = ["TsseqClassifier", "TsseqForecaster"]
