"""Series in files: CSV and parquet, wide or long, and the parquet layout item_id, start, freq, target."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tsseq import memory
from tsseq.datasets import series as lists
from tsseq.datasets.panel import Panel, from_pandas, from_series

PARQUET_SUFFIXES = (".parquet", ".pq")
GROWTH = 5  # memory while a table is read, over its size as text or as columns of numbers


def load(
    path: str | Path,
    *,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: str | Sequence[str] | None = None,
    freq: Any = None,
) -> Panel:
    """Read a file into a panel; the columns are guessed as in `from_pandas` where they are not named.

    Raises ValueError for a file that is missing, empty, malformed, larger than memory or holds no usable series.
    """
    path, data = _read(path)
    try:
        if isinstance(data, list):
            return from_series(data, freq)
        return from_pandas(data, id_column=id_column, time_column=time_column, target_column=target_column, freq=freq)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def read_table(path: str | Path) -> pd.DataFrame:
    """The table in a CSV or parquet file, as it is. Raises ValueError as `load` does, and for lists of series."""
    path, data = _read(path)
    if isinstance(data, list):
        raise ValueError(f"{path}: expected a row per time stamp, got a row per series")
    return data


def _read(path: str | Path) -> tuple[Path, pd.DataFrame | list[lists.Series]]:
    path = Path(path).expanduser()
    if path.is_dir() or not path.exists():
        raise ValueError(f"expected a CSV or parquet file, got {path}, which {_is_not(path)}")
    try:
        return path, _read_parquet(path) if path.suffix in PARQUET_SUFFIXES else _read_csv(path)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _is_not(path: Path) -> str:
    return "is a folder" if path.is_dir() else "does not exist"


def _read_csv(path: Path) -> pd.DataFrame:
    memory.require(GROWTH * path.stat().st_size, "a table of this size")
    try:
        frame = pd.read_csv(path, skipinitialspace=True)
    except pd.errors.EmptyDataError as error:
        raise ValueError("expected a table, got an empty file") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        if "out of memory" in reason:
            raise ValueError("not enough memory for a table of this size") from error
        raise ValueError(f"expected comma-separated text, got something else ({reason})") from error
    _check_header(list(map(str, frame.columns)))
    if frame.empty:
        raise ValueError(f"expected rows below the header, got none under {', '.join(map(str, frame.columns))}")
    return frame


def _check_header(names: list[str]) -> None:
    if all(re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", name) for name in names):
        raise ValueError(f"expected column names in the first line, got numbers: {', '.join(names)}")
    separator = re.search(r"[;\t|]", names[0])
    if len(names) == 1 and separator:
        raise ValueError(f"expected columns separated by commas, got {separator.group()!r}")


def _read_parquet(path: Path) -> pd.DataFrame | list[lists.Series]:
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ValueError("reading parquet needs pyarrow: install tsseq[parquet]") from error
    try:
        about = pq.read_metadata(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"expected a parquet file, got something else ({str(error).splitlines()[0]})") from error
    stored = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    memory.require(GROWTH * max(stored, 8 * about.num_rows * about.num_columns), "a table of this size")
    if set(lists.COLUMNS) <= set(about.schema.to_arrow_schema().names):
        return lists.read_parquet(path)
    return pd.read_parquet(path)
