"""The user's series, cut into windows to train on and the held-out tail that judges the result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator
from torch.utils.data import IterableDataset

from tsseq.datasets.tasks import TrainingBatch
from tsseq.inference import Predictor

MAX_WINDOWS = 1000
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Tail:
    """Histories, the `horizon` values after each (window × horizon), and the unit in which they are scored."""

    contexts: list[Values]
    labels: Values
    units: Values

    @property
    def horizon(self) -> int:
        return int(self.labels.shape[1])

    def score(self, model: Predictor) -> float:
        """The scaled quantile loss of `Finetuned`; infinite for a network that forecasts no numbers any more."""
        forecast = model.forecast(self.contexts, self.horizon)
        error = self.labels[..., None] - forecast.quantiles.numpy()
        levels = np.array(forecast.levels)
        loss = 2 * np.maximum(levels * error, (levels - 1) * error).mean(-1)
        observed = ~np.isnan(self.labels)
        score = float((np.where(observed, loss, 0.0).sum(1) / observed.sum(1) / self.units).mean())
        return math.inf if math.isnan(score) else score


def hold_out(series: Sequence[Values], horizon: int, seed: int) -> tuple[list[Values], Tail]:
    """The series without their tails, and the tails: one to four windows of `horizon` values, a tenth of a series
    unless a single window is more. Series too short for a window are trained on whole; where all are, the
    windows are a third of the longest.

    Raises ValueError if no window can be scored.
    """
    rows = [np.asarray(values, np.float64) for values in series]
    horizon = max(1, min(horizon, max((len(row) for row in rows), default=0) // 3))
    counts = [min(4, max(1, len(row) // (10 * horizon))) if len(row) > 2 * horizon else 0 for row in rows]
    training = [row[: len(row) - count * horizon] for row, count in zip(rows, counts, strict=True)]
    windows = [
        (row[:cut], row[cut : cut + horizon])
        for row, kept in zip(rows, training, strict=True)
        for cut in range(len(kept), len(row), horizon)
    ]
    scored = [(context, label, unit) for context, label in windows if (unit := _unit(context, label)) > 0]
    if not scored:
        raise ValueError(
            "expected a series with at least three values that is not constant, to train on its beginning and "
            f"score on its end, got {len(rows)} series of up to {max(map(len, rows), default=0)} values"
        )
    if len(scored) > MAX_WINDOWS:
        chosen = np.random.default_rng(seed).choice(len(scored), MAX_WINDOWS, replace=False)
        scored = [scored[row] for row in np.sort(chosen)]
    contexts, labels, units = zip(*scored, strict=True)
    return training, Tail(list(contexts), np.stack(labels), np.array(units))


def _unit(context: Values, label: Values) -> float:
    """The mean absolute step of the history; 0 where there is none, or nothing to score."""
    steps = np.abs(np.diff(context[~np.isnan(context)]))
    return float(steps.mean()) if len(steps) and not np.isnan(label).all() else 0.0


class Windows(IterableDataset[TrainingBatch]):
    """Histories with the `horizon` after them, from anywhere in the series, as the forecaster will meet them."""

    def __init__(
        self, series: Sequence[Values], patch_length: int, horizon: int, patches: int, batch_size: int, seed: int
    ) -> None:
        self.future = -(-horizon // patch_length) * patch_length
        longest = max(map(len, series))
        history = min(patches, -(-longest // patch_length)) * patch_length
        self.length = history + self.future
        gap = np.full(self.length, np.nan)
        parts = [part for row in series for part in (gap, _standardised(row))]
        self.flat = torch.from_numpy(np.concatenate([*parts, gap])).float()
        self.lengths = torch.tensor([len(row) for row in series])
        self.starts = (self.lengths + self.length).cumsum(0) - self.lengths
        # At least one value is history; beyond the end of a short series all is missing.
        self.cuts = (self.lengths - self.future).clamp(min=1)
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self) -> Iterator[TrainingBatch]:
        generator = Generator().manual_seed(self.seed)
        while True:
            yield self.draw(generator)

    def draw(self, generator: Generator) -> TrainingBatch:
        """A batch of windows, every possible cut of every series being equally likely."""
        row = torch.multinomial(self.cuts.double(), self.batch_size, True, generator=generator)
        uniform = torch.rand(len(row), generator=generator, dtype=torch.float64)
        cut = (uniform * self.cuts[row]).long() + 1
        time = torch.arange(self.length)
        place = (self.starts[row] + cut - (self.length - self.future))[:, None] + time
        values = torch.where(place < (self.starts + self.lengths)[row][:, None], self.flat[place], torch.nan)
        known = ~values.isnan()
        visible = known & (time < self.length - self.future)
        first = known.long().argmax(1, keepdim=True)
        return TrainingBatch(values, visible, visible, known & (time > first))


def _standardised(row: Values) -> Values:
    """The same series at a level and in a unit that float32 can hold; forecasts do not depend on either."""
    seen = row[~np.isnan(row)]
    if not len(seen):
        return row
    return np.asarray((row - seen.mean()) / (seen.std() or 1.0))
