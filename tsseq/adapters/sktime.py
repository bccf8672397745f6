"""sktime estimators: `TsseqForecaster` and `TsseqClassifier`."""

from tsseq.adapters.sktime_forecaster import TsseqForecaster

__all__ = ["TsseqForecaster"]
