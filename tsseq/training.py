"""Pretraining as a Lightning module."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from tsseq.checkpoint import save
from tsseq.datasets.data_module import PriorDataModule
from tsseq.datasets.tasks import TrainingBatch
from tsseq.forecaster import MAX_OUTPUT, Forecaster
from tsseq.losses import quantile_loss
from tsseq.muon import NorMuon, parameter_groups
from tsseq.scaler import fit_scale


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

    def factor(self, step: int) -> float:
        """The learning rate at `step`, as a share of `learning_rate`."""
        up = min(1.0, (step + 1) / (self.warmup_steps + 1))
        decay_steps = self.decay_fraction * self.max_steps
        down = min(1.0, max(0.0, self.max_steps - step) / decay_steps) if decay_steps else 1.0
        return min(up, down)


def forecasting_loss(model: Forecaster, batch: TrainingBatch) -> Tensor:
    """Quantile loss of every position's forecast of the patch after it, in scaled units."""
    patch = model.config.patch_length
    scale = fit_scale(batch.values, batch.fitted)
    scaled = scale.apply(batch.values.nan_to_num())
    # Where the fitted stretch is constant its scale says nothing about what follows.
    targets = (batch.targets & (scaled.abs() < MAX_OUTPUT)).unflatten(1, (-1, patch))
    scaled = scaled.clamp(-MAX_OUTPUT, MAX_OUTPUT).unflatten(1, (-1, patch))
    output = model(scaled[:, :-1], batch.visible.unflatten(1, (-1, patch))[:, :-1])
    levels = torch.tensor(model.config.levels, device=output.device)
    return quantile_loss(output, scaled[:, 1:], targets[:, 1:], levels)


class ForecasterModule(lightning.LightningModule):
    """Trains a `Forecaster` on batches of a `PriorStream`; logs `loss` and the learning rate."""

    def __init__(self, forecaster: Forecaster, config: TrainingConfig) -> None:
        super().__init__()
        self.forecaster, self.config = forecaster, config
        self.save_hyperparameters(
            {"forecaster": forecaster.config.to_dict(), "training": dataclasses.asdict(config)}, logger=False
        )

    def configure_model(self) -> None:
        if self.config.compile:
            # Blocks share one compiled form, where the whole stack would be compiled layer by layer.
            for block in self.forecaster.backbone.blocks:
                block.compile(dynamic=False)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        loss = forecasting_loss(self.forecaster, batch)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        groups = parameter_groups(self.forecaster, self.config.weight_decay)
        optimizer = NorMuon(groups, lr=self.config.learning_rate)
        schedule = LambdaLR(optimizer, self.config.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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
    """
    config, last = module.config, folder / "last.ckpt"
    callbacks: list[Callback] = [
        ModelCheckpoint(folder, filename="last", every_n_train_steps=save_every, enable_version_counter=False),
        # Every refresh waits for the device; rarely is often enough.
        RichProgressBar(refresh_rate=20),
        *extra_callbacks,
    ]
    if config.ema_decay:
        # Weights further back than five half-lives or so no longer count, and early ones would only do harm.
        start = max(config.warmup_steps, config.max_steps - int(5 / (1 - config.ema_decay)))
        callbacks.append(EMAWeightAveraging(decay=config.ema_decay, update_starting_at_step=start))
    runner = lightning.Trainer(
        max_steps=config.max_steps,
        max_epochs=-1,
        callbacks=callbacks,
        logger=CSVLogger(folder, name="log", flush_logs_every_n_steps=min(save_every, 100)),
        gradient_clip_val=1.0,
        **trainer,
    )
    runner.fit(module, data, ckpt_path=str(last) if last.exists() else None)
    join_logs(folder).to_csv(folder / "metrics.csv", index=False)
    return save(module.forecaster, folder / "model.safetensors")


def join_logs(folder: Path) -> pd.DataFrame:
    """The logs of all legs of a run; where a resumed leg repeats a step, the later one counts."""
    legs = sorted((folder / "log").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    rows = pd.concat([pd.read_csv(leg) for leg in legs]).dropna(subset=["loss"])
    return rows.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)
