"""Fits a forecaster to the user's own series, and keeps the result only if it forecasts a held-out tail better."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from tsseq.device import trainer_flags
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.held_out import Tail, Values, Windows, hold_out
from tsseq.inference import InferenceConfig, Predictor
from tsseq.training import ForecasterModule, TrainingConfig

Report = Callable[[int, float], None]


MOST_MINUTES = 1_000_000


@dataclass(frozen=True)
class FinetuningConfig:
    """`horizon` steps are forecast from windows of at most `patches` positions of history, `batch_size` a step.

    Every `evaluate_every` steps the held-out tail is scored; training stops after `patience` scores without a
    better one, after `max_steps`, or after `max_minutes`. `seed` draws the windows. `inference` is how the tail is
    forecast, and should be how the result will be used.
    """

    horizon: int
    max_steps: int = 300
    batch_size: int = 16
    patches: int = 48
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    evaluate_every: int = 20
    patience: int = 5
    max_minutes: float | None = None
    seed: int = 0
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        counts = (self.horizon, self.max_steps, self.batch_size, self.patches, self.evaluate_every, self.patience)
        if min(counts) < 1:
            raise ValueError(
                "expected horizon, max_steps, batch_size, patches, evaluate_every and patience of at least 1, "
                f"got {counts}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"expected a positive learning_rate, got {self.learning_rate}")
        if self.max_minutes is not None and not 0 < self.max_minutes < MOST_MINUTES:
            raise ValueError(f"expected max_minutes between 0 and {MOST_MINUTES}, got {self.max_minutes}")


@dataclass(frozen=True)
class Finetuned:
    """The forecaster to use from now on, and how it was chosen.

    `before` and `after` score the tail: the quantile loss, twice the pinball loss averaged over levels, relative to
    the mean absolute step of each series' history, averaged over windows. `scores` holds (step, score) of every
    evaluation, from step 0.
    """

    forecaster: Forecaster
    before: float
    after: float
    scores: tuple[tuple[int, float], ...]

    @property
    def improved(self) -> bool:
        return self.after < self.before

    def __str__(self) -> str:
        if self.improved:
            return f"improved: quantile loss on the held-out tail {self.before:.4f} before, {self.after:.4f} after"
        if len(self.scores) < 2:
            return "kept the weights as they were: the time was over before the first step"
        best = min(score for _, score in self.scores[1:])
        return f"kept the weights as they were: quantile loss on the held-out tail {self.before:.4f}, then {best:.4f}"


def finetune(
    forecaster: Forecaster,
    series: Sequence[Values],
    config: FinetuningConfig,
    *,
    device: str = "auto",
    report: Report | None = None,
) -> Finetuned:
    """Adapt `forecaster`, which is left alone, to `series` (vectors, oldest value first, NaN where missing).

    The last values of each series are held out: they are not trained on, and decide when to stop. If they are not
    forecast better than before, the weights of the result are those of `forecaster`. `report` is called with each
    (step, score).

    Raises ValueError if no series is long enough to hold anything out.
    """
    return _train(copy.deepcopy(forecaster), series, config, device, report)


def train_from_scratch(
    network: ForecasterConfig,
    series: Sequence[Values],
    config: FinetuningConfig,
    *,
    device: str = "auto",
    report: Report | None = None,
) -> Finetuned:
    """Train a new network on `series` alone and return its best state on the tail; otherwise as `finetune`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        forecaster = Forecaster(network)
    return _train(forecaster, series, config, device, report)


def _train(
    forecaster: Forecaster, series: Sequence[Values], config: FinetuningConfig, device: str, report: Report | None
) -> Finetuned:
    training, tail = hold_out(series, config.horizon, config.seed)
    keeper = _BestWeights(tail, config, report)
    shape = (forecaster.config.patch_length, tail.horizon, config.patches)
    windows = Windows(training, *shape, batch_size=config.batch_size, seed=config.seed)
    with quiet():
        trainer = lightning.Trainer(
            **trainer_flags(device),
            max_steps=config.max_steps,
            max_time=None if config.max_minutes is None else timedelta(minutes=config.max_minutes),
            callbacks=[keeper],
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # The loader would draw from the global generator if it had none of its own.
        loader = DataLoader(windows, batch_size=None, generator=Generator())
        trainer.fit(ForecasterModule(forecaster.requires_grad_(True), _schedule(config)), loader)
    forecaster.load_state_dict(keeper.weights)
    before, after = keeper.scores[0][1], keeper.best
    return Finetuned(forecaster.eval().requires_grad_(False).cpu(), before, after, tuple(keeper.scores))


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its remarks on devices, loaders and tips, which tell the user of an estimator nothing."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        log.setLevel(level)


def _schedule(config: FinetuningConfig) -> TrainingConfig:
    return TrainingConfig(
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        warmup_steps=min(20, config.max_steps // 10),
        decay_fraction=0.5,
        weight_decay=config.weight_decay,
        ema_decay=0.0,
    )


class _BestWeights(Callback):
    """Scores the tail from step 0 on, keeps the best weights, and stops when they stay the best."""

    def __init__(self, tail: Tail, config: FinetuningConfig, report: Report | None) -> None:
        self.tail, self.config, self.report = tail, config, report
        self.scores: list[tuple[int, float]] = []
        self.best, self.stale = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, module: ForecasterModule) -> None:
        self._score(module.forecaster, 0)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: ForecasterModule, *batch: Any) -> None:
        step = trainer.global_step
        if step % self.config.evaluate_every == 0 or step == self.config.max_steps:
            self._score(module.forecaster, step)
            trainer.should_stop = trainer.should_stop or self.stale >= self.config.patience

    def on_train_end(self, trainer: lightning.Trainer, module: ForecasterModule) -> None:
        if trainer.global_step > self.scores[-1][0]:  # the time was over between two evaluations
            self._score(module.forecaster, trainer.global_step)

    def _score(self, forecaster: Forecaster, step: int) -> None:
        score = self.tail.score(Predictor(forecaster, self.config.inference))
        self.scores.append((step, score))
        if self.report is not None:
            self.report(step, score)
        self.stale += 1
        if score < self.best:
            self.best, self.stale = score, 0
            self.weights = {name: weight.detach().clone() for name, weight in forecaster.state_dict().items()}
