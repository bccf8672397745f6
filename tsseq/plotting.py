"""Pictures: loss curves, forecast fans, prior galleries. Matplotlib is imported when one is drawn."""

from pathlib import Path

import numpy as np


def plot_loss(metrics: Path, out: Path) -> Path:
    """Draw the training loss in a CSV log, raw and smoothed, over the learning rate; returns `out`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import pandas as pd

    log = pd.read_csv(metrics).dropna(subset=["loss"])
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axis.plot(log["step"], log["loss"], color="0.75", linewidth=0.8, label="loss")
    span = max(2, len(log) // 50)
    axis.plot(log["step"], log["loss"].ewm(span=span).mean(), color="#1f4e79", linewidth=1.6, label="smoothed")
    low, high = np.quantile(log["loss"], [0.0, 0.98])
    axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axis.set(xlabel="step", ylabel="quantile loss, scaled units")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(out, dpi=150)
    plt.close(figure)
    return out
