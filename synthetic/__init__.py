"""Synthetic priors: distributions over series to pretrain on."""

from collections.abc import Callable

from tsseq.synthetic.arma import ARIMA
from tsseq.synthetic.base import Prior
from tsseq.synthetic.causal import Causal
from tsseq.synthetic.demand import Demand
from tsseq.synthetic.economy import Economy
from tsseq.synthetic.epidemic import Epidemic
from tsseq.synthetic.ets import ETS
from tsseq.synthetic.gaussian_process import GaussianProcess
from tsseq.synthetic.hydrology import Hydrology
from tsseq.synthetic.power import Power
from tsseq.synthetic.sde import SDE
from tsseq.synthetic.seasonal_trend import SeasonalTrend
from tsseq.synthetic.spikes import Anomaly, Spikes
from tsseq.synthetic.step import Step
from tsseq.synthetic.telemetry import Telemetry
from tsseq.synthetic.traffic import Traffic
from tsseq.synthetic.waveforms import Waveforms
from tsseq.synthetic.weather import Weather

PRIORS: dict[str, Callable[[], Prior]] = {
    "anomaly": Anomaly,
    "arima": ARIMA,
    "causal": Causal,
    "demand": Demand,
    "economy": Economy,
    "epidemic": Epidemic,
    "ets": ETS,
    "gaussian_process": GaussianProcess,
    "hydrology": Hydrology,
    "power": Power,
    "sde": SDE,
    "seasonal_trend": SeasonalTrend,
    "spikes": Spikes,
    "step": Step,
    "telemetry": Telemetry,
    "traffic": Traffic,
    "waveforms": Waveforms,
    "weather": Weather,
}

__all__ = ["PRIORS", "Prior"]
