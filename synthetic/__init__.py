"""Synthetic priors: distributions over series to pretrain on."""

from collections.abc import Callable
from functools import partial

from tsseq.synthetic.arma import ARIMA
from tsseq.synthetic.base import Prior
from tsseq.synthetic.causal import Causal
from tsseq.synthetic.demand import Demand
from tsseq.synthetic.dynamics import Dynamics
from tsseq.synthetic.economy import Economy
from tsseq.synthetic.epidemic import Epidemic
from tsseq.synthetic.ets import ETS
from tsseq.synthetic.factors import CommonFactors
from tsseq.synthetic.forecast_pfn import ForecastPFN
from tsseq.synthetic.fractal import MultiscaleFractal
from tsseq.synthetic.gaussian_process import GaussianProcess
from tsseq.synthetic.hydrology import Hydrology
from tsseq.synthetic.kernel_synth import KernelSynth
from tsseq.synthetic.maps import ChaoticMaps
from tsseq.synthetic.network import NetworkTopology
from tsseq.synthetic.power import Power
from tsseq.synthetic.rhythm import StochasticRhythm
from tsseq.synthetic.sde import SDE
from tsseq.synthetic.seasonal_trend import SeasonalTrend
from tsseq.synthetic.sensor import Sensor
from tsseq.synthetic.spikes import Anomaly, Spikes
from tsseq.synthetic.step import Step
from tsseq.synthetic.telemetry import Telemetry
from tsseq.synthetic.threshold import ThresholdAutoregression
from tsseq.synthetic.traffic import Traffic
from tsseq.synthetic.volatility import FinancialVolatility
from tsseq.synthetic.waveforms import Waveforms
from tsseq.synthetic.weather import Weather

PRIORS: dict[str, Callable[[], Prior]] = {
    "anomaly": Anomaly,
    "arima": ARIMA,
    "cauker": Causal,
    "chaotic_maps": ChaoticMaps,
    "common_factors": CommonFactors,
    "demand": Demand,
    "dynamics": Dynamics,
    "economy": Economy,
    "epidemic": Epidemic,
    "ets": ETS,
    "financial_volatility": FinancialVolatility,
    "forecast_pfn": ForecastPFN,
    "gaussian_process": GaussianProcess,
    "hydrology": Hydrology,
    "kernel_synth": KernelSynth,
    "multiscale_fractal": MultiscaleFractal,
    "network_topology": NetworkTopology,
    "power": Power,
    "sawtooth": partial(Waveforms, shapes=(0.0, 0.0, 0.2, 0.8, 0.0), components=1, shortest=16.0, noisy=0.2),
    "sde": SDE,
    "seasonal_trend": SeasonalTrend,
    "sensor": Sensor,
    "sine_waves": partial(Waveforms, shapes=(1.0, 0.0, 0.0, 0.0, 0.0), shortest=10.0, modulated=0.6, noisy=0.7),
    "spikes": Spikes,
    "step": Step,
    "stochastic_rhythm": StochasticRhythm,
    "telemetry": Telemetry,
    "threshold_autoregression": ThresholdAutoregression,
    "traffic": Traffic,
    "waveforms": Waveforms,
    "weather": Weather,
}
"""Every family by name; calling an entry makes it with its default parameters."""

__all__ = ["PRIORS", "Prior"]
