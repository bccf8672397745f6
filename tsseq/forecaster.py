"""The zero-shot forecaster: scale, patch, backbone, quantile head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tsseq import memory
from tsseq.array_typing import Bool, Float, Int, Tensor
from tsseq.backbone import Backbone, BackboneConfig
from tsseq.patching import NEVER, age, to_patches
from tsseq.quantiles import check_levels, mean_of_quantiles, resample_levels
from tsseq.scaler import Scale, causal_scale, fit_scale

if TYPE_CHECKING:
    from tsseq.streaming import Stream

DECILES = tuple(k / 10 for k in range(1, 10))
MAX_OUTPUT = 16.0
MAX_BATCH = 512
AGE_FEATURES = 8
OLDEST = 96
"""Patches. Longer gaps are hardly met in training, and ages beyond 128, the other half of the longest wave, not at all:
there forecasts would go anywhere. From about 100 on they were seen to widen."""

Context = Tensor | np.ndarray | Sequence[Any]
Scaler = Literal["context", "causal"]


@dataclass(frozen=True)
class Forecast:
    """A predictive distribution over the future of a batch of series, in the series' own units.

    quantiles   batch × horizon × quantile, rising along the last axis
    mean        batch × horizon
    levels      the level of each quantile, in (0, 1)
    """

    quantiles: Float[Tensor, "batch horizon quantile"]
    mean: Float[Tensor, "batch horizon"]
    levels: tuple[float, ...]


@dataclass(frozen=True)
class ForecasterConfig:
    """`patch_length` values make one position of the backbone; `levels` are the quantiles that it learns.

    `max_context` is the longest history read; older values are left out. `scaler` says what a patch is scaled by: all
    that is known of its series ("context"), or what was known by then ("causal"), which is never taken back as more
    arrives.
    """

    patch_length: int = 32
    levels: tuple[float, ...] = DECILES
    hidden_width: int = 512
    max_context: int = 4096
    scaler: Scaler = "context"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    def __post_init__(self) -> None:
        if self.patch_length < 1 or self.hidden_width < 1 or self.max_context < self.patch_length:
            raise ValueError(
                "expected positive patch_length and hidden_width and a max_context of at least one patch, "
                f"got {self.patch_length}, {self.hidden_width} and {self.max_context}"
            )
        if self.scaler not in get_args(Scaler):
            raise ValueError(f"expected scaler to be one of {', '.join(get_args(Scaler))}, got {self.scaler!r}")
        check_levels(self.levels)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ForecasterConfig:
        values = dict(values)
        backbone = dict(values.pop("backbone", {}))
        backbone["mixers"] = tuple(backbone.get("mixers", BackboneConfig.mixers))
        values["levels"] = tuple(values.get("levels", DECILES))
        try:
            return cls(backbone=BackboneConfig(**backbone), **values)
        except TypeError as error:
            raise ValueError(f"not a forecaster configuration: {error}") from error


class ResidualMLP(nn.Module):
    """A linear map plus a two-layer perceptron beside it; no biases, so that zero stays zero."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden, bias=False)
        self.output = nn.Linear(hidden, outputs, bias=False)
        self.skip = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        y: Tensor = self.output(F.silu(self.hidden(x))) + self.skip(x)
        return y


class Forecaster(nn.Module):
    """Maps a history with holes to quantiles of what follows, any horizon in one pass.

    A position is a patch of scaled values with their mask. The output at a position describes the next
    patch, so every prefix of a training series is an example; the future is a run of missing patches, each of
    which tells the network only how long ago something was last seen. Positions before the first
    observation are exactly zero and leave the backbone's state at rest, so a series padded with missing
    values in front gets the forecast of the bare series.
    """

    def __init__(self, config: ForecasterConfig | None = None) -> None:
        super().__init__()
        self.config = config or ForecasterConfig()
        patch, width = self.config.patch_length, self.config.backbone.width
        self.embed = ResidualMLP(2 * patch + 2 * AGE_FEATURES, self.config.hidden_width, width)
        self.backbone = Backbone(self.config.backbone)
        self.head = ResidualMLP(width, self.config.hidden_width, patch * len(self.config.levels))

    def forward(
        self,
        patches: Float[Tensor, "batch patch patch_length"],
        observed: Bool[Tensor, "batch patch patch_length"],
    ) -> Float[Tensor, "batch patch patch_length quantile"]:
        """Scaled values and their mask in; at each position, unsorted quantiles of the next patch out."""
        hidden, _ = self.backbone(self.embed_patches(patches, observed))
        return self.read_out(hidden)

    def embed_patches(
        self,
        patches: Float[Tensor, "batch patch patch_length"],
        observed: Bool[Tensor, "batch patch patch_length"],
        age_before: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch patch width"]:
        """The network's input; `age_before` is how many patches before the first something was seen, if it was."""
        if age_before is None:
            age_before = torch.full(observed.shape[:1], NEVER, device=observed.device)
        ages = age(observed.any(-1), age_before)
        features = [torch.where(observed, patches, 0.0), observed.to(patches.dtype), self._age_features(ages)]
        # Values enter and leave in float32: half precision would round them to one part in 256.
        with torch.autocast(patches.device.type, enabled=False):
            tokens: Tensor = self.embed(torch.cat(features, dim=-1) * (ages != NEVER)[..., None])
        return tokens

    def read_out(
        self, hidden: Float[Tensor, "batch patch width"]
    ) -> Float[Tensor, "batch patch patch_length quantile"]:
        with torch.autocast(hidden.device.type, enabled=False):
            # As rows: how torch multiplies one of them in a batch depends on whether the weights take gradients.
            output: Tensor = self.head(hidden.to(self.head.skip.weight.dtype).flatten(0, 1))
            output = MAX_OUTPUT * torch.tanh(output / MAX_OUTPUT)
        return output.reshape(*hidden.shape[:2], self.config.patch_length, len(self.config.levels))

    def _age_features(self, age: Tensor) -> Tensor:
        """Sines and cosines of the age in patches, at wave lengths from 2 patches up, and zero at age zero.

        What is older than OLDEST looks as old as that.
        """
        waves = 2.0 ** torch.arange(1, AGE_FEATURES + 1, device=age.device)
        angle = 2 * torch.pi * age.clamp(max=OLDEST)[..., None] / waves
        return torch.cat([angle.sin(), angle.cos()], dim=-1) * (age > 0)[..., None]

    @torch.inference_mode()
    def forecast(self, context: Context, horizon: int, quantile_levels: Sequence[float] | None = None) -> Forecast:
        """Forecast `horizon` values of each series.

        `context` is batch × time (or one series of shape time), or a list of series of any lengths, oldest
        value first, NaN or None where missing. The result does not depend on the rest of the batch. Levels other than
        the learned ones are interpolated, and extrapolated in the tails, along a normal distribution's
        quantile function. A series without a single observed value is forecast as missing (NaN); a gap at the end
        of `max_context` values or more counts as one of half as many. The result is in float32 if all histories are,
        and in float64 otherwise; the network itself runs in float32.

        Raises ValueError for a horizon below 1, an empty or infinite history, a level outside (0, 1), or more steps
        than memory holds.
        """
        check_horizon(horizon)
        levels = self.config.levels if quantile_levels is None else tuple(quantile_levels)
        check_levels(levels)
        series = [last_values(row, self.config.max_context, self.config.patch_length) for row in as_series(context)]
        device = next(self.parameters()).device
        memory.require(self._bytes(series, horizon, device), f"forecasts of {len(series)} series {horizon} steps ahead")
        dtype = torch.float32 if all(row.dtype == torch.float32 for row in series) else torch.float64
        quantiles = torch.empty(len(series), horizon, len(self.config.levels), dtype=dtype)
        for rows, values in self._equal_lengths(series):
            quantiles[rows] = self._forecast_batch(values.to(device), horizon).to("cpu", dtype)
        return self.at_levels(quantiles, levels)

    def at_levels(self, quantiles: Float[Tensor, "batch horizon quantile"], levels: tuple[float, ...]) -> Forecast:
        """The forecast at other levels than the learned ones of `quantiles`."""
        wanted = resample_levels(quantiles, self.config.levels, levels)
        return Forecast(wanted, mean_of_quantiles(quantiles, self.config.levels), levels)

    def _equal_lengths(self, series: list[Tensor], batch_size: int = MAX_BATCH) -> list[tuple[list[int], Tensor]]:
        """Batches of as many patches each: exact for every mixer, where padding would be only for some."""
        patch = self.config.patch_length
        groups: dict[int, list[int]] = {}
        for row, values in enumerate(series):
            groups.setdefault(-(-len(values) // patch), []).append(row)
        batches = []
        for patches, members in sorted(groups.items()):
            for start in range(0, len(members), batch_size):
                rows = members[start : start + batch_size]
                length = patches * patch
                padded = torch.full((len(rows), length), torch.nan, dtype=torch.float64)
                for i, row in enumerate(rows):
                    values = series[row]
                    padded[i, length - len(values) :] = values
                batches.append((rows, padded))
        return batches

    def _bytes(self, series: list[Tensor], horizon: int, device: torch.device) -> int:
        """Main memory that the results take and, on a CPU, the largest batch: its states and, by what the default
        network was seen to take, its positions."""
        patch, levels = self.config.patch_length, len(self.config.levels)
        results = len(series) * horizon * levels * 8
        if device.type != "cpu":
            return results
        positions = -(-max(map(len, series), default=0) // patch) - (-horizon // patch)
        states = sum(leaf.nbytes for state in self.backbone.init_state(1) for leaf in state)
        row = states + positions * 64 * (self.config.backbone.width + patch * levels)
        return results + min(len(series), MAX_BATCH) * row

    @torch.inference_mode()
    def forecasts_on_the_way(
        self, context: Context, patches: int
    ) -> tuple[Float[Tensor, "batch time quantile"], Float[Tensor, "batch time"]]:
        """What one pass forecasts of each of the last `patches` patches from all before it, and what they were.

        NaN where a history is shorter or values are missing. Raises ValueError for a scaler other than "causal", which
        at a patch knows more than a forecast from there would, and as `forecast` does.
        """
        if self.config.scaler != "causal":
            raise ValueError(f"expected a forecaster whose scaler is 'causal', got {self.config.scaler!r}")
        series = [row[-self.config.max_context :] for row in as_series(context)]
        length, device = patches * self.config.patch_length, next(self.parameters()).device
        quantiles = torch.full((len(series), length, len(self.config.levels)), torch.nan, dtype=torch.float64)
        truth = quantiles[..., 0].clone()
        for rows, values in self._equal_lengths(series):
            hidden, scale = self._read(values.to(device))
            known = min(length, values.shape[1] - self.config.patch_length)
            if known > 0:
                past = slice(-known // self.config.patch_length - 1, -1)
                output = self.read_out(hidden[:, past]).double().sort(-1).values
                ahead = Scale(scale.loc[:, past], scale.scale[:, past]).invert(output)
                quantiles[rows, -known:], truth[rows, -known:] = ahead.flatten(1, 2).cpu(), values[:, -known:]
        return quantiles, truth

    def _forecast_batch(self, values: Tensor, horizon: int) -> Tensor:
        future = -(-horizon // self.config.patch_length)
        hidden, scale = self._read(values, future - 1)
        quantiles = self.quantiles(hidden[:, -future:], scale.last(), horizon)
        return torch.where(values.isnan().all(1)[:, None, None], torch.nan, quantiles)

    def _read(self, values: Tensor, unknown: int = 0) -> tuple[Tensor, Scale]:
        """What the backbone makes of each patch and of `unknown` ones after them, and what they are scaled by."""
        patch, observed = self.config.patch_length, ~values.isnan()
        causal = self.config.scaler == "causal"
        scale = causal_scale(values, observed, patch) if causal else fit_scale(values, observed)
        patches = scale.apply(to_patches(values, patch)).to(self.embed.skip.weight.dtype)
        patches = F.pad(patches, (0, 0, 0, unknown), value=torch.nan)
        hidden, _ = self.backbone(self.embed_patches(patches, ~patches.isnan()))
        return hidden, scale

    def quantiles(
        self, hidden: Float[Tensor, "batch patch width"], scale: Scale, horizon: int
    ) -> Float[Tensor, "batch horizon quantile"]:
        """What the backbone says of the next `horizon` values, in the series' units and in order."""
        output = self.read_out(hidden).flatten(1, 2)[:, :horizon]
        return scale.invert(output.double().sort(-1).values)

    def stream(self, history: Context, every: int = 1) -> Stream:
        """Read `history`, given as to `forecast`, once: `update` the result as values arrive, and `forecast` from it.

        With `every` above 1 (a divisor of the patch length) forecasts are to be had after each multiple of so many
        values, and the memory is so much smaller: 19 MB a series for `base` with 1, 0.6 MB with 32.

        Raises ValueError where a history is empty or infinite, or for a forecaster whose scaler is not "causal" or
        whose backbone is woven.
        """
        from tsseq.streaming import begin

        return begin(self, history, every)

    def resume(self, path: str | Path) -> Stream:
        """The stream that its `save` wrote to `path`; see `tsseq.streaming.Stream.load`."""
        from tsseq.streaming import Stream

        return Stream.load(self, path)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Forecaster:
        """Load a bundled checkpoint by name, or a file or folder by path; see `tsseq.load`."""
        from tsseq.checkpoint import load

        return load(name_or_path)

    def save_pretrained(self, path: str | Path) -> Path:
        """Write one .safetensors file with the configuration in its header; a folder gets model.safetensors."""
        from tsseq.checkpoint import save

        return save(self, path)


def check_horizon(horizon: Any) -> None:
    """ValueError unless `horizon` is a whole number of steps, one or more."""
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
        raise ValueError(f"horizon must be a whole number of at least 1, got {horizon!r}")


def as_series(context: Context) -> list[Tensor]:
    """One vector per series, float32 as given and float64 otherwise, without leading missing values."""
    if isinstance(context, Tensor | np.ndarray):
        values = as_tensor(context)
        if values.ndim not in (1, 2):
            raise ValueError(f"expected a context of shape (time,) or (batch, time), got {tuple(values.shape)}")
        rows = list(values[None] if values.ndim == 1 else values)
    else:
        rows = [as_tensor(row) for row in context]
    return [_checked(row, i) for i, row in enumerate(rows)]


def as_tensor(values: Any) -> Tensor:
    """`values` themselves, or numbers of any kind as a tensor, NaN for None; ValueError for what is no number."""
    if isinstance(values, Tensor):
        return values
    array = _numbers(values)  # in any byte order and direction, and perhaps not to be written to
    return torch.tensor(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _numbers(values: Any) -> np.ndarray:
    """`values` as an array, with NaN for None; what is no number is not made one, even where Python would read it."""
    array = np.asarray(values)
    if array.dtype == object and all(value is None or isinstance(value, Real) for value in array.flat):
        array = array.astype(np.float64)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"expected numbers, and NaN or None for missing, got {array.dtype} values")
    return array


def last_values(row: Tensor, length: int, patch_length: int) -> Tensor:
    """The last `length` values; where all of them are missing, those before with half as long a gap after them, which
    the network cannot tell from a longer one (see OLDEST), cut into the same patches."""
    if not row[-length:].isnan().all():
        return row[-length:]
    seen = (~row.isnan()).nonzero()
    if not len(seen):
        return row[-1:]
    last = int(seen[-1]) + 1
    gap = length // 2 + (len(row) - last - length // 2) % patch_length
    return row[: last + gap][-length:]


def _checked(row: Tensor, position: int) -> Tensor:
    if row.ndim != 1 or len(row) == 0:
        raise ValueError(f"series {position}: expected a non-empty vector, got shape {tuple(row.shape)}")
    if row.is_complex():
        raise ValueError(f"series {position}: expected real numbers, got {row.dtype}")
    row = row.detach().cpu()
    row = row if row.dtype == torch.float32 else row.double()
    if row.isinf().any():
        raise ValueError(f"series {position}: expected finite numbers or NaN for missing, got an infinite value")
    seen = (~row.isnan()).nonzero()
    return row[int(seen[0]) :] if len(seen) else row[-1:]
