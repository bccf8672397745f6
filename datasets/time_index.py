"""Time stamps of one series: find their frequency, place them on its grid, continue them into the future.

Days and longer units are counted on the local calendar, so a daily series crosses a change of clocks at the
same local hour; hours and shorter units are counted in elapsed time.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsseq.frequency import MONTHS, NANOSECONDS, Frequency, parse

MAX_GRID = 50_000_000
_CALENDAR_DAYS = ("day", "week")


def carried(index: pd.DatetimeIndex) -> Frequency | None:
    """The frequency that pandas keeps with the index, if any."""
    try:
        return None if index.freq is None else parse(index.freq)
    except ValueError:  # some offsets have no alias, such as pd.DateOffset(months=1)
        return None


def infer(index: pd.DatetimeIndex) -> Frequency:
    """The frequency of regular time stamps, two or more; ValueError if they are irregular."""
    if len(index) < 2:
        raise ValueError("expected a frequency, as one time stamp does not show it: pass freq")
    frequency = _months(index) or _fixed(index) or _business_days(index)
    if frequency is None:
        steps = index[1:] - index[:-1]
        odd = int(np.argmax(np.asarray(steps != steps[0])))
        raise ValueError(
            f"expected evenly spaced time stamps or a freq, got steps of {steps[0]} and of {steps[odd]} "
            f"after {index[odd]}"
        )
    return frequency


def positions(index: pd.DatetimeIndex, frequency: Frequency) -> NDArray[np.int64]:
    """Steps of each (increasing) time stamp from the first; ValueError where one is off the grid."""
    if frequency.unit in MONTHS:
        step, elapsed = MONTHS[frequency.unit] * frequency.multiple, _month_number(index)
    elif frequency.unit in NANOSECONDS:
        step = NANOSECONDS[frequency.unit] * frequency.multiple
        elapsed = _nanoseconds(_local(index) if frequency.unit in _CALENDAR_DAYS else index)
    else:
        return _positions_by_offset(index, frequency)
    elapsed = elapsed - elapsed[0]
    _require(index, elapsed % step == 0, frequency)
    place = elapsed // step
    _require(index, np.diff(place, prepend=-1) > 0, frequency)
    if place[-1] >= MAX_GRID:
        raise ValueError(f"expected at most {MAX_GRID} steps of {frequency.offset_alias!r}, got {place[-1] + 1}")
    return np.asarray(place, np.int64)


def future(index: pd.DatetimeIndex, frequency: Frequency, horizon: int, origin: int = -1) -> pd.DatetimeIndex:
    """The `horizon` time stamps after `index[origin]`, at its place within the month, week or day."""
    steps = np.arange(1, horizon + 1) * frequency.multiple
    local = _local(index)
    start = local[origin]
    if frequency.unit in MONTHS:
        after = _months_after(start, steps * MONTHS[frequency.unit], bool(local.is_month_end.all()))
    elif frequency.unit in NANOSECONDS:
        elapsed = pd.to_timedelta(steps * NANOSECONDS[frequency.unit], unit="ns")
        if frequency.unit not in _CALENDAR_DAYS:
            return pd.DatetimeIndex(index[origin] + elapsed)
        after = pd.DatetimeIndex(start + elapsed)
    else:
        dates = pd.date_range(start, periods=horizon + 1, freq=frequency.offset_alias)
        after = dates[dates > start][:horizon]
    if index.tz is None:
        return after
    first_of_two = np.ones(len(after), bool)
    return after.tz_localize(index.tz, nonexistent="shift_forward", ambiguous=first_of_two)


def _months(index: pd.DatetimeIndex) -> Frequency | None:
    local = _local(index)
    time_of_day = local - local.normalize()
    steps = np.diff(_month_number(local))
    first, last = bool((local.day == 1).all()), bool(local.is_month_end.all())
    same_place = first or last or bool((local.day == local.day[0]).all())
    if not same_place or steps[0] < 1 or (steps != steps[0]).any() or (time_of_day != time_of_day[0]).any():
        return None
    size = next(size for size in (12, 3, 1) if steps[0] % size == 0)
    unit = {12: "year", 3: "quarter", 1: "month"}[size]
    anchor = None if size == 1 else _month_name(local, size, first)
    return Frequency(unit + " start" * first, int(steps[0]) // size, anchor)


def _month_name(local: pd.DatetimeIndex, size: int, first: bool) -> str:
    """A year is named by its month; a quarter by the pandas default of the cycle that it belongs to."""
    month = int(local.month[-1])
    if size == 3:
        month = (month - 1) % 3 + (1 if first else 10)
    return pd.Timestamp(2000, month, 1).strftime("%b").upper()


def _fixed(index: pd.DatetimeIndex) -> Frequency | None:
    local, day = _local(index), NANOSECONDS["day"]
    for steps, is_calendar in ((np.diff(_nanoseconds(local)), True), (np.diff(_nanoseconds(index)), False)):
        step = int(steps[0])
        if (steps == step).all() and (step % day == 0 or not is_calendar):
            unit = next(unit for unit, size in NANOSECONDS.items() if step % size == 0)
            anchor = local[-1].strftime("%a").upper() if unit == "week" else None
            return Frequency(unit, step // NANOSECONDS[unit], anchor)
    return None


def _business_days(index: pd.DatetimeIndex) -> Frequency | None:
    local = _local(index)
    days = local.normalize()
    counts = np.busday_count(_dates(days[:-1]), _dates(days[1:]))
    regular = (counts == 1).all() and (local.day_of_week < 5).all() and (local - days == local[0] - days[0]).all()
    return Frequency("business day") if regular else None


def _positions_by_offset(index: pd.DatetimeIndex, frequency: Frequency) -> NDArray[np.int64]:
    local = _local(index)
    grid = pd.date_range(local[0], local[-1], freq=frequency.offset_alias)
    place = grid.get_indexer(local)
    _require(index, place >= 0, frequency)
    return np.asarray(place, np.int64)


def _require(index: pd.DatetimeIndex, on_grid: NDArray[np.bool_], frequency: Frequency) -> None:
    if not on_grid.all():
        row = int(np.argmin(on_grid))
        raise ValueError(
            f"expected time stamps whole steps of {frequency.offset_alias!r} apart, got {index[row]} "
            f"after {index[max(row - 1, 0)]}"
        )


def _months_after(start: pd.Timestamp, months: NDArray[np.int64], at_end: bool) -> pd.DatetimeIndex:
    """The same day of later months, or their last day where `at_end` or where they are too short for it."""
    month = np.datetime64(start.strftime("%Y-%m"), "M") + months
    first, length = month.astype("datetime64[D]"), (month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")
    day = np.where(at_end, length.astype(int), np.minimum(length.astype(int), start.day))
    # Whole days in seconds reach further than nanoseconds do; back in the unit of `start`, pandas checks the bounds.
    days = pd.DatetimeIndex((first + (day - 1)).astype("datetime64[s]")).as_unit(start.unit)
    return pd.DatetimeIndex(days + (start - start.normalize()))


def _local(index: pd.DatetimeIndex) -> pd.DatetimeIndex:
    return index if index.tz is None else index.tz_localize(None)


def _month_number(index: pd.DatetimeIndex) -> NDArray[np.int64]:
    local = _local(index)
    return np.asarray(local.year, np.int64) * 12 + np.asarray(local.month, np.int64)


def _nanoseconds(index: pd.DatetimeIndex) -> NDArray[np.int64]:
    return np.asarray(index.as_unit("ns").asi8, np.int64)


def _dates(index: pd.DatetimeIndex) -> NDArray[np.datetime64]:
    return index.to_numpy().astype("datetime64[D]")
