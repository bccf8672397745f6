"""A few classifiers of one kind whose probabilities are averaged, and the recipe that trains them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from tsseq.backbone import BackboneConfig
from tsseq.classifier import Classifier, ClassifierConfig
from tsseq.classifier_training import (
    Cases,
    ClassifierTrainingConfig,
    Labels,
    Values,
    fit,
    log_probabilities,
    outshone_channels,
)


@dataclass(frozen=True)
class Recipe:
    """`members` networks of `layers` blocks of the `mixers`, which read at most about `positions` positions of a
    training series each, trained with `training` and a seed of their own. Where `positions` is None these are 50, and
    of more than 400 steps patches of 8, or longer ones that make 400.

    The defaults are what cross-validation on the training splits of six UEA sets preferred: slow modes for the LRU, and
    series warped in time. Those are short sets; that long series gain from more positions was seen on ACSF1 and PLAID.
    """

    mixers: tuple[str, ...] = ("lru",)
    width: int = 64
    layers: int = 2
    positions: int | None = None
    members: int = 3
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"lru": {"r_min": 0.5, "max_phase": 1.0}})
    training: ClassifierTrainingConfig = field(default_factory=ClassifierTrainingConfig)

    def __post_init__(self) -> None:
        if self.members < 1 or (self.positions is not None and self.positions < 1):
            raise ValueError(f"expected members and positions of at least 1, got {self.members} and {self.positions}")

    @staticmethod
    def options_for(mixers: tuple[str, ...], options: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
        """The same `options` for each of the mixers, or where there are none, the defaults of a recipe."""
        return {**Recipe().options} if options is None else {name: options for name in mixers}

    def stride(self, length: int) -> int:
        """Steps to a position, for series of up to `length` steps."""
        if self.positions is not None:
            return -(-length // self.positions)
        return max(min(-(-length // 50), 8), -(-length // 400))

    def network(self, length: int, channels: int, classes: int, rescaled: tuple[int, ...] = ()) -> ClassifierConfig:
        """The network for series of up to `length` steps."""
        stride = self.stride(length)
        backbone = BackboneConfig(
            mixers=self.mixers,
            width=self.width,
            layers=self.layers,
            mlp_width=2 * self.width,
            options=self.options,
        )
        kernel = max(5, 2 * stride + 1)
        return ClassifierConfig(channels, classes, stride=stride, kernel=kernel, rescaled=rescaled, backbone=backbone)


@dataclass(frozen=True)
class Units:
    """What a channel's values are counted from and in, before they are rounded to float32.

    That is 0 and 1, but for channels of which float32 would lose more than a tenth of a percent: on a level far above
    their changes, as of time stamps, or out of its range.
    """

    origin: NDArray[np.float64]
    unit: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[np.floating[Any]]) -> Units:
        """For a training set, case × time × channel."""
        channels = [column[~np.isnan(column)] for column in values.reshape(-1, values.shape[-1]).T.astype(np.float64)]
        middle = np.array([column.mean() if len(column) else 0.0 for column in channels])
        spread = np.array([np.abs(c - m).max(initial=0.0) for c, m in zip(channels, middle, strict=True)])
        lost = (spread > 0) & ((np.abs(middle) > 1e4 * spread) | (spread < 1e-15) | (spread > 1e15))
        return cls(np.where(lost, middle, 0.0), np.where(lost, spread, 1.0))

    def count(self, values: NDArray[np.floating[Any]]) -> Values:
        """The values in these units."""
        return np.asarray((values - self.origin) / self.unit, np.float32)


class Ensemble:
    """Trained classifiers, never changed again: copies share them, a pickle holds configurations and bare weights."""

    def __init__(self, members: tuple[Classifier, ...], units: Units) -> None:
        self.members, self.units = members, units

    @property
    def channels(self) -> int:
        return self.members[0].config.channels

    def probabilities(
        self, values: NDArray[np.floating[Any]], device: str | torch.device = "cpu"
    ) -> NDArray[np.float64]:
        """The mean over members, case × class, of series (case × time × channel, NaN where missing)."""
        rows = torch.from_numpy(self.units.count(values))
        each = [log_probabilities(member.to(device), rows).double().exp() for member in self.members]
        mean = torch.stack(each).mean(0).numpy()
        return np.asarray(mean / mean.sum(1, keepdims=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> Ensemble:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bytes, ([(member.config.to_dict(), _to_bytes(member)) for member in self.members], self.units)


def train(
    values: NDArray[np.floating[Any]],
    labels: Labels,
    classes: int,
    recipe: Recipe,
    *,
    held_out: Cases | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Ensemble:
    """Train the networks of a recipe on series (case × time × channel, NaN where missing) and classes from 0 on.

    `held_out` cases, if given, decide for every member when to stop; otherwise a share of the training set does, if
    the recipe has one.
    """
    units = Units.of(values)
    values = units.count(values)
    held_out = None if held_out is None else (units.count(held_out[0]), held_out[1])
    config = recipe.network(values.shape[1], values.shape[2], classes, outshone_channels(values))
    members = []
    for number in np.random.default_rng(seed).integers(2**31, size=recipe.members):
        training = dataclasses.replace(recipe.training, seed=int(number))
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(number)  # initial weights and dropout
            members.append(fit(Classifier(config), values, labels, training, held_out=held_out, device=device))
    return Ensemble(tuple(members), units)


def _to_bytes(member: Classifier) -> bytes:
    weights = {name: weight.detach().cpu().contiguous() for name, weight in member.state_dict().items()}
    return bytes(safetensors.torch.save(weights))


def _from_bytes(saved: list[tuple[dict[str, Any], bytes]], units: Units) -> Ensemble:
    members = []
    for config, weights in saved:
        member = Classifier(ClassifierConfig.from_dict(config))
        member.load_state_dict(safetensors.torch.load(weights))
        members.append(member.eval())
    return Ensemble(tuple(members), units)
