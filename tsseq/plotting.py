"""Pictures: loss curves, forecast fans, prior galleries. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from tsseq.datasets.panel import Panel

INK, BLUE, GREY = "#22303c", "#1f6fb2", "#9aa5ad"
MAX_FANS = 6


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


def plot_forecast(panel: Panel, table: pd.DataFrame, out: Path) -> Path:
    """Draw each series with the fan of its forecast, six series at most; returns `out`.

    `table` is what `tsseq.forecast` returns for `panel`. Levels that mirror each other make a band.
    """
    from matplotlib.figure import Figure

    shown = min(len(panel), MAX_FANS)
    columns = 1 if shown == 1 else 2
    rows = -(-shown // columns)
    figure = Figure(figsize=(9.5, 4.2) if shown == 1 else (12, 2.9 * rows), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    horizon = len(table) // len(panel)
    for row in range(shown):
        _draw_fan(axes[row], panel, row, table.iloc[row * horizon : (row + 1) * horizon])
        axes[row].set_title(str(panel.ids[row]), loc="left", color=INK, fontsize=11, fontweight="bold")
    for axis in axes[shown:]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    if shown < len(panel):
        figure.suptitle(f"{shown} of {len(panel)} series", x=0.99, ha="right", color=GREY, fontsize=9)
    figure.savefig(out, facecolor="white")
    return out


def _draw_fan(axis: Any, panel: Panel, row: int, table: pd.DataFrame) -> None:
    levels = sorted(float(name) for name in table.columns[3:])
    history = panel.values[row]
    kept = min(len(history), max(5 * len(table), 60))
    past, values = _times(panel.grids[row].index[-kept:]), history[-kept:]
    ahead, joined = _times(panel.future(row, len(table))), bool(np.isfinite(values[-1]))
    # The fan opens at the last observation, so that the eye can follow it.
    times = np.concatenate([past[-1:], ahead]) if joined else ahead

    def path(column: str) -> Any:
        future = table[column].to_numpy()
        return np.concatenate([values[-1:], future]) if joined else future

    axis.plot(past, values, color=INK, linewidth=1.3, label="history", solid_capstyle="round")
    bands = [(low, high) for low in levels for high in levels if low < 0.5 and abs(low + high - 1) < 1e-9]
    for (low, high), shade in zip(bands, np.linspace(0.16, 0.5, max(len(bands), 2)), strict=False):
        named = (low, high) in (bands[0], bands[-1])
        axis.fill_between(
            times,
            path(str(low)),
            path(str(high)),
            color=_blend(BLUE, shade),
            linewidth=0,
            label=f"{round(100 * (high - low), 1):g}%" if named else None,
        )
    centre = "0.5" if 0.5 in levels else "mean"
    axis.plot(times, path(centre), color=BLUE, linewidth=1.8, label="median" if centre == "0.5" else "mean")
    axis.axvline(past[-1], color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
    _tidy(axis, past)


def _blend(colour: str, share: float) -> tuple[float, ...]:
    """`colour` thinned with white; opaque, so that the bands in a legend look like the bands in the picture."""
    from matplotlib.colors import to_rgb

    return tuple(1 - share * (1 - channel) for channel in to_rgb(colour))


def _times(index: pd.Index) -> Any:
    return (index.to_timestamp() if hasattr(index, "to_timestamp") else index).to_numpy()


def _tidy(axis: Any, times: Any) -> None:
    import matplotlib.dates as dates

    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    axis.tick_params(colors=INK, labelsize=9, length=3)
    axis.grid(axis="y", color="0.93")
    axis.set_axisbelow(True)
    axis.margins(x=0.01)
    if np.issubdtype(times.dtype, np.datetime64):
        locator = dates.AutoDateLocator(maxticks=8)
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


def plot_ratios(ratios: pd.DataFrame, published: pd.DataFrame | None, name: str, out: Path) -> Path:
    """Draw scores relative to Seasonal Naive, one line per configuration, beside published models; returns `out`.

    `ratios` has the configurations as index and the columns mase_ratio and crps_ratio; `published` has these two,
    dataset and model.
    """
    from matplotlib.figure import Figure

    order = ratios["crps_ratio"].sort_values(ascending=False).index
    place = {one: row for row, one in enumerate(order)}
    figure = Figure(figsize=(12, 1.4 + 0.26 * len(order)), layout="constrained", dpi=150)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, column in zip(axes, ("mase_ratio", "crps_ratio"), strict=True):
        axis.axvline(1, color=INK, linewidth=0.8)
        if published is not None:
            others = published[published["dataset"].isin(order) & (published["model"] != "seasonal_naive")]
            rows = others["dataset"].map(place)
            axis.scatter(others[column], rows, s=26, color=GREY, alpha=0.35, linewidth=0, label="published models")
            best = others.groupby("dataset")[column].min()
            axis.scatter(best, best.index.map(place), s=70, color=INK, marker="|", label="best of them")
        ours = ratios[column].loc[order]
        axis.scatter(ours, range(len(order)), s=44, color=BLUE, zorder=3, label=name)
        mean = float(np.exp(np.log(ours).mean()))
        axis.axvline(mean, color=BLUE, linewidth=1, linestyle=(0, (4, 3)))
        axis.set_title(
            f"{column[:4].upper()} / Seasonal Naive, geometric mean {mean:.3f}", loc="left", color=INK, fontsize=11
        )
        axis.set_xscale("log")
        _ratio_ticks(axis)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.grid(axis="y", color="0.93")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(order)), order, fontsize=8, color=INK)
    axes[0].set_ylim(-0.7, len(order) - 0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(out, facecolor="white")
    return out


def _ratio_ticks(axis: Any) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    low, high = axis.get_xlim()
    steps = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)
    axis.xaxis.set_major_locator(FixedLocator([step for step in steps if low <= step <= high]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=9, colors=INK)
    axis.tick_params(axis="y", length=0)
