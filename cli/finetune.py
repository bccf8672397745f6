"""`tsseq finetune`: a checkpoint fitted to the series in a file."""

from __future__ import annotations

from pathlib import Path


def finetune(
    source: str,
    out: Path,
    *,
    horizon: int,
    checkpoint: str = "base",
    max_steps: int = 300,
    max_minutes: float = 5.0,
    learning_rate: float = 3e-4,
    batch_size: int = 16,
    patches: int = 48,
    evaluate_every: int = 20,
    patience: int = 5,
    seed: int = 0,
    freq: str | None = None,
    device: str = "auto",
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: list[str] | None = None,
) -> None:
    """Adapt a checkpoint to the series in a file, and write the result to OUT, a .safetensors file.

    The last steps of each series are held out. Training stops once they are forecast no better, and OUT is never
    worse on them than the checkpoint: if training does not help, OUT holds the checkpoint's weights, and the last
    line says so. `tsseq forecast --checkpoint OUT` uses it.

    Examples:
      tsseq finetune sales.csv sales.safetensors --horizon 28
      tsseq finetune airline airline.safetensors --horizon 12 --max_minutes 2

    Args:
        source: CSV or parquet file as for `tsseq forecast`, or the name of a bundled series
        out: .safetensors file to write
        horizon: steps that will be forecast
        checkpoint: name of a bundled checkpoint, a .safetensors file or its folder
        max_steps: most optimiser steps
        max_minutes: most minutes
        learning_rate: peak learning rate
        batch_size: windows per step
        patches: longest history of a window, in positions of the network
        evaluate_every: steps between forecasts of the held-out tail
        patience: how many of them without a better one end the training
        seed: seed of the windows
        freq: pandas frequency alias, where the time stamps do not show it
        device: auto, cpu, cuda or mps
        id_column: column that names the series of a long file
        time_column: column of time stamps
        target_column: column or columns to train on
    """
    from tsseq.checkpoint import load
    from tsseq.cli.forecast import read_source
    from tsseq.cli.output import ensure_file, print_written, results_console
    from tsseq.finetuning import FinetuningConfig
    from tsseq.finetuning import finetune as train

    config = FinetuningConfig(
        horizon=horizon,
        max_steps=max_steps,
        batch_size=batch_size,
        patches=patches,
        learning_rate=learning_rate,
        evaluate_every=evaluate_every,
        patience=patience,
        max_minutes=max_minutes,
        seed=seed,
    )
    out = ensure_file(out, (".safetensors",))
    columns = {"id_column": id_column, "time_column": time_column, "target_column": target_column}
    panel = read_source(source, freq, columns)
    console = results_console()

    def report(step: int, score: float) -> None:
        console.print(f"step {step:5d}   quantile loss on the held-out tail {score:.4f}", highlight=False)

    result = train(load(checkpoint), panel.values, config, device=device, report=report)
    result.forecaster.save_pretrained(out)
    console.print(str(result), style="bold", markup=False, highlight=False, soft_wrap=True)
    print_written(console, out)
