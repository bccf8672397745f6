"""`tsseq forecast`: the series in a file, and what they will probably do next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from tsseq.datasets.panel import Panel
    from tsseq.table import Beside

TABLES = 3
HISTORY_ROWS = 6
FIRST_ROWS, LAST_ROWS = 21, 2
WIDEST_FAN = 36
EDGES, BETWEEN = 2, 3
"""Blank characters at the edges of a table, and between two of its columns."""


def forecast(
    source: str,
    *,
    horizon: int,
    freq: str | None = None,
    checkpoint: str = "base",
    covariates: list[str] | None = None,
    future: Path | None = None,
    quantiles: list[float] | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    fast: bool = False,
    device: str | None = None,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: list[str] | None = None,
) -> None:
    """Forecast every series in a file, zero-shot, and print, write or draw the result.

    SOURCE is a CSV or parquet file, or the name of a series that ships with tsseq (`tsseq list`). A wide file has
    one column per series, a long one a row per series and time; the columns are found by themselves in most
    files. Empty cells are missing values.

    Examples:
      tsseq forecast airline --horizon 24 --plot airline.png
      tsseq forecast sales.csv --horizon 28 --out forecast.csv
      tsseq forecast long.parquet --horizon 48 --id_column store --target_column sales --quantiles 0.05 0.5 0.95
      tsseq forecast gaps.csv --horizon 7 --freq D
      tsseq forecast sales.csv --horizon 14 --target_column sold --covariates price promotion --future plans.csv

    Args:
        source: file, or name of a bundled series
        horizon: steps to forecast
        freq: pandas frequency alias, old or new (h, 15T, D, W-SUN, ME); needed where the time stamps do not show
            it, and absent rows then count as missing values
        checkpoint: name of a bundled checkpoint, a .safetensors file or its folder
        covariates: columns that may help to forecast the others, used for the series that they help
        future: CSV or parquet file with the same columns of time and names, and those covariates that are known
            ahead; the others are forecast themselves
        quantiles: levels in (0, 1), the nine deciles if not given
        out: CSV or parquet file to write, with columns item_id, timestamp, mean, 0.1 and so on
        plot: picture to draw (png, svg or pdf)
        fast: one pass of the network, without the mirrored and the coarser readings
        device: torch device such as cpu, cuda or mps
        id_column: column that names the series of a long file
        time_column: column of time stamps
        target_column: column or columns to forecast
    """
    from tsseq.cli.output import ensure_file, ensure_picture
    from tsseq.files import writing
    from tsseq.metrics import DECILES
    from tsseq.table import check_horizon, check_levels, forecast_panel, resolve

    check_horizon(horizon)
    levels = check_levels(DECILES if quantiles is None else quantiles)
    out = None if out is None else ensure_file(out, (".csv", ".parquet"))
    plot = None if plot is None else ensure_picture(plot)
    columns = {"id_column": id_column, "time_column": time_column, "target_column": target_column}
    panel, beside = _read(source, freq, columns, covariates or [], future, horizon)
    table = forecast_panel(panel, horizon, levels, resolve(checkpoint, device, fast=fast), beside)
    if out is not None:
        with writing(out) as partial:
            _write(table, partial)
    if plot is not None:
        from tsseq.plotting import plot_forecast

        with writing(plot) as partial:
            plot_forecast(panel, table, partial)
    _print(panel, table, [path for path in (out, plot) if path is not None])


def _read(
    source: str, freq: str | None, columns: dict[str, Any], covariates: list[str], future: Path | None, horizon: int
) -> tuple[Panel, Beside | None]:
    from tsseq.datasets import csv
    from tsseq.table import read_with_covariates

    if not covariates and future is None:
        return read_source(source, freq, columns), None
    if _is_bundled(source):
        raise ValueError(f"{source} ships without covariates: covariates and future are for files")
    id_column = columns["id_column"]
    data = csv.read_table(source, id_column)
    ahead = None if future is None else csv.read_table(future, id_column)
    return read_with_covariates(data, covariates, ahead, horizon, freq=freq, **columns)


def _is_bundled(source: str) -> bool:
    from tsseq.datasets import bundled

    return source in bundled.names() and not Path(source).expanduser().exists()


def read_source(source: str, freq: str | None = None, columns: dict[str, Any] | None = None) -> Panel:
    """A file, or a bundled series by name; ValueError if `source` is neither, or where a bundled one is redescribed."""
    from tsseq.datasets import bundled, csv

    path = Path(source).expanduser()
    if _is_bundled(source):
        given = {"freq": freq, **(columns or {})}
        if any(value is not None for value in given.values()):
            raise ValueError(f"{source} ships with its columns and time stamps: {', '.join(given)} are for files")
        return bundled.load(source)
    if not path.exists() and not path.suffix:
        known = ", ".join(bundled.names())
        raise ValueError(f"{source!r} is neither a file nor a bundled series (those are {known})")
    return csv.load(path, freq=freq, **columns or {})


def _write(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)  # as many digits as a number needs
    else:
        table.to_parquet(path, index=False)


def _print(panel: Panel, table: pd.DataFrame, written: list[Path]) -> None:
    from tsseq.cli.output import print_written, results_console

    console = results_console()
    horizon = len(table) // len(panel)
    for row in range(min(len(panel), TABLES)):
        part = table.iloc[row * horizon : (row + 1) * horizon]
        console.print(_series_table(panel, row, part, console.width), crop=False)
    if len(panel) > TABLES:
        console.print(f"[dim]and {len(panel) - TABLES} more series, {horizon} steps each[/]")
    print_written(console, *written)


def _series_table(panel: Panel, row: int, table: pd.DataFrame, width: int) -> Table:
    """The series' last values and its forecast, in lines of `width` characters if figures leave room for it."""
    levels = sorted(float(name) for name in table.columns[3:])
    low, high = str(levels[0]), str(levels[-1])
    names = list(dict.fromkeys((low, "0.5" if 0.5 in levels else "mean", high)))
    middle = min(1, len(names) - 1)
    history = panel.values[row][-HISTORY_ROWS:]
    past = [
        [_short(stamp), *(_number(value) if name == names[middle] else "" for name in names)]
        for stamp, value in zip(panel.grids[row].index[-HISTORY_ROWS:], history, strict=True)
    ]
    lines = [table.iloc[step] for step in _steps(len(table))]
    future = [[_short(line["timestamp"]), *(_number(line[name]) for name in names)] for line in lines]
    heads = ["time", *("median" if name == "0.5" else name for name in names)]
    taken = EDGES + sum(max(map(len, column)) + BETWEEN for column in zip(heads, *past, *future, strict=True))
    fan = _Fan([*history, *table[low], *table[high]], width - taken)
    shown = _empty_table(str(panel.ids[row]), heads, fan.scale(), taken + fan.width)
    for texts, value in zip(past, history, strict=True):
        shown.add_row(*texts, fan.point(value), style="dim")
    shown.add_section()
    for step, (texts, line) in enumerate(zip(future, lines, strict=True)):
        if step == FIRST_ROWS and len(lines) < len(table):
            shown.add_row("...")
        texts[1 + middle] = f"[bold]{texts[1 + middle]}[/]"
        shown.add_row(*texts, fan.band(line[low], line[names[middle]], line[high]))
    return shown


def _empty_table(title: str, heads: list[str], scale: str, width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, width=width
    )
    for column, head in enumerate([*heads, scale]):
        table.add_column(head, justify="right" if 0 < column < len(heads) else "left", no_wrap=True)
    return table


def _steps(horizon: int) -> list[int]:
    """Those shown: all if at most one were left out."""
    if horizon <= FIRST_ROWS + 1 + LAST_ROWS:
        return [*range(horizon)]
    return [*range(FIRST_ROWS), *range(horizon - LAST_ROWS, horizon)]


def _short(stamp: Any) -> str:
    text = str(stamp)
    return text.removesuffix(" 00:00:00")


def _number(value: float) -> str:
    return "missing" if value != value else f"{value:,.4g}" if abs(value) < 9999.5 else f"{value:,.0f}"


class _Fan:
    """Draws values on a common scale as characters, as many as `room` allows and the scale's ends need."""

    def __init__(self, values: list[float], room: int) -> None:
        finite = [value for value in values if value == value]
        self.low, self.high = min(finite, default=0.0), max(finite, default=0.0)
        self.ends = _number(self.low), _number(self.high)
        self.width = max(min(room, WIDEST_FAN), len(self.ends[0]) + 1 + len(self.ends[1]))

    def scale(self) -> str:
        left, right = self.ends
        return left + right.rjust(self.width - len(left))

    def point(self, value: float) -> str:
        return " " * self._place(value) + "•" if value == value else ""

    def band(self, low: float, centre: float, high: float) -> str:
        if low != low:
            return ""
        left, middle, right = self._place(low), self._place(centre), self._place(high)
        bar = ["─"] * (right - left + 1)
        bar[min(max(middle - left, 0), len(bar) - 1)] = "[bold]●[/]"
        return " " * left + "[blue]" + "".join(bar) + "[/]"

    def _place(self, value: float) -> int:
        span = self.high - self.low
        return round((value - self.low) / span * (self.width - 1)) if span > 0 else self.width // 2
