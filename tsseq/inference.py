"""What wraps a forecaster at forecast time: each an option, none of it trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from tsseq.array_typing import Tensor
from tsseq.forecaster import Context, Forecast, Forecaster, as_series, last_values
from tsseq.quantiles import check_levels, mean_of_quantiles, resample_levels
from tsseq.resampling import blocks_ahead, coarsen, join_phases, pinball, refine, split_phases


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a forecast is made from a trained network.

    flip          average with the mirrored forecast of the mirrored history; costs a second pass
    nonnegative   no quantile below zero for a history that never is; free
    coarser       factors by which a long history is also read more coarsely
    recent        numbers of values to whose last so many a longer history is also cut
    recent_short  the same for a horizon shorter than two patches, if the network's scaler is causal
    phases        periods whose phases (all Mondays, all Tuesdays, ...) are also read as series of their own, twice as
                  far back as the network reads
    origins       number of past horizons that each further reading first forecasts
    temperature   the lower, the more a better reading counts
    spread        what the distance of every quantile from the median is multiplied by; free

    Each further reading, coarser, more recent or by phases, first forecasts the last horizons of the history. Those
    that do it better than the plain reading are averaged with it, weighted by how much better. With the defaults this
    takes as long as about six passes more for a long history, twelve from `PHASES_FROM` steps ahead on if it is longer
    than the network reads, and nothing for a history shorter than four horizons. For a horizon shorter than two patches
    only `recent_short` is read further, and judged by what a causal network forecasts patch by patch on its way through
    the history; that takes about one pass more for a history longer than 1,024 values, and nothing for a shorter one.
    """

    flip: bool = True
    nonnegative: bool = True
    coarser: tuple[int, ...] = (3, 6)
    recent: tuple[int, ...] = (4096,)
    recent_short: tuple[int, ...] = (1024,)
    phases: tuple[int, ...] = (24,)
    origins: int = 2
    temperature: float = 0.1
    spread: float = 1.0

    def __post_init__(self) -> None:
        if min((*self.coarser, *self.phases), default=2) < 2 or min((*self.recent, *self.recent_short), default=1) < 1:
            raise ValueError(
                "expected factors of at least 2 in coarser and phases and lengths of at least 1 in recent and "
                f"recent_short, got {self.coarser}, {self.phases}, {self.recent} and {self.recent_short}"
            )
        if self.origins < 1 or not self.temperature > 0 or not self.spread > 0:
            raise ValueError(
                "expected origins of at least 1 and a positive temperature and spread, "
                f"got {self.origins}, {self.temperature} and {self.spread}"
            )

    def reach(self, max_context: int) -> int:
        """Values of a history that a network of this `max_context` can make use of, its held-out end included."""
        return max_context * (max(self.coarser, default=1) + self.origins)


FAST = InferenceConfig(flip=False, coarser=(), recent=(), recent_short=(), phases=())
MIN_HORIZONS = 2
"""A history with fewer left before its held-out end is read once."""
MIN_PATCHES = 2
"""For a horizon shorter than this coarser readings are no better, by experience with synthetic series."""
PAST_PATCHES = 16
"""Forecasts of so many patches, made on the way, judge the readings for such a horizon."""
MIN_BLOCKS = 64
PHASES_FROM = 240
"""For a shorter horizon, or a history that the network reads whole, phases gain little on synthetic series."""


class Reading(NamedTuple):
    """One way to read a history: its last `length` values or all, in means of `factor` values or by `period` phases."""

    factor: int = 1
    length: int | None = None
    period: int = 1


class Predictor:
    """A `Forecaster` with an `InferenceConfig`; same `forecast`, better numbers."""

    def __init__(self, forecaster: Forecaster, config: InferenceConfig | None = None) -> None:
        self.forecaster, self.config = forecaster, config or InferenceConfig()

    def forecast(self, context: Context, horizon: int, quantile_levels: Sequence[float] | None = None) -> Forecast:
        """See `Forecaster.forecast`."""
        known = self.forecaster.config.levels
        levels = known if quantile_levels is None else tuple(quantile_levels)
        check_levels(levels)
        reach = self.config.reach(self.forecaster.config.max_context)
        network = self.forecaster.config
        series = [last_values(values, reach, network.patch_length) for values in as_series(context)]
        quantiles = self._plain(series, horizon).clone()
        for readings, rows in self._readable(series, horizon).items():
            quantiles[rows] = self._mixed([series[row] for row in rows], quantiles[rows], readings, horizon)
        if self.config.spread != 1:
            median = quantiles[..., len(known) // 2, None]
            quantiles = median + self.config.spread * (quantiles - median)
        if self.config.nonnegative and series:
            quantiles = torch.where(_never_negative(series), quantiles.clamp(min=0), quantiles)
        return Forecast(resample_levels(quantiles, known, levels), mean_of_quantiles(quantiles, known), levels)

    def _plain(self, series: list[Tensor], horizon: int) -> Tensor:
        quantiles = self.forecaster.forecast(series, horizon).quantiles
        if self.config.flip:
            mirrored = self.forecaster.forecast([-values for values in series], horizon).quantiles
            quantiles = (quantiles - mirrored.flip(-1)) / 2
        return quantiles

    def _readable(self, series: list[Tensor], horizon: int) -> dict[tuple[Reading, ...], list[int]]:
        """Rows by the further readings for which enough of their history is left once its end is held out."""
        groups: dict[tuple[Reading, ...], list[int]] = {}
        for row, values in enumerate(series):
            usable = self._recent(values) if self._is_short(horizon) else self._usable(values, horizon)
            if usable:
                groups.setdefault(tuple(usable), []).append(row)
        return groups

    def _is_short(self, horizon: int) -> bool:
        return horizon < MIN_PATCHES * self.forecaster.config.patch_length

    def _recent(self, values: Tensor) -> list[Reading]:
        lengths = self.config.recent_short if self.forecaster.config.scaler == "causal" else ()
        return [Reading(length=length) for length in lengths if length < len(values)]

    def _usable(self, values: Tensor, horizon: int) -> list[Reading]:
        longest, left = self.forecaster.config.max_context, len(values) - self.config.origins * horizon
        if left < MIN_HORIZONS * horizon:
            return []
        usable = [Reading(one) for one in self.config.coarser if one <= horizon and left >= MIN_BLOCKS * one]
        usable += [Reading(length=length) for length in self.config.recent if length < min(longest, left)]
        if horizon >= PHASES_FROM and left > longest:
            periods = [period for period in self.config.phases if left >= MIN_BLOCKS * period]
            usable += [Reading(length=2 * longest, period=period) for period in periods]
        return usable

    def _mixed(self, series: list[Tensor], plain: Tensor, readings: tuple[Reading, ...], horizon: int) -> Tensor:
        ahead = torch.stack([plain, *(self._read(series, reading, horizon) for reading in readings)])
        if self._is_short(horizon):
            past = self._errors_on_the_way(series, readings)
        else:
            origins = range(horizon, (self.config.origins + 1) * horizon, horizon)
            past = torch.stack([self._past_errors(series, readings, horizon, back) for back in origins]).sum(0)
        # A phase, or all blocks, may never have been observed.
        unable = ahead.isnan().flatten(2).any(-1)
        weights = _weights(past, unable, self.config.temperature)
        return (weights[..., None, None].to(ahead.dtype) * ahead.nan_to_num()).sum(0)

    def _errors_on_the_way(self, series: list[Tensor], readings: tuple[Reading, ...]) -> Tensor:
        """Error of every reading, plain first, in forecasting the last patches one by one."""
        cut = [[values[-(reading.length or 0) :] for values in series] for reading in (Reading(), *readings)]
        past = [self.forecaster.forecasts_on_the_way(values, PAST_PATCHES) for values in cut]
        return torch.stack([pinball(quantiles, truth, self.forecaster.config.levels) for quantiles, truth in past])

    def _past_errors(self, series: list[Tensor], readings: tuple[Reading, ...], horizon: int, back: int) -> Tensor:
        """Error of every reading, plain first, in forecasting from `back` steps before the end."""
        # To rank the readings one pass of each is enough.
        scout = Predictor(self.forecaster, replace(self.config, flip=False))
        history = [values[:-back] for values in series]
        truth = torch.stack([values[-back:][:horizon].double() for values in series])
        forecasts = [scout._read(history, reading, horizon) for reading in (Reading(), *readings)]
        return torch.stack([pinball(q.double(), truth, self.forecaster.config.levels) for q in forecasts])

    def _read(self, series: list[Tensor], reading: Reading, horizon: int) -> Tensor:
        if reading.length is not None:
            series = [values[-reading.length :] for values in series]
        if reading.period > 1:
            phases = [phase for values in series for phase in split_phases(values, reading.period)]
            return join_phases(self._plain(phases, -(-horizon // reading.period)), reading.period, horizon)
        if reading.factor == 1:
            return self._plain(series, horizon)
        blocks = [coarsen(values, reading.factor) for values in series]
        last = torch.stack([values[-1] for values in blocks])
        quantiles = self._plain(blocks, blocks_ahead(horizon, reading.factor))
        start = torch.where(last.isnan(), quantiles[:, 0, quantiles.shape[-1] // 2], last)
        return refine(quantiles, start, reading.factor, horizon)


def _weights(past: Tensor, unable: Tensor, temperature: float) -> Tensor:
    """Weight of each reading of each series, plain first, by its error relative to the plain reading's.

    It rises from zero where a reading is no better, so that rounding cannot let one in. NaN where all are `unable`.
    """
    gain = 1 - past.masked_fill(unable, torch.inf) / past[:1]
    weights = torch.expm1(gain.nan_to_num().clamp(min=0) / temperature)
    weights[0] = 1.0
    weights = weights.masked_fill(unable, 0.0)
    return weights / weights.sum(0)


def _never_negative(series: list[Tensor]) -> Tensor:
    flags = [bool((values[~values.isnan()] >= 0).all()) for values in series]
    return torch.tensor(flags)[:, None, None]
