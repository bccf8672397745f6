"""`TsseqForecaster`: a forecaster of tsseq as an sktime estimator."""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sktime.forecasting.base import BaseForecaster, ForecastingHorizon

from tsseq.adapters.shared_model import SharedModel
from tsseq.adapters.sktime_grid import Grid, align, find_frequency, future_index, merge, places, to_rows, with_frequency
from tsseq.backbone import BackboneConfig
from tsseq.device import resolve_device
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.frequency import Frequency
from tsseq.inference import InferenceConfig, Predictor
from tsseq.with_covariates import Covariates, forecast_series, warn_of_ignored

MODES = ("zero_shot", "fine_tune", "from_scratch")
POINTS = ("median", "mean")


class TsseqForecaster(BaseForecaster):
    """Zero-shot probabilistic forecasts of any number of series in one batched call.

    By default nothing is trained: `fit` takes the series as context, and a pretrained network forecasts all of them
    at once, univariate, multivariate (channel by channel), panel or hierarchical, of equal or unequal lengths, with
    missing values or missing rows, at any horizon and any quantile level. `update` extends the context.

    Parameters
    ----------
    model : str or Path, default="base"
        Checkpoint: the name of a bundled one, a .safetensors file, a folder with model.safetensors, or a repository
        "user/name" on the Hugging Face hub. Not read in mode "from_scratch".
    mode : {"zero_shot", "fine_tune", "from_scratch"}, default="zero_shot"
        What `fit` does with the series beyond keeping them as context: nothing; adapt the weights of `model`, which
        are kept as they are unless that improves the forecast of a held-out tail; or train a new network.
    mixer : str, default="gated_delta_product"
        Sequence mixer of a new network, one of `tsseq.mixers.MIXERS`, or several joined by commas.
    width, layers, patch_length : int, default=64, 2, 8
        Features, residual blocks and values per position of a new network.
    max_steps : int, default=200
        Most optimiser steps in the two training modes; training stops early once the tail is forecast no better.
    learning_rate : float or None, default=None
        Peak learning rate; None is 3e-4 for fine-tuning and 2e-3 from scratch.
    point : {"median", "mean"}, default="median"
        What `predict` returns.
    flip : bool, default=True
        Average with the mirrored forecast of the mirrored series; doubles the time.
    nonnegative : bool, default=True
        No forecast below zero for a series that never is.
    coarser : tuple of int, default=(3, 6)
        Factors by which long histories are also read more coarsely, where that forecast their own end better.
    recent : tuple of int, default=(4096,)
        Numbers of values to whose last so many a longer history is also cut, in the same way.
    recent_short : tuple of int, default=(1024,)
        The same for horizons shorter than two patches of the network, the only further reading there.
    phases : tuple of int, default=(24,)
        Periods whose phases are also read as series of their own, in the same way, where the history is longer than
        the network reads and the horizon is of 240 steps or more.
    spread : float, default=1.0
        What the distance of every quantile from the median is multiplied by.
    covariates : bool, default=True
        Use X, by a ridge regression fitted to the context (see `tsseq.covariates`), for the series whose last values
        it helps to forecast. Columns that X lacks in `predict` are covariates of the past only, and forecast
        themselves. Costs about ten forecasts more; False ignores X.
    freq : str or None, default=None
        Frequency alias, old or new pandas spelling, for time stamps that do not show it; absent rows are then
        missing values.
    device : str, default="auto"
        Where the network runs: "auto" (a GPU if there is one), "cpu", "cuda", "mps".
    random_state : int, RandomState or None, default=0
        Seed of the two training modes.

    Examples
    --------
    >>> from sktime.datasets import load_airline
    >>> from tsseq.adapters.sktime import TsseqForecaster
    >>> y = load_airline()
    >>> forecaster = TsseqForecaster(mode="from_scratch", max_steps=5).fit(y)
    >>> forecaster.predict(fh=[1, 2, 12]).shape
    (3,)
    >>> forecaster.predict_interval(fh=[1, 2, 12], coverage=0.8).shape
    (3, 2)
    """

    _tags = {
        "authors": ["tsseq"],
        "maintainers": ["tsseq"],
        "python_dependencies": ["torch"],
        "y_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "X_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "capability:multivariate": True,
        "capability:exogenous": True,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:missing_values": True,
        "capability:unequal_length": True,
        "capability:update": True,
        "capability:categorical_in_X": False,
        "capability:random_state": True,
        "property:randomness": "derandomized",
        "requires-fh-in-fit": False,
        "X-y-must-have-same-index": False,
    }
    # The context is kept once, as long as the network reads; sktime need not keep the data too.
    _config = {"remember_data": False}
    _cutoff: Any
    _cur_y: Any
    _cur_X: Any

    def __init__(
        self,
        model: str | Path = "base",
        mode: str = "zero_shot",
        mixer: str = "gated_delta_product",
        width: int = 64,
        layers: int = 2,
        patch_length: int = 8,
        max_steps: int = 200,
        learning_rate: float | None = None,
        point: str = "median",
        flip: bool = True,
        nonnegative: bool = True,
        coarser: tuple[int, ...] = InferenceConfig.coarser,
        recent: tuple[int, ...] = InferenceConfig.recent,
        recent_short: tuple[int, ...] = InferenceConfig.recent_short,
        phases: tuple[int, ...] = InferenceConfig.phases,
        spread: float = InferenceConfig.spread,
        covariates: bool = True,
        freq: Any = None,
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.model = model
        self.mode = mode
        self.mixer = mixer
        self.width = width
        self.layers = layers
        self.patch_length = patch_length
        self.max_steps = max_steps
        self.learning_rate = learning_rate
        self.point = point
        self.flip = flip
        self.nonnegative = nonnegative
        self.coarser = coarser
        self.recent = recent
        self.recent_short = recent_short
        self.phases = phases
        self.spread = spread
        self.covariates = covariates
        self.freq = freq
        self.device = device
        self.random_state = random_state
        super().__init__()

    def __dynamic_tags__(self) -> None:
        if self.mode in MODES[1:]:
            self.set_tags(python_dependencies=["torch", "lightning"])
        if not self.covariates:
            self.set_tags(**{"capability:exogenous": False})

    def __post_init__(self) -> None:
        self._y = self._X = self._cur_y = self._cur_X = None
        self._frequency: Frequency | None = None
        for name, allowed in (("mode", MODES), ("point", POINTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not isinstance(self.model, str | Path):
            raise TypeError(
                "expected model to be a checkpoint's name or path, so that clones can share it, got "
                f"{type(self.model).__name__}: write it with save_pretrained(path) and pass the path"
            )

    def _update_y_X(self, y: pd.DataFrame, X: pd.DataFrame | None = None, enforce_index_type: Any = None) -> None:
        """As sktime's, once both are known to be usable, so that an update that is refused changes nothing."""
        self._check("y", y)
        self._check("X", X)
        if self._cur_y is not None and y is not None:
            single = y.shape[1] == self._cur_y.shape[1] == 1  # the name of a single column may change
            if not single and set(y.columns) != set(self._cur_y.columns):
                known, got = (", ".join(map(repr, table.columns)) for table in (self._cur_y, y))
                raise ValueError(f"expected the columns of fit, {known}, got {got}")
            for table in (y, X):
                if table is not None:
                    align(table.index, self._cutoff, self._frequency or find_frequency(table.index, self.freq))
        super()._update_y_X(y, X, enforce_index_type)

    def _set_cutoff_from_y(self, y: pd.DataFrame) -> None:
        self._frequency = self._frequency or find_frequency(y.index, self.freq)
        super()._set_cutoff_from_y(y)
        if self._frequency is not None:
            self._cutoff = with_frequency(self._cutoff, self._frequency)

    def _fit(self, y: pd.DataFrame, X: pd.DataFrame | None, fh: ForecastingHorizon | None) -> TsseqForecaster:
        self._cur_y, self._cur_X = y, X
        self._shared = self._train(y, fh)
        self._keep_tail()
        return self

    def _train(self, y: pd.DataFrame, fh: ForecastingHorizon | None) -> SharedModel:
        if self.mode == "zero_shot":
            return SharedModel.from_checkpoint(self.model, self.device)
        from tsseq.finetuning import FinetuningConfig, finetune, train_from_scratch

        fine_tune = self.mode == "fine_tune"
        pretrained = SharedModel.from_checkpoint(self.model, self.device) if fine_tune else None
        config = FinetuningConfig(
            horizon=self.patch_length if fh is None else int(self._steps(fh).max()),
            max_steps=self.max_steps,
            learning_rate=(3e-4 if fine_tune else 2e-3) if self.learning_rate is None else self.learning_rate,
            seed=int(check_random_state(self.random_state).randint(2**31)),
            inference=self._inference,
        )
        device = str(resolve_device(self.device))
        grid = align(y.index, self._cutoff, self._frequency)
        series = list(grid.scatter(y, int(grid.place.min()), 0).reshape(len(grid) * y.shape[1], -1))
        if pretrained is None:
            result = train_from_scratch(self._network(), series, config, device=device)
        else:
            result = finetune(pretrained.forecaster, series, config, device=device)
            if not result.improved:
                warnings.warn(str(result), stacklevel=4)
                return pretrained
        return SharedModel.from_weights(result.forecaster.to(device), self.device)

    def _network(self) -> ForecasterConfig:
        mixers = tuple(self.mixer.split(","))
        backbone = BackboneConfig(mixers=mixers, width=self.width, layers=self.layers, mlp_width=2 * self.width)
        return ForecasterConfig(
            patch_length=self.patch_length,
            hidden_width=2 * self.width,
            max_context=64 * self.patch_length,
            backbone=backbone,
        )

    @property
    def _inference(self) -> InferenceConfig:
        return InferenceConfig(
            flip=self.flip,
            nonnegative=self.nonnegative,
            coarser=tuple(self.coarser),
            recent=tuple(self.recent),
            recent_short=tuple(self.recent_short),
            phases=tuple(self.phases),
            spread=self.spread,
        )

    def _update(self, y: pd.DataFrame, X: pd.DataFrame | None = None, update_params: bool = True) -> TsseqForecaster:
        if y.shape[1] == 1:
            y = y.set_axis(self._cur_y.columns, axis=1)
        self._cur_y = merge(self._cur_y, y)
        if X is not None:
            self._cur_X = X if self._cur_X is None else merge(self._cur_X, self._of_fit(X))
        if update_params and self.mode != "zero_shot":
            self._shared = self._train(self._cur_y, self._fh)
        self._keep_tail()
        return self

    def _keep_tail(self) -> None:
        """Copy what the network can read; the training modes keep all, as an update trains again."""
        reach = self._inference.reach(self._shared.forecaster.config.max_context)
        length = reach if self.mode == "zero_shot" else None
        self._cur_y = self._tail(self._cur_y, length)
        self._cur_X = None if self._cur_X is None else self._tail(self._cur_X, length)

    def _tail(self, table: pd.DataFrame, length: int | None) -> pd.DataFrame:
        if length is None:
            return table.copy()
        return table[align(table.index, self._cutoff, self._frequency).place > -length].copy()

    def _predict(self, fh: ForecastingHorizon, X: pd.DataFrame | None) -> pd.DataFrame:
        result, index = self._forecast(fh, X, (0.5,))
        values = result["mean"] if self.point == "mean" else result["quantiles"][..., 0]
        return pd.DataFrame(to_rows(values), index, self._cur_y.columns)

    def _predict_quantiles(self, fh: ForecastingHorizon, X: pd.DataFrame | None, alpha: list[float]) -> pd.DataFrame:
        levels = sorted(set(alpha))
        result, index = self._forecast(fh, X, tuple(levels))
        values = result["quantiles"][..., [levels.index(level) for level in alpha]]
        columns = pd.MultiIndex.from_product([self._get_varnames(), alpha])
        return pd.DataFrame(to_rows(values.transpose(0, 1, 3, 2)), index, columns)

    def _forecast(
        self, fh: ForecastingHorizon, X: pd.DataFrame | None, levels: tuple[float, ...]
    ) -> tuple[dict[str, NDArray[np.float64]], pd.Index]:
        """The mean, series × column × step, the quantiles, with a last axis of levels, and the index of the rows."""
        y, model = self._cur_y, self._shared.forecaster
        grid = align(y.index, self._cutoff, self._frequency)
        steps = self._steps(fh)
        first = max(int(grid.place.min()), 1 - self._inference.reach(model.config.max_context))
        context = grid.scatter(y, min(first, 0), 0)
        self._warn_of_nothing(context, grid)
        horizon, shape = int(steps.max()), (*context.shape[:2], len(steps))
        covariates = self._covariates(X, grid, context.shape, horizon)
        rows = context.reshape(-1, context.shape[-1])
        forecast = forecast_series(Predictor(model, self._inference), rows, horizon, levels, covariates)
        result = {
            "mean": forecast.mean[:, steps - 1].reshape(shape),
            "quantiles": forecast.quantiles[:, steps - 1].reshape(*shape, len(levels)),
        }
        return result, self._future(fh, grid, steps)

    def _covariates(
        self, X: pd.DataFrame | None, grid: Grid, shape: tuple[int, ...], horizon: int
    ) -> Covariates | None:
        """X of `fit`, `update` and `predict` beside a context of this shape (series × column × time), if any."""
        self._check("X", X)
        new = None if X is None else self._of_fit(X)
        known = self._cur_X
        if known is None:
            return None
        table = known if new is None else merge(known, new)[known.columns]
        rows = align(table.index, self._cutoff, self._frequency).like(grid)
        if new is not None and not ((rows.place > 0) & (rows.place <= horizon)).any():
            raise ValueError(
                f"expected X with rows after the cutoff, {self._cutoff[0]}, up to the horizon of {horizon} steps, "
                f"got rows from {new.index.get_level_values(-1).min()} to {new.index.get_level_values(-1).max()}"
            )
        values = rows.scatter(table, 1 - shape[-1], horizon).transpose(0, 2, 1).repeat(shape[1], axis=0)
        return Covariates(values[:, : shape[-1]], values[:, shape[-1] :], list(known.columns))

    def _of_fit(self, X: pd.DataFrame) -> pd.DataFrame:
        """The columns that the X of `fit` has, with a warning where there are others."""
        known = X.columns[:0] if self._cur_X is None else self._cur_X.columns
        others = X.columns.difference(known, sort=False)
        if len(others):
            warn_of_ignored(list(others), "are not in the X of fit")
        return X[X.columns.intersection(known, sort=False)]

    def _steps(self, fh: ForecastingHorizon) -> NDArray[np.int64]:
        """Steps after the cutoff, rising."""
        if fh.is_relative and pd.api.types.is_integer_dtype(fh.to_pandas().dtype):
            return np.asarray(fh.to_pandas(), np.int64)
        return places(fh.to_absolute_index(self._cutoff), self._cutoff, self._frequency)

    def _future(self, fh: ForecastingHorizon, grid: Grid, steps: NDArray[np.int64]) -> pd.Index:
        if isinstance(self._cutoff, pd.DatetimeIndex) and self._cutoff.freq is None and fh.is_relative:
            times = future_index(self._cutoff, steps, self._frequency)
        else:
            times = pd.Index(fh.to_absolute_index(self._cutoff))
        names = self._cur_y.index.names
        if grid.instances is None:
            return times.set_names(names)
        series = grid.instances.repeat(len(times))
        levels = [series.get_level_values(level) for level in range(series.nlevels)]
        return pd.MultiIndex.from_arrays([*levels, times[np.tile(np.arange(len(times)), len(grid))]], names=names)

    def _check(self, name: str, table: pd.DataFrame | None) -> None:
        if table is None:
            return
        infinite = np.isinf(table.to_numpy(dtype=np.float64, na_value=np.nan))
        if infinite.any():
            row, column = np.argwhere(infinite)[0]
            raise ValueError(
                f"expected finite values or NaN for missing in {name}, got an infinite one in column "
                f"{table.columns[column]!r} at {table.index[row]}: replace it by NaN, or impute it in a pipeline"
            )

    def _warn_of_nothing(self, context: NDArray[np.float64], grid: Grid) -> None:
        empty = np.flatnonzero(np.isnan(context).all((1, 2)))
        if len(empty):
            names = "the series" if grid.instances is None else ", ".join(map(repr, grid.instances[empty][:5]))
            warnings.warn(f"nothing observed, so forecast as missing: {names}", stacklevel=4)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Parameters of instances that fit and predict in milliseconds."""
        readings = {"flip": False, "coarser": (), "recent": (), "recent_short": (), "phases": ()}
        quick = {**readings, "device": "cpu", "max_steps": 1}
        pretrained = {**quick, "model": str(_tiny_checkpoint())}
        new = {**quick, "mode": "from_scratch", "mixer": "lru", "width": 8, "layers": 1, "point": "mean"}
        return [pretrained, {**pretrained, "mode": "fine_tune", "covariates": False}, new]


@functools.cache
def _tiny_checkpoint() -> Path:
    """A network of a few hundred random weights in the temporary folder."""
    config = ForecasterConfig(
        patch_length=8,
        hidden_width=16,
        max_context=256,
        backbone=BackboneConfig(mixers=("lru",), width=16, layers=1, mlp_width=16),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Forecaster(config)
    return model.save_pretrained(Path(tempfile.mkdtemp(prefix="tsseq-")) / "tiny.safetensors")
