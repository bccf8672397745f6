"""`tsseq pretrain`: train a forecaster on synthetic series alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tsseq.datasets.stream import StreamConfig
    from tsseq.forecaster import ForecasterConfig
    from tsseq.training import TrainingConfig


def pretrain(
    out: Path,
    *,
    prior: str = "tsseq",
    start: str | None = None,
    mixer: str = "gated_delta_product",
    width: int = 256,
    layers: int = 8,
    mlp_width: int = 640,
    patch_length: int = 32,
    patches: int = 128,
    scaler: Literal["context", "causal"] = "causal",
    weave: bool = False,
    options: dict[str, Any] | None = None,
    batch_size: int = 256,
    max_steps: int = 10_000,
    learning_rate: float = 2e-3,
    warmup_steps: int = 300,
    decay_fraction: float = 0.3,
    weight_decay: float = 0.05,
    ema_decay: float = 0.999,
    cuts: dict[int, float] | None = None,
    missing: float = 0.15,
    seed: int = 0,
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto",
    devices: int = 1,
    precision: str | None = None,
    compile: bool = False,
    workers: int = 0,
    block: int | None = None,
    save_every: int = 1000,
    log_every: int = 10,
    max_time: str | None = None,
) -> None:
    """Train a forecaster on synthetic series and leave a checkpoint that `tsseq forecast` reads.

    Everything is written to the folder OUT: model.safetensors, metrics.csv, loss.png, and last.ckpt, from
    which the same command continues after a kill, with the loss curve of an uninterrupted run. One with more
    max_steps goes on from there; what decides what is learned must stay the same.

    Examples:
      tsseq pretrain runs/tiny --width 64 --layers 2 --mlp_width 128 --max_steps 200 --batch_size 32
      tsseq pretrain runs/lru --mixer lru --precision bf16-mixed --compile
      tsseq pretrain runs/more --start base --patches 256 --learning_rate 1e-3
      tsseq pretrain runs/long --patches 256 --cuts '{"16": 0.3, "128": 0.4}' --batch_size 64

    Args:
        out: folder of the run; made if absent
        prior: a mixture or a single family of synthetic series; `tsseq list` names them
        start: checkpoint whose weights the run begins with; its network must have the same shapes
        mixer: sequence mixer, or several joined by commas and cycled over the layers
        width: features per position
        layers: residual blocks
        mlp_width: hidden features of the perceptron in each block; 0 leaves it out
        patch_length: values per position
        patches: positions per training series
        scaler: scale a patch by what was known up to it, which lets a series be streamed, or by all that is known
        weave: add each layer's final state to the next layer's initial state (gives up streaming)
        options: keyword arguments of the mixer, as JSON
        batch_size: series per step and device
        max_steps: optimiser steps in total
        learning_rate: peak learning rate of both optimisers
        warmup_steps: steps of linear warm-up
        decay_fraction: share of the steps, at the end, over which the rate falls to zero; 0 keeps it constant
        weight_decay: decoupled decay of the matrices
        ema_decay: decay per step of the averaged weights that are saved; 0 saves the last weights
        cuts: share of the steps whose series are cut into windows of so many patches, as JSON; {"16": 0.3} if not
            given
        missing: share of series with missing values
        seed: seed of weights and series
        accelerator: Lightning accelerator: auto, cpu, gpu, cuda, mps
        devices: how many of them; -1 is all GPUs
        precision: Lightning precision; bf16-mixed on a GPU and 32-true elsewhere if not given
        compile: compile with torch.compile and, on one GPU, replay steps as CUDA graphs
        workers: processes that draw series when training on a CPU
        block: steps drawn from the prior at once; 64 on a GPU and 1 elsewhere if not given
        save_every: steps between resumable checkpoints
        log_every: steps between lines of metrics.csv
        max_time: stop after DD:HH:MM:SS
    """
    from tsseq.backbone import BackboneConfig
    from tsseq.cli.output import ensure_folder
    from tsseq.datasets.stream import StreamConfig
    from tsseq.forecaster import ForecasterConfig
    from tsseq.training import TrainingConfig

    if log_every < 1 or (devices < 1 and not (devices == -1 and on_gpu(accelerator))):
        got = f"log_every={log_every}, devices={devices}"
        raise ValueError(f"expected log_every and devices of at least 1, or devices=-1 for all GPUs, got {got}")
    mixers = tuple(mixer.split(","))
    backbone = BackboneConfig(
        mixers=mixers,
        width=width,
        layers=layers,
        mlp_width=mlp_width,
        weave=weave,
        options={name: options or {} for name in mixers},
    )
    run(
        ensure_folder(out),
        prior,
        ForecasterConfig(
            patch_length=patch_length, max_context=patches * patch_length, scaler=scaler, backbone=backbone
        ),
        TrainingConfig(
            max_steps=max_steps,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            decay_fraction=decay_fraction,
            weight_decay=weight_decay,
            ema_decay=ema_decay,
            compile=compile,
        ),
        StreamConfig(
            batch_size=batch_size,
            patches=patches,
            patch_length=patch_length,
            cuts=StreamConfig.cuts if cuts is None else tuple(cuts.items()),
            missing=missing,
            block=(64 if on_gpu(accelerator) else 1) if block is None else block,
            seed=seed,
        ),
        start=start,
        workers=workers,
        save_every=save_every,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        log_every_n_steps=min(log_every, max_steps),
        max_time=max_time,
    )


def on_gpu(accelerator: str) -> bool:
    import torch

    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def run(
    folder: Path,
    prior: str,
    forecaster: ForecasterConfig,
    training: TrainingConfig,
    stream: StreamConfig,
    *,
    start: str | None = None,
    workers: int,
    save_every: int,
    **trainer: Any,
) -> None:
    """Train with everything configured; `trainer` goes to Lightning's Trainer.

    Raises ValueError if the weights of `start` do not fit, or if the run in `folder` was begun with other settings.
    """
    import lightning
    import torch

    from tsseq.checkpoint import check_types, load_weights
    from tsseq.cli.output import print_written, results_console
    from tsseq.datasets.data_module import PriorDataModule
    from tsseq.forecaster import Forecaster
    from tsseq.mixers import MIXERS
    from tsseq.plotting import plot_loss
    from tsseq.synthetic import PRIORS
    from tsseq.synthetic.mixture import preset
    from tsseq.training import ForecasterModule, fit

    for name, options in forecaster.backbone.options.items():
        check_types(MIXERS[name].__init__, options)
    lightning.seed_everything(stream.seed)
    torch.set_float32_matmul_precision("high")
    trainer["precision"] = trainer["precision"] or ("bf16-mixed" if on_gpu(trainer["accelerator"]) else "32-true")
    model = Forecaster(forecaster)
    if start is not None:
        load_weights(model, start)
    module = ForecasterModule(model, training, prior=prior, start=start, stream=dataclasses.asdict(stream))
    data = PriorDataModule(PRIORS[prior]() if prior in PRIORS else preset(prior), stream, workers=workers)
    file = fit(module, data, folder, save_every=save_every, **trainer)
    picture = plot_loss(folder / "metrics.csv", folder / "loss.png")
    print_written(results_console(), file, picture)
