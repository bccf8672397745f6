"""Synthetic priors: distributions over series to pretrain on."""

from tsseq.synthetic.base import Prior
from tsseq.synthetic.ets import ETS
from tsseq.synthetic.gaussian_process import GaussianProcess
from tsseq.synthetic.sde import SDE
from tsseq.synthetic.seasonal_trend import SeasonalTrend

PRIORS: dict[str, type[Prior]] = {
    "ets": ETS,
    "gaussian_process": GaussianProcess,
    "sde": SDE,
    "seasonal_trend": SeasonalTrend,
}

__all__ = ["PRIORS", "Prior"]
