"""Linear RNNs and state-space models for time series.

import tsseq
tsseq.forecast(df, horizon=24)          # pandas in, pandas out, zero-shot
model = tsseq.load("base")              # the network itself
model.forecast(context, horizon=24)     # tensors in, tensors out
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsseq.adapters.gluonts import TsseqPredictor as TsseqPredictor
    from tsseq.adapters.sktime import TsseqClassifier as TsseqClassifier
    from tsseq.adapters.sktime import TsseqForecaster as TsseqForecaster
    from tsseq.checkpoint import load as load
    from tsseq.forecaster import Forecast as Forecast
    from tsseq.forecaster import Forecaster as Forecaster
    from tsseq.inference import Predictor as Predictor
    from tsseq.table import forecast as forecast

__version__ = "0.1.0"

# Names are imported on first use: `import tsseq` and `tsseq --help` must not wait for torch.
_HOME = {
    "load": "tsseq.checkpoint",
    "Forecast": "tsseq.forecaster",
    "Forecaster": "tsseq.forecaster",
    "Predictor": "tsseq.inference",
    "forecast": "tsseq.table",
    "TsseqForecaster": "tsseq.adapters.sktime",
    "TsseqClassifier": "tsseq.adapters.sktime",
    "TsseqPredictor": "tsseq.adapters.gluonts",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tsseq' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
