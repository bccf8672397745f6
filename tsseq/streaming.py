"""Series that go on: a forecaster's memory of them, which grows no larger and takes each new value once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from tsseq import memory
from tsseq.array_typing import Float, State
from tsseq.checkpoint import write
from tsseq.forecaster import Context, Forecast, Forecaster, as_series, as_tensor, check_horizon
from tsseq.patching import NEVER, age
from tsseq.quantiles import check_levels
from tsseq.scaler import RunningSums, continued_scale

FORMAT = "tsseq-stream-1"
POSITIONS = 2**17
"""Patches of all series read at once; a longer history is read in pieces."""


@dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """What is known of a batch of series after some patches: the sums behind their scale, the age of the last
    observation, the backbone's last output and its states."""

    seen: RunningSums
    age: Tensor
    hidden: Float[Tensor, "batch width"]
    states: tuple[State, ...]

    @classmethod
    def empty(cls, forecaster: Forecaster, batch_size: int) -> Reading:
        like = next(forecaster.parameters())
        return cls(
            RunningSums.empty(batch_size, like.new_zeros((), dtype=torch.float64)),
            torch.full((batch_size,), NEVER, device=like.device),
            like.new_zeros(batch_size, forecaster.config.backbone.width),
            forecaster.backbone.init_state(batch_size),
        )

    def after(self, forecaster: Forecaster, values: Float[Tensor, "batch time"]) -> Reading:
        """After whole patches of `values`."""
        observed, patch = ~values.isnan(), forecaster.config.patch_length
        scale, seen = continued_scale(values, observed, patch, self.seen)
        patches = scale.apply(values.unflatten(1, (-1, patch))).to(self.hidden.dtype)
        tokens = forecaster.embed_patches(patches, ~patches.isnan(), self.age)
        hidden, states = forecaster.backbone(tokens, self.states)
        ages = age(observed.unflatten(1, (-1, patch)).any(-1), self.age)
        return Reading(seen, ages[:, -1], hidden[:, -1], states)

    def leaves(self) -> list[Tensor]:
        return [*self.seen, self.age, self.hidden, *(x for state in self.states for x in state)]

    def with_leaves(self, leaves: Iterable[Tensor]) -> Reading:
        rest = iter(leaves)
        seen, ages, hidden = RunningSums(next(rest), next(rest), next(rest)), next(rest), next(rest)
        return Reading(seen, ages, hidden, tuple(tuple(next(rest) for _ in state) for state in self.states))


def joined(readings: Sequence[Reading]) -> Reading:
    """Readings of several batches as one of all of them."""
    return readings[0].with_leaves(map(torch.cat, zip(*(r.leaves() for r in readings), strict=True)))


def parted(reading: Reading, batch_size: int) -> list[Reading]:
    """The inverse of `joined`."""
    parts = zip(*(x.split(batch_size) for x in reading.leaves()), strict=True)
    return [reading.with_leaves(leaves) for leaves in parts]


@dataclass(frozen=True, eq=False, repr=False)
class Stream:
    """A forecaster's memory of a batch of series; made by `Forecaster.stream`, and never changed.

    `update` gives the memory after further values, in time that does not depend on how many there were before, and
    `forecast` gives what `Forecaster.forecast` would of the whole history, as long as that is no longer than the
    forecaster's `max_context`. A stream forgets nothing beyond it: where a series has long left the levels that it
    once had, begin anew from its recent values. A network reads patches that end with the last
    value, so a stream keeps a reading for each way to cut its series into patches, or fewer where it is only asked for
    a forecast after `every` so many values.
    """

    forecaster: Forecaster
    every: int
    count: int
    tail: Float[Tensor, "batch tail"]
    readings: tuple[Reading, ...]

    @classmethod
    def empty(cls, forecaster: Forecaster, batch_size: int, every: int = 1) -> Stream:
        """The memory of series that have not begun. Raises ValueError as `Forecaster.stream` does."""
        config, patch = forecaster.config, forecaster.config.patch_length
        if config.scaler != "causal" or config.backbone.weave:
            raise ValueError(
                "expected a forecaster whose scaler is 'causal' and whose layers are not woven, since others read all "
                f"values anew as more arrive; got scaler {config.scaler!r} and weave {config.backbone.weave}"
            )
        if every < 1 or patch % every:
            raise ValueError(f"expected every to divide the patch length of {patch}, got {every}")
        alignments = patch // every
        size = batch_size * sum(x.nbytes for x in Reading.empty(forecaster, 1).leaves())
        memory.require(2 * alignments * size, f"{alignments} readings of each of {batch_size} series")
        device = next(forecaster.parameters()).device
        tail = torch.full((batch_size, patch - 1), torch.nan, dtype=torch.float64, device=device)
        return cls(forecaster, every, 0, tail, (Reading.empty(forecaster, batch_size),) * alignments)

    @torch.inference_mode()
    def update(self, values: Context) -> Stream:
        """The memory after `values`: batch × time, or one series of shape time; NaN where missing.

        Raises ValueError for another number of series, nothing new, or infinite values.
        """
        stream = self
        patches = max(1, POSITIONS // len(self.tail))
        for piece in self._checked(values).split(patches * self.forecaster.config.patch_length, dim=1):
            stream = stream._read(piece)
        return stream

    @torch.inference_mode()
    def forecast(self, horizon: int, quantile_levels: Sequence[float] | None = None) -> Forecast:
        """Forecast the next `horizon` values of each series, as `Forecaster.forecast` does, in float64.

        Raises ValueError for a horizon below 1, a level outside (0, 1), or where the stream is asked between the
        moments that it keeps.
        """
        check_horizon(horizon)
        if self.count == 0 or self.count % self.every:
            raise ValueError(f"expected a stream of a multiple of every = {self.every} values, got {self.count}")
        config = self.forecaster.config
        levels = config.levels if quantile_levels is None else tuple(quantile_levels)
        check_levels(levels)
        reading = self.readings[-self.count % config.patch_length // self.every]  # whose last patch is full
        future = -(-horizon // config.patch_length)
        hidden = reading.hidden[:, None]
        if future > 1:
            unknown = hidden.new_full((len(hidden), future - 1, config.patch_length), torch.nan)
            tokens = self.forecaster.embed_patches(unknown, ~unknown.isnan(), reading.age)
            hidden = torch.cat([hidden, self.forecaster.backbone(tokens, reading.states)[0]], dim=1)
        quantiles = self.forecaster.quantiles(hidden, reading.seen.scale(), horizon)
        nothing = (reading.age == NEVER)[:, None, None]
        return self.forecaster.at_levels(torch.where(nothing, torch.nan, quantiles).cpu(), levels)

    def save(self, path: str | Path) -> Path:
        """Write the memory, without the network, as a .safetensors file; `Forecaster.resume` reads it."""
        leaves = joined(self.readings).leaves()
        tensors = {"tail": self.tail, **{f"reading.{i}": x for i, x in enumerate(leaves)}}
        about = {"format": FORMAT, "every": str(self.every), "count": str(self.count)}
        about["config"] = json.dumps(self.forecaster.config.to_dict())
        return write(Path(path), {name: x.cpu().contiguous() for name, x in tensors.items()}, about)

    @classmethod
    def load(cls, forecaster: Forecaster, path: str | Path) -> Stream:
        """What `save` wrote, for a forecaster with the same weights.

        Raises ValueError if `path` is no such file, or that of a network of another shape.
        """
        try:
            with safe_open(path, "pt") as file:
                about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"cannot read {path}: {error}") from error
        if about.get("format") != FORMAT:
            raise ValueError(f"{path} is not a stream: expected format {FORMAT}, got {about.get('format', 'none')}")
        if about["config"] != json.dumps(forecaster.config.to_dict()):
            raise ValueError(f"the stream in {path} is that of another network: {about['config']}")
        tail = tensors.pop("tail")
        empty = cls.empty(forecaster, len(tail), int(about["every"]))
        leaves = [tensors[f"reading.{i}"].to(empty.tail.device) for i in range(len(tensors))]
        readings = parted(empty.readings[0].with_leaves(leaves), len(tail))
        return replace(empty, count=int(about["count"]), tail=tail.to(empty.tail.device), readings=tuple(readings))

    def _read(self, values: Tensor) -> Stream:
        patch, batch = self.forecaster.config.patch_length, len(values)
        known = torch.cat([self.tail, values], dim=1)
        # The k-th reading began with k times `every` missing values. What it has not read yet is its rest.
        rests = [(k * self.every + self.count) % patch for k in range(len(self.readings))]
        whole = [(rest + values.shape[1]) // patch for rest in rests]
        readings = list(self.readings)
        for patches in sorted(set(whole) - {0}):
            chosen = [k for k, n in enumerate(whole) if n == patches]
            at_once = max(1, POSITIONS // (batch * patches))
            for some in (chosen[i : i + at_once] for i in range(0, len(chosen), at_once)):
                new = torch.cat([known[:, patch - 1 - rests[k] :][:, : patches * patch] for k in some])
                after = joined([readings[k] for k in some]).after(self.forecaster, new)
                for k, reading in zip(some, parted(after, batch), strict=True):
                    readings[k] = reading
        tail = known[:, known.shape[1] - patch + 1 :]
        return replace(self, count=self.count + values.shape[1], tail=tail, readings=tuple(readings))

    def _checked(self, values: Context) -> Tensor:
        new = as_tensor(values)
        new = new[None] if new.ndim == 1 else new
        batch = len(self.tail)
        if new.ndim != 2 or len(new) != batch or new.shape[1] == 0 or new.is_complex():
            raise ValueError(f"expected new values of shape ({batch}, time), got {tuple(new.shape)} of {new.dtype}")
        if new.isinf().any():
            raise ValueError("expected finite numbers or NaN for missing, got an infinite value")
        return new.detach().to(self.tail.device, torch.float64)


def begin(forecaster: Forecaster, history: Context, every: int) -> Stream:
    """A stream after `history`; series of unequal lengths end together."""
    series = as_series(history)
    if not series:
        raise ValueError("expected at least one series, got none")
    longest = max(map(len, series))
    padded = [F.pad(row.double(), (longest - len(row), 0), value=torch.nan) for row in series]
    return Stream.empty(forecaster, len(series), every).update(torch.stack(padded))
