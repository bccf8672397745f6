"""Pictures: loss curves, forecast fans, prior galleries. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
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
    if log["loss"].nunique() > 1:  # the first steps of a run would flatten all others
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
        title = axes[row].set_title(str(panel.ids[row]), loc="left", color=INK, fontsize=11, fontweight="bold")
        title.set_parse_math(False)  # a name may have dollar signs
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


GALLERY_COLUMNS = 4


def plot_gallery(series: Any, families: Sequence[str], out: Path) -> Path:
    """Draw a few series (series × time) of each family, one row each, or a grid if there is one family only."""
    from matplotlib.figure import Figure

    rows: dict[str, list[int]] = {}
    for i, family in enumerate(families):
        rows.setdefault(family, []).append(i)
    names = sorted(rows)
    if len(names) == 1:
        cells = [rows[names[0]][i : i + GALLERY_COLUMNS] for i in range(0, min(len(families), 48), GALLERY_COLUMNS)]
        labels = [names[0], *[""] * (len(cells) - 1)]
        halves = 1
    else:
        cells, labels = [rows[name][:GALLERY_COLUMNS] for name in names], names
        halves = 2 if len(names) > 8 else 1
    height = -(-len(cells) // halves)
    figure = Figure(figsize=(13 * halves, 1.25 * height + 0.3), dpi=110)
    axes = figure.subplots(height, GALLERY_COLUMNS * halves, squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.25 / height, bottom=0.02, wspace=0.04, hspace=0.45)
    for axis in axes.ravel():
        axis.set_axis_off()
    for place, members in enumerate(cells):
        half, row = divmod(place, height)
        for column, member in enumerate(members):
            axis = axes[row, half * GALLERY_COLUMNS + column]
            _draw_small(axis, series[member], FAMILY_COLOURS[place % len(FAMILY_COLOURS)])
            if column == 0 and labels[place]:
                axis.set_title(labels[place].replace("_", " "), loc="left", fontsize=10, color=INK, fontweight="bold")
    figure.savefig(out, facecolor="white")
    return out


FAMILY_COLOURS = ("#1f6fb2", "#b2541f", "#2f8f5b", "#8a3fa0", "#b2951f", "#1f98a8", "#a83250", "#5b6770")


def _draw_small(axis: Any, values: Any, colour: str) -> None:
    axis.set_axis_on()
    axis.plot(values, color=colour, linewidth=0.7)
    axis.set(xticks=[], yticks=[])
    axis.spines[["top", "right", "left", "bottom"]].set_color("0.88")
    axis.margins(x=0.005, y=0.08)


def plot_prior_report(series: Any, families: Sequence[str], out: Path) -> Path:
    """Write a PDF with one page per family: examples, spectrum, autocorrelation, difficulty, shares.

    `series` is a float32 tensor, series × time, of at least 64 steps.
    """
    from matplotlib.backends.backend_pdf import PdfPages

    with PdfPages(out) as pages:
        for family in sorted(set(families)):
            chosen = [i for i, name in enumerate(families) if name == family]
            pages.savefig(_report_page(series[chosen], family), facecolor="white")
    return out


def _report_page(series: Any, family: str) -> Any:
    from matplotlib.figure import Figure

    from tsseq.synthetic.diagnostics import autocorrelation, periodogram, seasonal_naive_mase

    length = series.shape[1]
    figure = Figure(figsize=(12, 9), layout="constrained", dpi=110)
    figure.suptitle(family.replace("_", " "), x=0.01, ha="left", fontsize=16, fontweight="bold", color=INK)
    figure.supxlabel(_describe_shares(series), fontsize=10, color=INK)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    top, bottom = halves
    for axis, values in zip(top.subplots(4, 3).ravel(), series[:12].numpy(), strict=False):
        _draw_small(axis, values, BLUE)
    for axis in top.axes[len(series) :]:
        axis.set_axis_off()
    spectrum, correlation, difficulty = bottom.subplots(1, 3)
    _draw_bands(spectrum, np.arange(1, length // 2 + 1) / length, periodogram(series).clamp(min=1e-9).numpy())
    spectrum.set(xscale="log", yscale="log", xlabel="cycles per step", title="spectrum")
    _draw_bands(correlation, np.arange(length // 2), autocorrelation(series)[:, : length // 2].numpy())
    correlation.set(xlabel="lag", title="autocorrelation", ylim=(-1, 1))
    mase = seasonal_naive_mase(series, length // 8).numpy()
    difficulty.hist(np.clip(mase[np.isfinite(mase)], 0.05, 20), bins=np.geomspace(0.05, 20, 40), color=BLUE)
    difficulty.set(xscale="log", xlabel="MASE", title="Seasonal Naive")
    for axis in (spectrum, correlation, difficulty):
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
    return figure


def _draw_bands(axis: Any, x: Any, values: Any) -> None:
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=0)
    axis.fill_between(x, low, high, color=_blend(BLUE, 0.25), linewidth=0, label="10% to 90% of series")
    axis.plot(x, middle, color=BLUE, linewidth=1.2, label="median")
    axis.legend(frameon=False, fontsize=8)


def _describe_shares(series: Any) -> str:
    """How much is constant, and how much lies at the far end of the forecaster's scaler."""
    import torch

    from tsseq.scaler import fit_scale

    constant = float((series.amax(-1) == series.amin(-1)).float().mean())
    scaled = fit_scale(series, torch.ones_like(series, dtype=torch.bool)).apply(series)
    far = float((scaled.abs() > 5).float().mean())
    return f"{len(series)} series, {constant:.2%} constant, {far:.3%} of values beyond asinh 5"


def plot_benchmark(
    timed: Sequence[tuple[str, float, float, tuple[str, float, float] | None]], title: str, out: Path
) -> Path:
    """Draw milliseconds of ops: ours, the floor, and the best peer (its name, forward, both); returns `out`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 1.2 + 0.42 * len(timed)), layout="constrained", dpi=150)
    axis = figure.subplots()
    rows = np.arange(len(timed))[::-1]
    axis.barh(rows, [both for _, both, _, _ in timed], height=0.5, color=BLUE, label="tsseq")
    floors = [floor for _, _, floor, _ in timed]
    axis.plot(floors, rows, "|", color=INK, markersize=14, markeredgewidth=2, label="floor: memory traffic")
    peers = [(peer[2], y, peer[0]) for (*_, peer), y in zip(timed, rows, strict=True) if peer]
    axis.plot([x for x, _, _ in peers], [y for _, y, _ in peers], "o", color=GREY, label="best peer")
    for x, y, name in peers:
        axis.annotate(name, (x, y), xytext=(6, 0), textcoords="offset points", va="center", color=GREY, fontsize=7)
    axis.set_yticks(rows, [label for label, *_ in timed], fontsize=7)
    axis.set(xscale="log", xlabel="milliseconds, forward and backward")
    axis.set_title(title, loc="left", color=INK, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(out)
    return out
