"""Time as tables hold it: dates, periods, text and whole numbers, read into one index that can be counted on."""

import re
import warnings

import numpy as np
import pandas as pd

from tsseq.datasets import time_index

YEARS = 1800, 2199
_DAY_AND_MONTH = re.compile(r"\s*\d{1,2}([./-])\d{1,2}\1\d{2,4}")


def is_time(values: pd.Series | pd.Index) -> bool:
    """Whether these are dates or periods by their type, pyarrow's among them."""
    return pd.api.types.is_datetime64_any_dtype(values.dtype) or isinstance(values.dtype, pd.PeriodDtype)


def read(values: pd.Series | pd.Index, where: str) -> pd.Index:
    """A DatetimeIndex, a PeriodIndex or integers; ValueError, which says `where`, if an entry is none of these.

    Text and categories are read as dates. 01.02.2026 is day first and 01/02/2026 month first, unless only the other
    order fits all rows or spaces them evenly; a warning says so where both space them evenly. Whole numbers are dates
    if all are days YYYYMMDD or all are months YYYYMM of the years 1800 to 2199, unless a RangeIndex counts them.
    """
    missing = np.asarray(values.isna())
    if missing.any():
        raise ValueError(f"expected a time stamp in each row of {where}, got none in row {missing.argmax() + 1}")
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.dtype.categories.dtype)
    values = values.infer_objects()
    if is_time(values):
        return _without_arrow(values)
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_complex_dtype(values.dtype):
        return _whole_numbers(values, where)
    return _read_text(pd.Series(values.astype(object), dtype=object), where).rename(values.name)


def reads_as_time(text: pd.Series) -> bool:
    """Whether the first few entries are dates."""
    first = text.dropna().head(3)
    return any(not _parse(first, day_first=day_first).hasnans for day_first in (False, True))


def _without_arrow(values: pd.Series | pd.Index) -> pd.Index:
    if isinstance(values.dtype, pd.ArrowDtype):
        values = values.astype(values.dtype.pyarrow_dtype.to_pandas_dtype())
    return pd.Index(values) if isinstance(values, pd.Series) else values


def _whole_numbers(values: pd.Series | pd.Index, where: str) -> pd.Index:
    if isinstance(values, pd.RangeIndex):
        return values
    numbers = pd.Index(values.astype(np.int64))
    if (numbers != values).any():
        raise ValueError(f"expected time stamps or integers in {where}, got {values.dtype} numbers")
    first, last = YEARS
    for form, low, high in ("%Y%m%d", first * 10000, last * 10000 + 1231), ("%Y%m", first * 100, last * 100 + 12):
        if numbers.min() >= low and numbers.max() <= high:
            dates = pd.to_datetime(numbers.astype(str), format=form, errors="coerce")
            return numbers if dates.hasnans else dates.rename(numbers.name)
    return numbers


def _read_text(text: pd.Series, where: str) -> pd.Index:
    if reads_as_time(text):
        stamps = _in_order_of_day_and_month(text, where)
    else:
        numbers = pd.to_numeric(text.astype(str), errors="coerce")
        if numbers.notna().all():
            return _whole_numbers(numbers, where)
        stamps = _parse(text.head(3), day_first=False)  # pandas takes long to read a column of labels
    if stamps.hasnans:
        row = int(np.argmax(stamps.isna()))
        raise ValueError(f"expected time stamps in {where}, got {text.iloc[row]!r} in row {row + 1}")
    return stamps


def _in_order_of_day_and_month(text: pd.Series, where: str) -> pd.DatetimeIndex:
    written = _DAY_AND_MONTH.match(str(text.iloc[0]))
    likely = _parse(text, day_first=written is not None and written[1] == ".")
    if written is None:
        return likely
    other = _parse(text, day_first=written[1] != ".")
    if likely.hasnans or other.hasnans:
        return other if likely.hasnans and not other.hasnans else likely
    if _evenly_spaced(other) and not likely.equals(other):
        if not _evenly_spaced(likely):
            return other
        if written[1] != ".":
            row = int(np.argmax(likely != other))
            warnings.warn(
                f"{where} is read month first, {text.iloc[row]} as {likely[row].date()}, though {other[row].date()} "
                "would be as regular: write such dates year first to be sure",
                stacklevel=2,
            )
    return likely


def _evenly_spaced(stamps: pd.DatetimeIndex) -> bool:
    try:
        time_index.infer(stamps.unique().sort_values())
    except ValueError:
        return False
    return True


def _parse(text: pd.Series, *, day_first: bool) -> pd.DatetimeIndex:
    with warnings.catch_warnings():
        # pandas warns about formats it has to guess and about mixed offsets; both are dealt with here.
        warnings.simplefilter("ignore")
        try:
            stamps = pd.to_datetime(text, errors="coerce", dayfirst=day_first)
        except ValueError:
            return pd.DatetimeIndex(pd.to_datetime(text, errors="coerce", dayfirst=day_first, utc=True))
        if not pd.api.types.is_datetime64_any_dtype(stamps.dtype):
            stamps = pd.to_datetime(text, errors="coerce", dayfirst=day_first, utc=True)
    return pd.DatetimeIndex(stamps)
