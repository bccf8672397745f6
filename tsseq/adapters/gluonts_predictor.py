"""`TsseqPredictor`: a forecaster of tsseq as a gluonts predictor."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry, Dataset
from gluonts.exceptions import GluonTSDataError
from gluonts.model.forecast import QuantileForecast
from gluonts.model.predictor import Predictor as GluonPredictor
from numpy.typing import NDArray

from tsseq.checkpoint import FILE_NAME, load, save
from tsseq.device import resolve_device
from tsseq.forecaster import DECILES, Forecaster
from tsseq.inference import InferenceConfig, Predictor
from tsseq.quantiles import check_levels
from tsseq.with_covariates import Covariates, forecast_series

SETTINGS = "tsseq.json"
FEATURES = ("feat_dynamic_real", "past_feat_dynamic_real")
logger = logging.getLogger(__name__)


class TsseqPredictor(GluonPredictor):
    """Zero-shot forecasts of a gluonts dataset, `batch_size` entries in one call of the network.

    `model` is a checkpoint's name or path (see `tsseq.load`) or a `Forecaster`. Each entry gives a
    `QuantileForecast` with the `quantile_levels` and the mean; targets of shape (channel, time) are forecast channel
    by channel, their arrays being key × time × channel. Missing values are NaN. An entry without a single observed
    value is forecast as zero, which is what gluonts imputes, with a warning in the log.

    With `covariates`, feat_dynamic_real (covariate × time, into the future as far as known) and
    past_feat_dynamic_real (covariate × time) correct the forecasts of those series whose last values they help to
    forecast, by a ridge regression fitted to the context (see `tsseq.covariates`); this costs about ten forecasts
    more. Other features are ignored, and named in the log. `flip` to `spread` are
    options of `tsseq.inference.InferenceConfig`.

    Raises GluonTSDataError for entries without a start, with an empty or infinite target, or of a wrong shape, and
    ValueError for unusable settings.
    """

    def __init__(
        self,
        prediction_length: int,
        model: str | Path | Forecaster = "base",
        *,
        quantile_levels: Sequence[float] = DECILES,
        batch_size: int = 1024,
        device: str = "auto",
        flip: bool = True,
        nonnegative: bool = True,
        coarser: Sequence[int] = InferenceConfig.coarser,
        recent: Sequence[int] = InferenceConfig.recent,
        recent_short: Sequence[int] = InferenceConfig.recent_short,
        phases: Sequence[int] = InferenceConfig.phases,
        spread: float = InferenceConfig.spread,
        covariates: bool = True,
        lead_time: int = 0,
    ) -> None:
        if prediction_length < 1 or batch_size < 1 or lead_time < 0:
            raise ValueError(
                "expected prediction_length and batch_size of at least 1 and lead_time of at least 0, "
                f"got {prediction_length}, {batch_size} and {lead_time}"
            )
        check_levels(quantile_levels)
        super().__init__(int(prediction_length), int(lead_time))
        # Plain numbers, whatever kind was given: `serialize` writes them as JSON.
        self.covariates = bool(covariates)
        self.quantile_levels, self.batch_size = tuple(map(float, quantile_levels)), int(batch_size)
        self.forecaster = (model if isinstance(model, Forecaster) else load(model)).to(resolve_device(device))
        self.inference = InferenceConfig(
            flip=bool(flip),
            nonnegative=bool(nonnegative),
            coarser=tuple(map(int, coarser)),
            recent=tuple(map(int, recent)),
            recent_short=tuple(map(int, recent_short)),
            phases=tuple(map(int, phases)),
            spread=float(spread),
        )

    def predict(self, dataset: Dataset, batch_size: int | None = None, **kwargs: Any) -> Iterator[QuantileForecast]:
        """One forecast per entry, in the order of the dataset."""
        told: set[str] = set()
        for batch in _batches(dataset, batch_size or self.batch_size):
            ignored = {field for entry in batch for field in entry if self._ignores(field)} - told
            if ignored:
                logger.warning("ignored: %s", ", ".join(sorted(ignored)))
                told |= ignored
            yield from self._predict_batch(batch)

    def _ignores(self, field: str) -> bool:
        return field.startswith(("feat_", "past_feat_")) and not (self.covariates and field in FEATURES)

    def _predict_batch(self, entries: list[DataEntry]) -> list[QuantileForecast]:
        targets = [read_target(entry) for entry in entries]
        arrays = self._forecast_targets(entries, targets)[:, :, self.lead_time :]
        arrays = _zero_where_nothing(arrays, entries, targets)
        ends = np.cumsum([len(np.atleast_2d(target)) for target in targets])
        rows = zip(entries, targets, ends, strict=True)
        return [self._forecast(entry, target, arrays[:, :end]) for entry, target, end in rows]

    def _forecast_targets(self, entries: list[DataEntry], targets: list[NDArray[Any]]) -> NDArray[Any]:
        """key × series × time of all channels of all targets in a row: the quantiles, and the mean behind them."""
        horizon = self.lead_time + self.prediction_length
        channels = [np.atleast_2d(target) for target in targets]
        rows = np.repeat(np.arange(len(entries)), [len(target) for target in channels])
        reach = self.inference.reach(self.forecaster.config.max_context)
        contexts = [row[-reach:] for target in channels for row in target]
        arrays = np.empty((len(contexts), horizon, len(self.quantile_levels) + 1))
        model = Predictor(self.forecaster, self.inference)
        for number, members in _by_features(entries, self.covariates).items():
            chosen = np.flatnonzero(np.isin(rows, members))
            some: Any = [contexts[row] for row in chosen]
            features = None
            if any(number):
                length = max(map(len, some))
                some = np.stack([_right(row, length) for row in some])
                parts = {row: _features(entries[row], targets[row].shape[-1], length, horizon) for row in members}
                values = np.stack([parts[rows[row]] for row in chosen])
                features = Covariates(values[:, :length], values[:, length:], _names(number))
            result = forecast_series(model, some, horizon, self.quantile_levels, features)
            arrays[chosen] = np.concatenate([result.quantiles, result.mean[..., None]], axis=-1)
        return arrays.transpose(2, 0, 1)

    def _forecast(self, entry: DataEntry, target: NDArray[Any], arrays: NDArray[Any]) -> QuantileForecast:
        own = arrays[:, -1] if target.ndim == 1 else arrays[:, -len(target) :].transpose(0, 2, 1)
        return QuantileForecast(
            own,
            start_date=entry["start"] + target.shape[-1] + self.lead_time,
            forecast_keys=[*map(str, self.quantile_levels), "mean"],
            item_id=entry.get("item_id"),
            info=entry.get("info"),
        )

    def serialize(self, path: Path) -> None:
        """Write the settings and the weights to the folder `path`, which then needs no checkpoint besides."""
        super().serialize(path)
        settings = {
            "prediction_length": self.prediction_length,
            "quantile_levels": self.quantile_levels,
            "batch_size": self.batch_size,
            "lead_time": self.lead_time,
            "flip": self.inference.flip,
            "nonnegative": self.inference.nonnegative,
            "coarser": self.inference.coarser,
            "recent": self.inference.recent,
            "recent_short": self.inference.recent_short,
            "phases": self.inference.phases,
            "spread": self.inference.spread,
            "covariates": self.covariates,
        }
        (path / SETTINGS).write_text(json.dumps(settings))
        save(self.forecaster, path / FILE_NAME)

    @classmethod
    def deserialize(cls, path: Path, device: str = "auto", **kwargs: Any) -> TsseqPredictor:
        """Read what `serialize` wrote."""
        return cls(model=path / FILE_NAME, device=device, **json.loads((path / SETTINGS).read_text()))


def _batches(entries: Iterable[DataEntry], size: int) -> Iterator[list[DataEntry]]:
    iterator = iter(entries)
    while batch := list(islice(iterator, size)):
        yield batch


def _zero_where_nothing(arrays: NDArray[Any], entries: list[DataEntry], targets: list[NDArray[Any]]) -> NDArray[Any]:
    """`arrays` is key × series × time; series without any observation become zero."""
    empty = [np.isnan(np.atleast_2d(target)).all(-1) for target in targets]
    names = [str(entry.get("item_id")) for entry, channels in zip(entries, empty, strict=True) if channels.any()]
    if not names:
        return arrays
    logger.warning("forecast as zero, as nothing is observed: %s", ", ".join(names))
    result: NDArray[Any] = np.where(np.concatenate(empty)[:, None], 0.0, arrays)
    return result


def _by_features(entries: list[DataEntry], covariates: bool) -> dict[tuple[int, int], list[int]]:
    """Positions of the entries by how many covariates they have: of the future, and of the past only."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, entry in enumerate(entries):
        counts = [len(np.atleast_2d(entry[field])) if covariates and field in entry else 0 for field in FEATURES]
        groups.setdefault((counts[0], counts[1]), []).append(row)
    return groups


def _features(entry: DataEntry, steps: int, length: int, horizon: int) -> NDArray[np.float64]:
    """The covariates of an entry, (length + horizon) × covariate, from `length` before the end of its target on."""
    columns = []
    for field, until in zip(FEATURES, (steps + horizon, steps), strict=True):
        values = np.atleast_2d(np.asarray(entry.get(field, np.empty((0, until))), np.float64))
        if values.shape[1] < steps or np.isinf(values).any():
            raise GluonTSDataError(
                f"entry {entry.get('item_id', '')!r}: expected {field} of shape (covariate, time) at least as long as "
                f"the target ({steps}), finite or NaN for missing, got {values.shape}"
            )
        for row in values[:, :until]:
            padded = np.concatenate([row, np.full(steps + horizon - len(row), np.nan)])
            columns.append(_right(padded, length + horizon))
    return np.stack(columns, axis=-1)


def _names(number: tuple[int, int]) -> list[str]:
    return [f"{field}[{k}]" for field, count in zip(FEATURES, number, strict=True) for k in range(count)]


def _right(row: NDArray[Any], length: int) -> NDArray[np.float64]:
    """The last `length` values, with NaN in front of a shorter row."""
    return np.concatenate([np.full(max(length - len(row), 0), np.nan), row[-length:]])


def read_target(entry: DataEntry) -> NDArray[Any]:
    """The target of an entry, (time,) or (channel, time). Raises GluonTSDataError unless it can be forecast."""
    name = f"entry {entry.get('item_id', '')!r}"
    for field in ("start", "target"):
        if field not in entry:
            raise GluonTSDataError(f"{name}: expected the fields start and target, got {', '.join(entry)}")
    if not isinstance(entry["start"], pd.Period):
        raise GluonTSDataError(f"{name}: expected start to be a pandas Period, got {entry['start']!r}")
    target = np.asarray(entry["target"])
    if target.ndim not in (1, 2) or target.shape[-1] == 0:
        raise GluonTSDataError(f"{name}: expected a target of shape (time,) or (channel, time), got {target.shape}")
    if target.dtype.kind not in "biuf":
        try:
            target = np.where(pd.isna(target), np.nan, target).astype(np.float64)
        except (TypeError, ValueError) as error:
            raise GluonTSDataError(f"{name}: expected a target of numbers, got {target.dtype}") from error
    if np.isinf(target).any():
        raise GluonTSDataError(f"{name}: expected finite values or NaN for missing, got an infinite value")
    return target
