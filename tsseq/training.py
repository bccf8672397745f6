"""Pretraining as a Lightning module."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from tsseq.checkpoint import save
from tsseq.datasets.data_module import PriorDataModule
from tsseq.datasets.tasks import TrainingBatch
from tsseq.files import writing
from tsseq.forecaster import MAX_OUTPUT, Forecaster
from tsseq.losses import quantile_loss
from tsseq.muon import NorMuon, parameter_groups
from tsseq.scaler import causal_scale, fit_scale


@dataclass(frozen=True)
class TrainingConfig:
    """A warm-up/stable/decay schedule over `max_steps` steps: linear up over `warmup_steps`, constant, linear
    to zero over the last `decay_fraction` (0 leaves a run open for another leg)."""

    max_steps: int = 10_000
    learning_rate: float = 2e-3
    warmup_steps: int = 300
    decay_fraction: float = 0.3
    weight_decay: float = 0.05
    ema_decay: float = 0.998
    compile: bool = False

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.warmup_steps < 0:
            raise ValueError(
                "expected max_steps of at least 1 and warmup_steps of at least 0, "
                f"got {self.max_steps} and {self.warmup_steps}"
            )
        if not 0 <= self.decay_fraction <= 1 or not 0 <= self.ema_decay < 1:
            raise ValueError(
                "expected decay_fraction in [0, 1] and ema_decay in [0, 1), "
                f"got {self.decay_fraction} and {self.ema_decay}"
            )
        if not (0 <= self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            raise ValueError(
                "expected learning_rate and weight_decay of at least 0, "
                f"got {self.learning_rate} and {self.weight_decay}"
            )

    def factor(self, step: int) -> float:
        """The learning rate at `step`, as a share of `learning_rate`."""
        up = min(1.0, (step + 1) / (self.warmup_steps + 1))
        decay_steps = self.decay_fraction * self.max_steps
        down = min(1.0, max(0.0, self.max_steps - step) / decay_steps) if decay_steps else 1.0
        return min(up, down)


class ForecastingLoss(nn.Module):
    """Quantile loss of every position's forecast of the patch after it, in scaled units."""

    def __init__(self, forecaster: Forecaster) -> None:
        super().__init__()
        self.forecaster = forecaster

    def forward(self, values: Tensor, visible: Tensor, fitted: Tensor, targets: Tensor) -> Tensor:
        """The fields of a `TrainingBatch` in, a scalar out."""
        tokens, scaled, scored = self._encode(values, visible, fitted, targets)
        hidden, _ = self.forecaster.backbone(tokens)
        return self._score(hidden, scaled, scored)

    def compile_parts(self) -> None:
        """Blocks share one compiled form, where the whole stack would be compiled layer by layer."""
        for block in self.forecaster.backbone.layers:
            block.compile(dynamic=False)
        self._encode = torch.compile(self._encode, dynamic=False)  # type: ignore[method-assign]
        self._score = torch.compile(self._score, dynamic=False)  # type: ignore[method-assign]

    def _encode(
        self, values: Tensor, visible: Tensor, fitted: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        patch = self.forecaster.config.patch_length
        if self.forecaster.config.backbone.weave:
            # A woven stack hears the end of its input at every position: only what follows all of it is a forecast.
            visible, targets = fitted, targets & (fitted.flip(1).cumsum(1).flip(1) == 0)
        patches = values.nan_to_num().unflatten(1, (-1, patch))
        if self.forecaster.config.scaler == "causal":
            scale = causal_scale(values[:, :-patch], visible[:, :-patch], patch)
            read, ahead = scale.apply(patches[:, :-1]), scale.apply(patches[:, 1:])
        else:
            scaled = fit_scale(values, fitted).apply(patches)
            read, ahead = scaled[:, :-1], scaled[:, 1:]
        # Where what was scaled by is constant its scale says nothing about what follows.
        scored = targets.unflatten(1, (-1, patch))[:, 1:] & (ahead.abs() < MAX_OUTPUT)
        read, ahead = read.clamp(-MAX_OUTPUT, MAX_OUTPUT), ahead.clamp(-MAX_OUTPUT, MAX_OUTPUT)
        tokens = self.forecaster.embed_patches(read, visible.unflatten(1, (-1, patch))[:, :-1])
        return tokens, ahead, scored

    def _score(self, hidden: Tensor, scaled: Tensor, scored: Tensor) -> Tensor:
        levels = torch.tensor(self.forecaster.config.levels, device=hidden.device)
        return quantile_loss(self.forecaster.read_out(hidden), scaled, scored, levels)


class CapturedLoss:
    """A loss whose passes run as CUDA graphs, one pair for each shape of batch.

    A step of a small network is hundreds of short kernels, which a host cannot launch as fast as a GPU
    finishes them.
    """

    def __init__(self, loss: ForecastingLoss) -> None:
        self._loss, self._graphs = loss, dict[torch.Size, Any]()

    def __call__(self, *batch: Tensor) -> Tensor:
        shape = batch[0].shape
        if shape not in self._graphs:
            holder = _Holder(self._loss)
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                examples = tuple(x.clone() for x in batch)
                self._graphs[shape] = torch.cuda.make_graphed_callables(holder, examples, allow_unused_input=True)
        result: Tensor = self._graphs[shape](*batch)
        return result.clone()  # the graph overwrites its own output at the next step


class _Holder(nn.Module):
    """Capturing replaces a module's forward, so each shape gets a module of its own around the shared one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *batch: Tensor) -> Tensor:
        result: Tensor = self.inner(*batch)
        return result


class ForecasterModule(lightning.LightningModule):
    """Trains a `Forecaster` on batches of a `PriorStream`; logs `loss` and the learning rate.

    `origin` says, in plain values, what the batches and first weights are; `fit` resumes no run of another.
    """

    def __init__(self, forecaster: Forecaster, config: TrainingConfig, **origin: Any) -> None:
        super().__init__()
        self.config = config
        self.loss = ForecastingLoss(forecaster)
        self._captured: CapturedLoss | None = None
        self.save_hyperparameters(
            {"forecaster": forecaster.config.to_dict(), "training": dataclasses.asdict(config), **origin}, logger=False
        )

    @property
    def forecaster(self) -> Forecaster:
        return self.loss.forecaster

    def on_fit_start(self) -> None:
        if self.config.compile:
            self.loss.compile_parts()
            if self.device.type == "cuda" and self.trainer.world_size == 1:
                self._captured = CapturedLoss(self.loss)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        loss: Tensor = (self._captured or self.loss)(*batch)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by norm, and let a step whose gradient is not finite pass without effect, without asking the device."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val or float("inf"))
        broken = ~norm.isfinite()
        for p in parameters:
            if p.grad is not None:
                p.grad.masked_fill_(broken, 0.0)

    def configure_optimizers(self) -> dict[str, Any]:
        groups = parameter_groups(self.forecaster, self.config.weight_decay)
        optimizer = NorMuon(groups, lr=self.config.learning_rate)
        schedule = LambdaLR(optimizer, self.config.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class CalmProgressBar(RichProgressBar):
    """Shows the loss of every `refresh_rate`-th step: reading one waits for the device to finish it."""

    def __init__(self, refresh_rate: int) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._shown: dict[str, Any] = {}

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        if trainer.global_step % self.refresh_rate == 0:
            self._shown = super().get_metrics(trainer, pl_module)
        return dict(self._shown)


class TailAverage(EMAWeightAveraging):
    """An average over the last steps, which a run stopped before them does without."""

    def __init__(self, config: TrainingConfig) -> None:
        # Weights further back than five half-lives or so no longer count, and early ones would only do harm.
        start = max(config.warmup_steps, config.max_steps - int(5 / (1 - config.ema_decay)))
        super().__init__(decay=config.ema_decay, update_starting_at_step=start)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Not yet: last.ckpt holds the weights themselves too, and Lightning is not here where no step was left."""

    def apply(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Give the module the average, if it reaches to its last step."""
        if self._latest_update_step == trainer.global_step > 0:
            super().on_train_end(trainer, pl_module)


class WholeCheckpoints(TorchCheckpointIO):
    """Written beside their place. Lightning writes to TMPDIR, and where that is another disk copies it from there: a
    kill meanwhile leaves half a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with writing(Path(path)) as partial:
            torch.save(checkpoint, partial)


def fit(
    module: ForecasterModule,
    data: PriorDataModule,
    folder: Path,
    *,
    save_every: int = 1000,
    extra_callbacks: Sequence[Callback] = (),
    **trainer: Any,
) -> Path:
    """Train `module` in `folder`, from last.ckpt there if it exists; returns the finished model.safetensors.

    `trainer` goes to Lightning's Trainer. The folder also receives the log of every leg, joined in metrics.csv.

    Raises ValueError where last.ckpt is broken, is of a run with other settings, or has trained more than max_steps.
    """
    if save_every < 1:
        raise ValueError(f"save_every must be at least 1, got {save_every}")
    config, last = module.config, folder / "last.ckpt"
    resumes = last.exists()
    if resumes:
        check_resumable(last, module)
    average = TailAverage(config)
    callbacks: list[Callback] = [
        ModelCheckpoint(folder, filename="last", every_n_train_steps=save_every, enable_version_counter=False),
        CalmProgressBar(refresh_rate=20),
        *extra_callbacks,
        *([average] if config.ema_decay else []),
    ]
    runner = lightning.Trainer(
        max_steps=config.max_steps,
        max_epochs=-1,
        callbacks=callbacks,
        logger=CSVLogger(folder, name="log", flush_logs_every_n_steps=min(save_every, 100)),
        gradient_clip_val=1.0,
        plugins=[WholeCheckpoints()],
        **trainer,
    )
    runner.fit(module, data, ckpt_path=str(last) if resumes else None, weights_only=True)
    if runner.global_step < config.max_steps:
        runner.save_checkpoint(last)
    average.apply(runner, module)
    file = save(module.forecaster, folder / "model.safetensors")
    join_logs(folder).to_csv(folder / "metrics.csv", index=False)
    return file


MAY_CHANGE = ("max_steps", "decay_fraction", "compile", "block")
"""Settings that a run may be resumed with others of: when it ends, and how it is computed."""


def check_resumable(last: Path, module: ForecasterModule) -> None:
    """Raises ValueError unless `last` is whole, of a run with the settings of `module`, and not beyond its max_steps.

    What a run of an earlier version did not write down is not compared.
    """
    try:
        saved = torch.load(last, map_location="cpu", weights_only=True)
        trained, settings = saved["global_step"], saved["hyper_parameters"]
        differing = list(_differing(settings, module.hparams))
    except OSError:
        raise
    except Exception as error:  # what torch makes of a broken file has no class in common
        raise ValueError(
            f"{last} is not a whole checkpoint of a run: delete it to begin anew, or train in another folder"
        ) from error
    if differing:
        changes = ", ".join(f"{name} was {old!r} and is now {new!r}" for name, old, new in differing)
        raise ValueError(
            f"{last} is of a run with other settings: {changes}; pass the same ones, or train in another folder"
        )
    if trained > module.config.max_steps:
        raise ValueError(
            f"{last} has trained {trained} steps, more than max_steps {module.config.max_steps}: "
            "pass more, or train in another folder"
        )


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in old:
        if name not in new or name in MAY_CHANGE:
            continue
        if isinstance(old[name], Mapping) and name != "options":
            yield from _differing(old[name], new[name])
        elif old[name] != new[name]:
            yield name, old[name], new[name]


def join_logs(folder: Path) -> pd.DataFrame:
    """The logs of all legs of a run; where a resumed leg repeats a step, the later one counts."""
    legs = sorted((folder / "log").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    tables = [pd.read_csv(leg) for leg in legs if leg.stat().st_size]  # a kill while it is written leaves it empty
    tables = [table for table in tables if not table.empty]
    if not tables:  # stopped before the first line was due
        return pd.DataFrame({"step": [], "loss": []})
    rows = pd.concat(tables).dropna(subset=["loss"])
    return rows.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)
