"""Series in files: CSV and parquet, wide or long, and the parquet layout item_id, start, freq, target."""

import re
import warnings
from codecs import BOM_UTF8
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from tsseq import memory
from tsseq.datasets import columns
from tsseq.datasets import series as lists
from tsseq.datasets.panel import Panel, from_pandas, from_series

PARQUET_SUFFIXES = (".parquet", ".pq")
NUMBER = r"[-+]?[\d.]+([eE][-+]?\d+)?"
DATE = r"(\d{4}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})\b.*"
BLANK = r"Unnamed: [1-9]\d*"
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
    path, data = _read(path, id_column)
    try:
        if isinstance(data, list):
            return from_series(data, freq)
        return from_pandas(data, id_column=id_column, time_column=time_column, target_column=target_column, freq=freq)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def read_table(path: str | Path, id_column: str | None = None) -> pd.DataFrame:
    """The table in a CSV or parquet file, as it is. Raises ValueError as `load` does, and for lists of series."""
    path, data = _read(path, id_column)
    if isinstance(data, list):
        raise ValueError(f"{path}: expected a row per time stamp, got a row per series")
    return data


def _read(path: str | Path, id_column: str | None) -> tuple[Path, pd.DataFrame | list[lists.Series]]:
    path = Path(path).expanduser()
    if path.is_dir() or not path.exists():
        raise ValueError(f"expected a CSV or parquet file, got {path}, which {_is_not(path)}")
    try:
        return path, _read_parquet(path) if path.suffix in PARQUET_SUFFIXES else _read_csv(path, id_column)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _is_not(path: Path) -> str:
    return "is a folder" if path.is_dir() else "does not exist"


def _read_csv(path: Path, id_column: str | None) -> pd.DataFrame:
    memory.require(GROWTH * path.stat().st_size, "a table of this size")
    # What comes through a pipe can be read once only.
    source = path if path.is_file() else BytesIO(path.read_bytes())
    try:
        names = _parse(source, nrows=0).columns
        _check_header(list(names))
        frame = _read_rows(source, [name for name in names if _names_series(name, id_column)])
    except pd.errors.EmptyDataError as error:
        raise ValueError("expected a table, got an empty file") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        if "out of memory" in reason:
            raise ValueError("not enough memory for a table of this size") from error
        raise ValueError(f"expected comma-separated text, got something else ({reason})") from error
    if frame.empty:
        raise ValueError(f"expected rows below the header, got none under {', '.join(names)}")
    return frame


def _names_series(column: str, id_column: str | None) -> bool:
    return column == id_column if id_column else column.lower() in columns.ID_NAMES


def _parse(source: Path | BytesIO, **options: Any) -> pd.DataFrame:
    if isinstance(source, BytesIO):
        source.seek(0)
    frame: pd.DataFrame = pd.read_csv(source, skipinitialspace=True, **options)
    return frame


def _read_rows(source: Path | BytesIO, ids: list[str]) -> pd.DataFrame:
    """The table; what names series is text as it is written, as 007 is no number there and NA not missing."""
    options: dict[str, Any] = {"dtype": dict.fromkeys(ids, str)}
    frame = _parse(source, **options)
    if not isinstance(frame.index, pd.RangeIndex):  # pandas makes one of what a row has more than the header
        if not _ends_are_empty(source, frame):
            return _with_row_names(source, frame)
        options["index_col"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # of the ends that are lost
            frame = _parse(source, **options)
    missing = [place for place, name in enumerate(frame.columns) if frame[name].isna().any()]
    places = [place for place in missing if columns.is_label(frame.iloc[:, place]) or frame.columns[place] in ids]
    if places:
        options |= {"usecols": places, "dtype": str, "keep_default_na": False, "na_values": [""]}
        for place, (_, column) in zip(places, _parse(source, **options).items(), strict=True):
            frame[frame.columns[place]] = column
    spare = [name for name in frame.columns if name.startswith("Unnamed: ") and frame[name].isna().all()]
    return frame.drop(columns=spare)


def _ends_are_empty(source: Path | BytesIO, frame: pd.DataFrame) -> bool:
    """Whether all that the rows have more than the header is a comma."""
    text = _parse(source, dtype=str, keep_default_na=False)
    return frame.index.nlevels == 1 and bool((text.iloc[:, -1] == "").all())


def _with_row_names(source: Path | BytesIO, frame: pd.DataFrame) -> pd.DataFrame:
    """The table, if it is as R writes it: names of rows and columns in quotes, and no name over those of rows."""
    with BytesIO(source.getvalue()) if isinstance(source, BytesIO) else source.open("rb") as file:
        quoted = all(file.readline().removeprefix(BOM_UTF8).startswith(b'"') for _ in range(2))
    extra = frame.index.nlevels
    if not quoted or extra > 1 or any(name.lower() in columns.TIME_NAMES for name in frame.columns):
        expected = len(frame.columns)
        raise ValueError(f"expected {expected} fields in each row, as in the header, got {expected + extra} in row 1")
    return frame


def _check_header(names: list[str]) -> None:
    numbers = [bool(re.fullmatch(NUMBER, name)) for name in names]
    if any(numbers) and all(re.fullmatch(f"{NUMBER}|{DATE}|{BLANK}", name) for name in names):
        kinds = "numbers" if all(numbers) else "dates and numbers"
        raise ValueError(f"expected column names in the first line, got {kinds}: {', '.join(names)}")
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
