"""The classifier of whole series: convolutional patches, a backbone run both ways, pooling, logits."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Bool, Float, Int, Tensor
from tsseq.backbone import Backbone, BackboneConfig


@dataclass(frozen=True)
class ClassifierConfig:
    """`stride` time steps make one position of the backbone, which a convolution over `kernel` (odd) steps reads.

    `bidirectional` runs the same backbone over the reversed series too. `dropout` acts on the pooled features and
    `block_dropout` on what each residual block adds. `rescaled` channels are read once more, each series in units of
    its own: beside much larger series the shape of a small one is lost.
    """

    channels: int
    classes: int
    stride: int = 1
    kernel: int = 5
    bidirectional: bool = True
    dropout: float = 0.1
    block_dropout: float = 0.1
    rescaled: tuple[int, ...] = ()
    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    def __post_init__(self) -> None:
        if min(self.channels, self.classes, self.stride) < 1:
            raise ValueError(
                f"expected channels, classes and stride of at least 1, got {self.channels}, {self.classes} "
                f"and {self.stride}"
            )
        if self.backbone.weave:
            raise ValueError("expected a backbone that does not weave: the reversed series shows what is to come")
        if not set(self.rescaled) <= set(range(self.channels)):
            raise ValueError(f"expected rescaled channels among {self.channels}, counted from 0, got {self.rescaled}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"expected an odd kernel, got {self.kernel}")
        if not (0 <= self.dropout < 1 and 0 <= self.block_dropout < 1):
            raise ValueError(f"expected dropouts in [0, 1), got {self.dropout} and {self.block_dropout}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        backbone = dict(values["backbone"])
        backbone["mixers"] = tuple(backbone["mixers"])
        rescaled = tuple(values.get("rescaled", ()))  # absent from what earlier versions pickled
        return cls(**{**values, "rescaled": rescaled, "backbone": BackboneConfig(**backbone)})


class Classifier(nn.Module):
    """Maps multivariate series, of unequal lengths and with missing values, to class logits.

    `loc` and `scale` of each channel are those of the training set and part of the weights; missing values become
    the mean, and an indicator per channel. A series ends with its last observed step: NaN after it is padding,
    which changes nothing, since both directions read the steps of a series first and pooling leaves out what follows
    (and positions without any observation). Features are the mean and the maximum over positions, of each direction.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.width
        self.register_buffer("loc", torch.zeros(config.channels))
        self.register_buffer("scale", torch.ones(config.channels))
        read = 2 * config.channels + len(config.rescaled)
        self.embed = nn.Conv1d(read, width, config.kernel, stride=config.stride, padding=config.kernel // 2)
        self.backbone = Backbone(config.backbone)
        self.head = nn.Linear(width * (4 if config.bidirectional else 2), config.classes)

    def forward(self, values: Float[Tensor, "batch time channel"]) -> Float[Tensor, "batch classes"]:
        """Logits of series in their own units, NaN where missing."""
        observed = ~values.isnan()
        steps = _length(observed.any(-1))
        tokens = self._embed(values, observed, steps)
        # At least one position: a series without any observation has features too.
        positions = (-(-steps // self.config.stride)).clamp(1, tokens.shape[1])
        seen = _any_in_stride(observed.any(-1), self.config.stride)
        if self.config.bidirectional:
            tokens = torch.cat([tokens, reverse(tokens, positions)])
            backwards = reverse(seen[..., None], positions)[..., 0]
            seen = torch.cat([seen, backwards])
        features = _pool(self._mix(tokens), seen)
        if self.config.bidirectional:
            features = torch.cat(features.chunk(2), dim=-1)
        logits: Tensor = self.head(F.dropout(features, self.config.dropout, self.training))
        return logits

    def _embed(self, values: Tensor, observed: Tensor, steps: Tensor) -> Tensor:
        scaled = torch.where(observed, (values - self.loc) / self.scale, 0.0)
        inside = torch.arange(values.shape[1], device=values.device) < steps[:, None]
        missing = (~observed & inside[..., None]).to(scaled.dtype)
        rescaled = rescale(values[..., list(self.config.rescaled)])
        tokens: Tensor = self.embed(torch.cat([scaled, missing, rescaled], dim=-1).mT)
        return tokens.mT

    def _mix(self, x: Tensor) -> Tensor:
        """The backbone with dropout on what each block adds."""
        state = self.backbone.init_state(len(x))
        for block, initial in zip(self.backbone.layers, state, strict=True):
            y, _ = block(x, initial)
            x = x + F.dropout(y - x, self.config.block_dropout, self.training)
        normal: Tensor = self.backbone.norm(x)
        return normal


def reverse(x: Float[Tensor, "batch time width"], lengths: Int[Tensor, "batch"]) -> Float[Tensor, "batch time width"]:
    """Each series from its end to its beginning; what follows the end stays behind it."""
    time = torch.arange(x.shape[1], device=x.device)
    source = torch.where(time < lengths[:, None], lengths[:, None] - 1 - time, time)
    return x.gather(1, source[..., None].expand_as(x))


def rescale(values: Float[Tensor, "batch time channel"]) -> Float[Tensor, "batch time channel"]:
    """Each series and channel with mean 0 and variance 1; 0 where missing and where all are the same."""
    mean = values.nanmean(1, keepdim=True)
    deviation = torch.where(values.isnan(), 0.0, values - mean)
    largest = deviation.abs().amax(1, keepdim=True)  # first of all, as squares may overflow or vanish
    varies = largest > 1e-6 * mean.abs()  # by more than float32 rounds
    deviation = torch.where(varies, deviation / largest, 0.0)
    variance = deviation.square().sum(1, keepdim=True) / (~values.isnan()).sum(1, keepdim=True)
    return torch.where(varies, deviation * variance.rsqrt(), 0.0)


def _length(observed: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch"]:
    """Steps up to the last observed one."""
    time = torch.arange(1, observed.shape[1] + 1, device=observed.device)
    last: Tensor = torch.where(observed, time, 0).amax(1)
    return last


def _any_in_stride(observed: Bool[Tensor, "batch time"], stride: int) -> Bool[Tensor, "batch position"]:
    padded = F.pad(observed, (0, -observed.shape[1] % stride))
    found: Tensor = padded.unflatten(1, (-1, stride)).any(-1)
    return found


def _pool(x: Float[Tensor, "batch position width"], seen: Bool[Tensor, "batch position"]) -> Tensor:
    """Mean and maximum over the positions seen; where there is none, the first one."""
    first = torch.arange(seen.shape[1], device=seen.device) == 0
    seen = (seen | (first & ~seen.any(1, keepdim=True)))[..., None]
    mean = torch.where(seen, x, 0.0).sum(1) / seen.sum(1)
    return torch.cat([mean, x.masked_fill(~seen, -torch.inf).amax(1)], dim=-1)
