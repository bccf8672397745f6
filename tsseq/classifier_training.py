"""Trains a `Classifier` with Lightning: normalisation, augmentation, early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from tsseq.classifier import Classifier
from tsseq.device import trainer_flags
from tsseq.finetuning import quiet

Values = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ClassifierTrainingConfig:
    """AdamW with a warm-up and a cosine decay over `max_epochs`, but at least `min_steps` and at most `max_steps`.

    With `validation` > 0 this share of each class is held out, and the weights of the epoch with the lowest
    validation loss are returned; training ends after `patience` epochs without a lower one. `mixup` is the
    parameter of the Beta distribution that mixes pairs of series (Zhang et al., arXiv 1710.09412), `noise` and
    `stretch` the standard deviations of added noise and of a factor per channel, `hidden` the longest share of a
    series that is masked, `warp` the standard deviation of the logarithm of the speed at which a stretch of the series
    is passed through (Um et al., arXiv 1706.00527); 0 leaves each out.
    """

    max_epochs: int = 60
    min_steps: int = 500
    max_steps: int = 3000
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    mixup: float = 0.0
    noise: float = 0.0
    stretch: float = 0.0
    hidden: float = 0.0
    warp: float = 0.3
    validation: float = 0.0
    patience: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.max_epochs, self.max_steps, self.batch_size, self.patience) < 1:
            raise ValueError(
                "expected max_epochs, max_steps, batch_size and patience of at least 1, got "
                f"{self.max_epochs}, {self.max_steps}, {self.batch_size} and {self.patience}"
            )
        if not 0 <= self.validation < 1:
            raise ValueError(f"expected validation in [0, 1), got {self.validation}")

    def steps(self, cases: int) -> int:
        """Optimiser steps for a training set of this size."""
        return min(self.max_steps, max(self.min_steps, self.max_epochs * max(1, cases // self.batch_size)))


Cases = tuple[Values, Labels]
WARPS = 4
"""Stretches of a series that are each passed through at a speed of their own."""


def fit(
    classifier: Classifier,
    values: Values,
    labels: Labels,
    config: ClassifierTrainingConfig,
    *,
    held_out: Cases | None = None,
    device: str = "auto",
) -> Classifier:
    """Train `classifier` in place on series (case × time × channel, NaN where missing and after the end of a shorter
    one) and their classes, counted from 0; returns it on the CPU. `held_out` takes the place of the share that
    `config.validation` would set aside."""
    if held_out is None:
        train, rest = split(labels, config.validation, config.seed)
        held_out = (values[rest], labels[rest]) if len(rest) else None
        values, labels = values[train], labels[train]
    data, target = _tensors(values, labels)
    _normalise(classifier, data)
    best = _BestEpoch(*_tensors(*held_out), config.patience) if held_out is not None else None
    with quiet():
        trainer = lightning.Trainer(
            **trainer_flags(device),
            max_steps=config.steps(len(data)),
            callbacks=[best] if best else [],
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        order = RandomSampler(range(len(data)), generator=Generator().manual_seed(config.seed))
        # Whole batches are indexed at once: one case at a time would cost as much as a small network.
        batches = BatchSampler(order, min(config.batch_size, len(data)), drop_last=True)
        loader = DataLoader(TensorDataset(data, target), sampler=batches, batch_size=None, generator=Generator())
        trainer.fit(ClassifierModule(classifier, config, trainer.max_steps), loader)
    if best is not None:
        classifier.load_state_dict(best.weights)
    return classifier.cpu().eval()


def _tensors(values: Values, labels: Labels) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.asarray(values, np.float32)), torch.from_numpy(np.asarray(labels, np.int64))


class ClassifierModule(lightning.LightningModule):
    """Cross-entropy with label smoothing on augmented batches of (values, label)."""

    def __init__(self, classifier: Classifier, config: ClassifierTrainingConfig, steps: int) -> None:
        super().__init__()
        self.classifier, self.config, self.steps = classifier, config, steps
        self.generator = Generator().manual_seed(config.seed)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        values, labels = batch
        target = F.one_hot(labels, self.classifier.config.classes).float()
        values, target = self._augment(values, target)
        return F.cross_entropy(self.classifier(values), target, label_smoothing=self.config.label_smoothing)

    def _augment(self, values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        config, scale, shape = self.config, self.classifier.scale, values.shape
        if config.warp:
            values = warped(values, torch.exp(config.warp * self._draw(torch.randn, (shape[0], WARPS), values)))
        if config.noise:
            values = values + config.noise * scale * self._draw(torch.randn, shape, values)
        if config.stretch:
            factor = 1 + config.stretch * self._draw(torch.randn, (shape[0], 1, shape[2]), values)
            values = self.classifier.loc + (values - self.classifier.loc) * factor
        if config.hidden:
            start, length = self._draw(torch.rand, (2, shape[0], 1, 1), values) * shape[1]
            time = torch.arange(shape[1], device=values.device)[:, None]
            inside = (time >= start) & (time < start + config.hidden * length) & ~values.isnan()
            values = torch.where(inside, self.classifier.loc, values)
        if config.mixup:
            values, target = self._mix(values, target)
        return values, target

    def _mix(self, values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        gammas = torch.full((2, len(values)), self.config.mixup)
        first, second = torch._standard_gamma(gammas, generator=self.generator).to(values.device)
        share = (first / (first + second).clamp(min=1e-12)).nan_to_num(0.5)[:, None]
        other = torch.randperm(len(values), generator=self.generator).to(values.device)
        mixed = torch.lerp(values[other], values, share[..., None])
        # Where one of the two has ended or is missing the other one stands alone.
        mixed = torch.where(values.isnan(), values[other], torch.where(values[other].isnan(), values, mixed))
        return mixed, torch.lerp(target[other], target, share)

    def _draw(self, distribution: Any, shape: Sequence[int], like: Tensor) -> Tensor:
        drawn: Tensor = distribution(tuple(shape), generator=self.generator)
        return drawn.to(like)

    def configure_optimizers(self) -> dict[str, Any]:
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=(0.9, 0.98), fused=True)
        schedule = LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, step: int) -> float:
        up = (step + 1) / (0.1 * self.steps)
        return min(1.0, up) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))


def warped(values: Tensor, speeds: Tensor) -> Tensor:
    """Series (batch × time × channel) passed through from their first to their last observed step at `speeds`
    (batch × stretch), each for an equal part of the time; linear between steps."""
    observed = ~values.isnan().all(-1)
    clock = torch.arange(values.shape[1], device=values.device)
    last = torch.where(observed, clock, 0).amax(1, keepdim=True)
    passed = F.pad(speeds.cumsum(1) / speeds.sum(1, keepdim=True), (1, 0))
    stretches = speeds.shape[1]
    at = stretches * clock / last.clamp(min=1)
    stretch = at.long().clamp(max=stretches - 1)
    start, end = passed.gather(1, stretch), passed.gather(1, stretch + 1)
    place = torch.where(clock <= last, torch.lerp(start, end, at - stretch) * last, clock)
    before = place.long().clamp(max=values.shape[1] - 1)
    after = (before + 1).clamp(max=values.shape[1] - 1)
    low, high = (values.gather(1, steps[..., None].expand_as(values)) for steps in (before, after))
    share = (place - before)[..., None]
    return torch.where(share == 0, low, torch.lerp(low, high, share))


class _BestEpoch(Callback):
    """Keeps the weights of the epoch with the lowest validation loss, and stops when they stay the best."""

    def __init__(self, values: Tensor, labels: Tensor, patience: int) -> None:
        self.values, self.labels, self.patience = values, labels, patience
        self.best, self.stale = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: ClassifierModule) -> None:
        loss = float(F.nll_loss(log_probabilities(module.classifier, self.values), self.labels))
        module.classifier.train()
        self.stale += 1
        if loss < self.best or not self.weights:
            self.best, self.stale = loss, 0
            self.weights = copy.deepcopy(module.classifier.state_dict())
        trainer.should_stop = trainer.should_stop or self.stale >= self.patience


@torch.inference_mode()
def log_probabilities(classifier: Classifier, values: Tensor, batch_size: int = 64) -> Tensor:
    """Log-probabilities of the classes on the CPU, case × class."""
    classifier.eval()
    device = classifier.loc.device
    return torch.cat([classifier(rows.to(device)).log_softmax(-1).cpu() for rows in values.split(batch_size)])


def split(labels: Labels, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to train on and to validate on: `share` of each class, rounded, but never all of one."""
    rng = np.random.default_rng(seed)
    held_out = [
        rng.permutation(rows)[: min(round(share * len(rows)), len(rows) - 1)]
        for rows in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    chosen = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _normalise(classifier: Classifier, values: Tensor) -> None:
    """The mean and standard deviation of each channel; a channel that is constant or missing keeps its unit."""
    rows = values.flatten(0, 1).double()
    mean = rows.nanmean(0).nan_to_num()
    deviation = (rows - mean).square().nanmean(0).sqrt().nan_to_num()
    classifier.loc.copy_(mean)
    classifier.scale.copy_(torch.where(deviation > 1e-8 * mean.abs().clamp(min=1e-30), deviation, 1.0))


def outshone_channels(values: Values) -> tuple[int, ...]:
    """Channels of a training set whose series differ so much in scale that in common units half of them all but
    vanish: the median of their deviations is less than a tenth of the channel's."""
    return tuple(c for c in range(values.shape[2]) if _is_outshone(values[..., c].astype(np.float64)))


def _is_outshone(series: NDArray[np.float64]) -> bool:
    series = series[~np.isnan(series).all(1)]
    return len(series) > 0 and bool(np.median(np.nanstd(series, axis=1)) < 0.1 * np.nanstd(series))
