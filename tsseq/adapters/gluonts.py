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

from tsseq.adapters.shared_model import resolve_device
from tsseq.checkpoint import FILE_NAME, load, save
from tsseq.forecaster import DECILES, Forecaster
from tsseq.inference import InferenceConfig, Predictor
from tsseq.quantiles import check_levels

SETTINGS = "tsseq.json"
logger = logging.getLogger(__name__)


class TsseqPredictor(GluonPredictor):
    """Zero-shot forecasts of a gluonts dataset, `batch_size` entries in one call of the network.

    `model` is a checkpoint's name or path (see `tsseq.load`) or a `Forecaster`. Each entry gives a
    `QuantileForecast` with the `quantile_levels` and the mean; targets of shape (channel, time) are forecast channel
    by channel, their arrays being key × time × channel. Missing values are NaN. An entry without a single observed
    value is forecast as zero, which is what gluonts imputes, with a warning in the log.

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
        lead_time: int = 0,
    ) -> None:
        if prediction_length < 1 or batch_size < 1 or lead_time < 0:
            raise ValueError(
                "expected prediction_length and batch_size of at least 1 and lead_time of at least 0, "
                f"got {prediction_length}, {batch_size} and {lead_time}"
            )
        check_levels(quantile_levels)
        super().__init__(prediction_length, lead_time)
        self.quantile_levels, self.batch_size = tuple(quantile_levels), batch_size
        self.forecaster = (model if isinstance(model, Forecaster) else load(model)).to(resolve_device(device))
        self.inference = InferenceConfig(flip=flip, nonnegative=nonnegative)

    def predict(self, dataset: Dataset, batch_size: int | None = None, **kwargs: Any) -> Iterator[QuantileForecast]:
        """One forecast per entry, in the order of the dataset."""
        for batch in _batches(dataset, batch_size or self.batch_size):
            yield from self._predict_batch(batch)

    def _predict_batch(self, entries: list[DataEntry]) -> list[QuantileForecast]:
        targets = [self._target(entry) for entry in entries]
        contexts = [channel for target in targets for channel in np.atleast_2d(target)]
        horizon = self.lead_time + self.prediction_length
        forecast = Predictor(self.forecaster, self.inference).forecast(contexts, horizon, self.quantile_levels)
        # key × series × time: the quantiles, and the mean behind them
        arrays = np.concatenate([forecast.quantiles.numpy(), forecast.mean.numpy()[..., None]], axis=-1)
        arrays = _zero_where_nothing(arrays[:, self.lead_time :].transpose(2, 0, 1), entries, targets)
        ends = np.cumsum([len(np.atleast_2d(target)) for target in targets])
        rows = zip(entries, targets, ends, strict=True)
        return [self._forecast(entry, target, arrays[:, :end]) for entry, target, end in rows]

    def _forecast(self, entry: DataEntry, target: NDArray[Any], arrays: NDArray[Any]) -> QuantileForecast:
        own = arrays[:, -1] if target.ndim == 1 else arrays[:, -len(target) :].transpose(0, 2, 1)
        return QuantileForecast(
            own,
            start_date=entry["start"] + target.shape[-1] + self.lead_time,
            forecast_keys=[*map(str, self.quantile_levels), "mean"],
            item_id=entry.get("item_id"),
            info=entry.get("info"),
        )

    def _target(self, entry: DataEntry) -> NDArray[Any]:
        name = f"entry {entry.get('item_id', '')!r}"
        for field in ("start", "target"):
            if field not in entry:
                raise GluonTSDataError(f"{name}: expected the fields start and target, got {', '.join(entry)}")
        if not isinstance(entry["start"], pd.Period):
            raise GluonTSDataError(f"{name}: expected start to be a pandas Period, got {entry['start']!r}")
        target = np.asarray(entry["target"])
        if target.ndim not in (1, 2) or target.shape[-1] == 0:
            raise GluonTSDataError(f"{name}: expected a target of shape (time,) or (channel, time), got {target.shape}")
        if np.isinf(target).any():
            raise GluonTSDataError(f"{name}: expected finite values or NaN for missing, got an infinite value")
        return target

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
