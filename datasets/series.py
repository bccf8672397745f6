"""One series of a collection, and the two Arrow layouts that collections of series come in."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("item_id", "start", "freq", "target")


@dataclass(frozen=True)
class Series:
    """Values in time order, NaN where missing.

    target   time, or channel × time for a multivariate series; float32
    start    time stamp of the first value as the source spells it, or None
    freq     frequency alias as the source spells it (`tsseq.frequency.parse` reads it), or None
    """

    item_id: str
    target: NDArray[np.float32]
    start: str | None = None
    freq: str | None = None

    def channels(self) -> list[NDArray[np.float32]]:
        """The univariate series in it, oldest value first."""
        return [self.target] if self.target.ndim == 1 else list(self.target)


def read_parquet(path: str | Path) -> list[Series]:
    """Read a parquet file with columns item_id, start, freq and target (lists, or lists of lists).

    Raises ValueError if the file is not parquet, lacks one of these columns, or has no series; and for a series that
    is no list of numbers or has infinite ones.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as parquet: {_first_line(error)}") from error
    return _from_table(table, path)


def read_arrow_folder(path: str | Path) -> list[Series]:
    """Read a folder written by Hugging Face's `save_to_disk`, with pyarrow alone.

    Raises ValueError if it is not such a folder or, as `read_parquet`, for what is in it.
    """
    import pyarrow as pa

    path = Path(path)
    try:
        state = json.loads((path / "state.json").read_text())
        files = [path / entry["filename"] for entry in state["_data_files"]]
        tables = [pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files]
    except (OSError, KeyError, TypeError, json.JSONDecodeError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is not a dataset saved to disk: {_first_line(error)}") from error
    if not tables:
        raise ValueError(f"{path} is not a dataset saved to disk: it names no data files")
    return _from_table(pa.concat_tables(tables), path)


def write_parquet(path: str | Path, series: Iterable[Series]) -> None:
    """Write series in the layout that `read_parquet` reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(series)
    columns = {
        "item_id": [s.item_id for s in rows],
        "start": [s.start for s in rows],
        "freq": [s.freq for s in rows],
        "target": [s.target.tolist() for s in rows],
    }
    inner = pa.list_(pa.float32())
    nested = any(s.target.ndim == 2 for s in rows)
    types = [pa.string()] * 3 + [pa.list_(inner) if nested else inner]
    pq.write_table(pa.table(columns, schema=pa.schema(list(zip(COLUMNS, types, strict=True)))), path)


def _from_table(table: Any, path: str | Path) -> list[Series]:
    lacking = [name for name in COLUMNS if name not in table.column_names]
    if lacking:
        raise ValueError(f"{path}: expected columns {', '.join(COLUMNS)}, got {', '.join(table.column_names)}")
    if not table.num_rows:
        raise ValueError(f"{path}: expected at least one series, got none")
    ids, starts, freqs = (table.column(name).to_pylist() for name in COLUMNS[:3])
    rows = (row for chunk in table.column("target").chunks for row in _storage(chunk))
    return [
        Series(str(item), _target(row, f"{path}: series {str(item)!r}"), None if start is None else str(start), freq)
        for item, start, freq, row in zip(ids, starts, freqs, rows, strict=True)
    ]


def _storage(chunk: Any) -> Any:
    """Fixed-shape extension arrays hold plain lists underneath."""
    return getattr(chunk, "storage", chunk)


def _target(row: Any, name: str) -> NDArray[np.float32]:
    try:
        target = _vector(row)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if np.isinf(target).any():
        raise ValueError(f"{name}: expected finite values or NaN, got an infinite one")
    return target


def _vector(row: Any) -> NDArray[np.float32]:
    import pyarrow as pa

    if not isinstance(row, pa.ListScalar) or not row.is_valid:
        raise ValueError(f"expected a target of lists of numbers, got {row.type if row.is_valid else 'none'}")
    values = row.values
    if values.type.num_fields:  # a list of lists: one per channel
        return np.stack([_vector(inner) for inner in values])
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float32)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
