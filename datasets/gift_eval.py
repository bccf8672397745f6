"""GIFT-Eval (Aksu et al. 2024, arXiv 2410.10393): its 97 configurations, windows and scores.

Reads the official download (one `save_to_disk` folder per set, under the folder that the environment variable
GIFT_EVAL names) and a folder of parquet files called `<dataset>__<freq>.parquet`. Windows are the last ones of
every series, one horizon apart; multivariate sets are scored as separate series.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

from tsseq.datasets.scoring import Predictor, total_errors
from tsseq.datasets.series import Series, read_arrow_folder, read_parquet
from tsseq.datasets.windows import Windows, last_windows
from tsseq.frequency import parse
from tsseq.metrics import CRPS, MASE, scores
from tsseq.seasonal_naive import SeasonalNaive

TERMS = {"short": 1, "medium": 10, "long": 15}
HORIZONS = {"month": 12, "week": 8, "day": 30, "hour": 48, "minute": 48, "second": 60}
M4_HORIZONS = {"year": 6, "quarter": 8, "month": 18, "week": 13, "day": 14, "hour": 48}
TEST_SHARE = 0.1
MAX_WINDOWS = 20

_EVERY = tuple(TERMS)
_SHORT = ("short",)
# name on the leaderboard, folder of the download ({} = frequency), domain, variates, frequency -> terms
SETS: tuple[tuple[str, str, str, int, dict[str, tuple[str, ...]]], ...] = (
    ("loop_seattle", "LOOP_SEATTLE/{}", "Transport", 1, {"5T": _EVERY, "D": _SHORT, "H": _EVERY}),
    ("m_dense", "M_DENSE/{}", "Transport", 1, {"D": _SHORT, "H": _EVERY}),
    ("sz_taxi", "SZ_TAXI/{}", "Transport", 1, {"15T": _EVERY, "H": _SHORT}),
    ("bitbrains_fast_storage", "bitbrains_fast_storage/{}", "Web/CloudOps", 2, {"5T": _EVERY, "H": _SHORT}),
    ("bitbrains_rnd", "bitbrains_rnd/{}", "Web/CloudOps", 2, {"5T": _EVERY, "H": _SHORT}),
    ("bizitobs_application", "bizitobs_application", "Web/CloudOps", 2, {"10S": _EVERY}),
    ("bizitobs_l2c", "bizitobs_l2c/{}", "Web/CloudOps", 7, {"5T": _EVERY, "H": _EVERY}),
    ("bizitobs_service", "bizitobs_service", "Web/CloudOps", 2, {"10S": _EVERY}),
    ("car_parts", "car_parts_with_missing", "Sales", 1, {"M": _SHORT}),
    ("covid_deaths", "covid_deaths", "Healthcare", 1, {"D": _SHORT}),
    ("electricity", "electricity/{}", "Energy", 1, {"15T": _EVERY, "D": _SHORT, "H": _EVERY, "W": _SHORT}),
    ("ett1", "ett1/{}", "Energy", 7, {"15T": _EVERY, "D": _SHORT, "H": _EVERY, "W": _SHORT}),
    ("ett2", "ett2/{}", "Energy", 7, {"15T": _EVERY, "D": _SHORT, "H": _EVERY, "W": _SHORT}),
    ("hierarchical_sales", "hierarchical_sales/{}", "Sales", 1, {"D": _SHORT, "W": _SHORT}),
    ("hospital", "hospital", "Healthcare", 1, {"M": _SHORT}),
    ("jena_weather", "jena_weather/{}", "Nature", 21, {"10T": _EVERY, "D": _SHORT, "H": _EVERY}),
    ("kdd_cup_2018", "kdd_cup_2018_with_missing/{}", "Nature", 1, {"D": _SHORT, "H": _EVERY}),
    ("m4_daily", "m4_daily", "Econ/Fin", 1, {"D": _SHORT}),
    ("m4_hourly", "m4_hourly", "Econ/Fin", 1, {"H": _SHORT}),
    ("m4_monthly", "m4_monthly", "Econ/Fin", 1, {"M": _SHORT}),
    ("m4_quarterly", "m4_quarterly", "Econ/Fin", 1, {"Q": _SHORT}),
    ("m4_weekly", "m4_weekly", "Econ/Fin", 1, {"W": _SHORT}),
    ("m4_yearly", "m4_yearly", "Econ/Fin", 1, {"A": _SHORT}),
    ("restaurant", "restaurant", "Sales", 1, {"D": _SHORT}),
    ("saugeen", "saugeenday/{}", "Nature", 1, {"D": _SHORT, "M": _SHORT, "W": _SHORT}),
    ("solar", "solar/{}", "Energy", 1, {"10T": _EVERY, "D": _SHORT, "H": _EVERY, "W": _SHORT}),
    ("temperature_rain", "temperature_rain_with_missing", "Nature", 1, {"D": _SHORT}),
    ("us_births", "us_births/{}", "Healthcare", 1, {"D": _SHORT, "M": _SHORT, "W": _SHORT}),
)


@dataclass(frozen=True)
class Configuration:
    """One row of the leaderboard, such as `ett1/15T/medium`."""

    dataset: str
    freq: str
    term: str
    folder: str
    domain: str
    num_variates: int

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.freq}/{self.term}"

    @property
    def horizon(self) -> int:
        horizons = M4_HORIZONS if self.dataset.startswith("m4_") else HORIZONS
        return TERMS[self.term] * horizons[parse(self.freq).unit]

    @property
    def seasonality(self) -> int:
        return parse(self.freq).seasonality


CONFIGURATIONS: dict[str, Configuration] = {
    f"{name}/{freq}/{term}": Configuration(name, freq, term, folder.format(freq), domain, variates)
    for name, folder, domain, variates, terms_of in SETS
    for freq, terms in terms_of.items()
    for term in terms
}
QUICK = (
    "us_births/D/short",
    "hospital/M/short",
    "ett2/H/short",
    "bizitobs_l2c/H/short",
    "ett1/15T/medium",
    "ett2/15T/medium",
)


@dataclass(frozen=True)
class Result:
    """Scores of one configuration by leaderboard column, ours and Seasonal Naive's on the same windows."""

    configuration: Configuration
    scores: dict[str, float]
    seasonal_naive: dict[str, float]
    seconds: float


def load(data_dir: str | Path | None, configuration: str) -> list[Series]:
    """The series of a configuration, from either layout under `data_dir` (default: $GIFT_EVAL)."""
    path = locate(data_dir, configuration)
    return read_parquet(path) if path.suffix == ".parquet" else read_arrow_folder(path)


def root(data_dir: str | Path | None = None) -> Path:
    """The folder that holds the data: `data_dir`, else what the environment variable GIFT_EVAL names."""
    chosen = data_dir or os.environ.get("GIFT_EVAL")
    if not chosen:
        raise ValueError("expected the folder of the GIFT-Eval data, in an argument or in GIFT_EVAL, got neither")
    if not Path(chosen).is_dir():
        raise ValueError(f"expected the folder of the GIFT-Eval data, got {str(chosen)!r}, which is not a folder")
    return Path(chosen)


def named(name: str) -> Configuration:
    """The configuration of that name; ValueError with near names if there is none."""
    if name not in CONFIGURATIONS:
        near = [known for known in CONFIGURATIONS if known.split("/")[0] == name.split("/")[0]]
        expected = ", ".join(near) or "one of " + ", ".join(sorted({c.dataset for c in CONFIGURATIONS.values()}))
        raise ValueError(f"no GIFT-Eval configuration {name!r}: expected {expected}")
    return CONFIGURATIONS[name]


def locate(data_dir: str | Path | None, name: str) -> Path:
    """The folder or file that holds a configuration's data; ValueError if neither is under `data_dir`."""
    folder, configuration = root(data_dir), named(name)
    path = _find(folder, configuration)
    if path is None:
        raise ValueError(
            f"no data for {name}: expected a folder {folder / configuration.folder} "
            f"or a file {configuration.dataset}__{configuration.freq}.parquet in {folder}"
        )
    return path


def available(data_dir: str | Path | None = None) -> list[str]:
    """Names of the configurations whose data lie under `data_dir`, in the table's order."""
    folder = root(data_dir)
    return [name for name, configuration in CONFIGURATIONS.items() if _find(folder, configuration)]


def window_count(configuration: Configuration, shortest: int) -> int:
    """Test windows per series: a tenth of the shortest series, between 1 and 20; always 1 for M4."""
    return 1 if configuration.dataset.startswith("m4_") else windows_of(shortest, configuration.horizon)


def windows_of(length: int, horizon: int) -> int:
    """Windows of `horizon` values in about the last tenth of `length` values, between 1 and 20."""
    return min(max(1, math.ceil(TEST_SHARE * length / horizon)), MAX_WINDOWS)


def test_windows(series: Sequence[Series], configuration: Configuration) -> Windows:
    """The windows a configuration is scored on."""
    shortest = min(s.target.shape[-1] for s in series)
    return last_windows(series, configuration.horizon, window_count(configuration, shortest))


def evaluate(
    forecaster: Predictor,
    data_dir: str | Path | None = None,
    configurations: Sequence[str] | None = None,
    batch_size: int = 4096,
) -> pd.DataFrame:
    """Score a forecaster, one row per configuration (default: all whose data are there).

    Columns: dataset, mase, crps, mase_ratio and crps_ratio (to Seasonal Naive on the same windows), seconds,
    domain, num_variates, and the leaderboard's eleven scores. `geometric_mean` of a ratio column is the
    leaderboard's aggregate. At most `batch_size` windows go into one call.
    """
    return frame([*run(forecaster, data_dir, configurations, batch_size)])


def run(
    forecaster: Predictor,
    data_dir: str | Path | None = None,
    configurations: Sequence[str] | None = None,
    batch_size: int = 4096,
    on_windows: Callable[[int], None] = lambda count: None,
) -> Iterator[Result]:
    """As `evaluate`, one result at a time; `on_windows` hears of every batch of windows that is done."""
    folder = root(data_dir)
    chosen = available(folder) if configurations is None else configurations
    if not chosen:
        raise ValueError(f"expected GIFT-Eval data under {folder}, found none of its 97 configurations")
    for name in chosen:
        locate(folder, name)  # a wrong name ends the run before it starts
    for name in chosen:
        yield _score(forecaster, named(name), load(folder, name), batch_size, on_windows)


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """Results as the table that `evaluate` returns."""
    return pd.DataFrame(
        [
            {
                "dataset": r.configuration.name,
                "mase": r.scores[MASE],
                "crps": r.scores[CRPS],
                "mase_ratio": r.scores[MASE] / r.seasonal_naive[MASE],
                "crps_ratio": r.scores[CRPS] / r.seasonal_naive[CRPS],
                "seconds": r.seconds,
                "domain": r.configuration.domain,
                "num_variates": r.configuration.num_variates,
                **r.scores,
            }
            for r in results
        ]
    )


def leaderboard(results: Sequence[Result], model: str) -> pd.DataFrame:
    """Results in the fifteen columns of the leaderboard's `all_results.csv`."""
    return pd.DataFrame([_row(r.configuration, r.scores, model) for r in results])


def published_ratios(data_dir: str | Path | None = None) -> pd.DataFrame | None:
    """Published models relative to Seasonal Naive, from a `published.csv` beside the data; None without one.

    Columns: model, dataset, mase_ratio, crps_ratio.
    """
    path = root(data_dir) / "published.csv"
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    naive = table[table["model"] == "seasonal_naive"].set_index("dataset")
    table = table[table["dataset"].isin(naive.index)]
    for column in ("MASE", "CRPS"):
        table[f"{column.lower()}_ratio"] = table[column] / table["dataset"].map(naive[column])
    return table[["model", "dataset", "mase_ratio", "crps_ratio"]].reset_index(drop=True)


def _row(configuration: Configuration, values: dict[str, float], model: str) -> dict[str, Any]:
    return {
        "dataset": configuration.name,
        "model": model,
        **{f"eval_metrics/{column}": value for column, value in values.items()},
        "domain": configuration.domain,
        "num_variates": configuration.num_variates,
    }


def _score(
    forecaster: Predictor,
    configuration: Configuration,
    series: Sequence[Series],
    batch_size: int,
    on_windows: Callable[[int], None],
) -> Result:
    began = perf_counter()
    windows, season = test_windows(series, configuration), configuration.seasonality
    ours = total_errors(forecaster, windows, season, batch_size, on_windows)
    theirs = total_errors(SeasonalNaive(season), windows, season, batch_size)
    return Result(configuration, scores(ours), scores(theirs), perf_counter() - began)


def _find(folder: Path, configuration: Configuration) -> Path | None:
    official = folder / configuration.folder
    parquet = folder / f"{configuration.dataset}__{configuration.freq}.parquet"
    return official if (official / "state.json").is_file() else parquet if parquet.is_file() else None
