"""Frequency aliases of every pandas, and time stamps that are found, placed and continued."""

import warnings

import numpy as np
import pandas as pd
import pytest

from tsseq.adapters.sktime_grid import find_frequency
from tsseq.datasets import time_index
from tsseq.datasets.panel import from_pandas
from tsseq.frequency import UNITS, Frequency, parse, seasonality

# any spelling -> offset alias, period alias, seasonality
ALIASES = {
    "H": ("h", "h", 24),
    "h": ("h", "h", 24),
    "2H": ("2h", "2h", 12),
    "T": ("min", "min", 1440),
    "min": ("min", "min", 1440),
    "15T": ("15min", "15min", 96),
    "15min": ("15min", "15min", 96),
    "7min": ("7min", "7min", 1),
    "S": ("s", "s", 3600),
    "10S": ("10s", "10s", 360),
    "s": ("s", "s", 3600),
    "L": ("ms", "ms", 1),
    "ms": ("ms", "ms", 1),
    "D": ("D", "D", 1),
    "2D": ("2D", "2D", 1),
    "B": ("B", "B", 5),
    "W": ("W", "W", 1),
    "W-SUN": ("W-SUN", "W-SUN", 1),
    "W-THU": ("W-THU", "W-THU", 1),
    "M": ("ME", "M", 12),
    "ME": ("ME", "M", 12),
    "MS": ("MS", "M", 12),
    "3M": ("3ME", "3M", 4),
    "5MS": ("5MS", "5M", 1),
    "Q": ("QE", "Q", 4),
    "QE": ("QE", "Q", 4),
    "Q-MAR": ("QE-MAR", "Q-MAR", 4),
    "QS": ("QS", "Q", 4),
    "QS-OCT": ("QS-OCT", "Q-SEP", 4),
    "A": ("YE", "Y", 1),
    "A-DEC": ("YE-DEC", "Y-DEC", 1),
    "Y": ("YE", "Y", 1),
    "YE": ("YE", "Y", 1),
    "AS": ("YS", "Y", 1),
    "YS-APR": ("YS-APR", "Y-MAR", 1),
    "BM": ("BME", "M", 1),
    "BMS": ("BMS", "M", 1),
    "1D12h": ("36h", "36h", 1),
    "1h30min": ("90min", "90min", 16),
}


@pytest.mark.parametrize("alias", ALIASES)
def test_every_spelling(alias):
    frequency = parse(alias)
    assert (frequency.offset_alias, frequency.period_alias, frequency.seasonality) == ALIASES[alias]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # pandas drops business-day periods some day
        offset = pd.tseries.frequencies.to_offset(frequency.offset_alias)
        assert pd.Period("2021-06-30", freq=frequency.period_alias).freqstr
    # What the installed pandas makes of it reads as the same frequency again, anchors made explicit.
    again = parse(offset)
    assert (again.unit, again.multiple) == (frequency.unit, frequency.multiple)


def test_every_unit_is_known_to_pandas():
    for unit in UNITS:
        assert pd.tseries.frequencies.to_offset(Frequency(unit).offset_alias) is not None


@pytest.mark.parametrize("alias", [a for a in ALIASES if a != "AS"])
def test_seasonality_is_that_of_gluonts(alias):
    gluonts = pytest.importorskip("gluonts.time_feature")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gluonts asks pandas for the old spellings
        assert seasonality(alias) == gluonts.get_seasonality(alias)


def test_period_start_and_its_period_are_the_same_quarter():
    stamps = pd.date_range("2020", periods=4, freq=parse("QS-FEB").offset_alias)
    periods = stamps.to_period(parse("QS-FEB").period_alias)
    assert (periods.start_time == stamps).all()


@pytest.mark.parametrize("bad", ["x", "", "0h", "-1D", "1.5h", "W-JAN", "QE-SUN", "ME-MAR", "1D1ME", None, 3, "15"])
def test_unknown_frequencies(bad):
    with pytest.raises(ValueError, match="frequency") as caught:
        parse(bad)
    assert "\n" not in str(caught.value)


def test_frequencies_without_periods():
    with pytest.raises(ValueError, match="pandas periods"):
        _ = parse("SM").period_alias


REGULAR = "YE YS YE-JUN YS-APR QE QE-FEB QS QS-FEB ME MS 2MS 5ME W-SUN 2W-FRI D 3D B h 6h 15min 10s 20ms".split()


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("freq", REGULAR)
def test_time_stamps_are_found_placed_and_continued(freq, zone):
    # A night in which Berlin changes its clocks; hours must be counted in elapsed time, days by the calendar.
    for start in ("2019-12-31 00:00", "2020-03-28 01:30"):
        stamps = pd.date_range(start, periods=40, freq=freq, tz=zone)
        past = pd.DatetimeIndex(stamps[:30], freq=None)
        found = time_index.infer(past)
        for frequency in (found, parse(freq)):
            assert (time_index.future(past, frequency, 10) == stamps[30:]).all()
            assert (time_index.positions(past, frequency) == np.arange(30)).all()
        assert found.multiple == parse(freq).multiple


def test_two_time_stamps_are_enough():
    for freq in ("h", "D", "W-WED", "MS", "ME", "YS", "15min"):
        stamps = pd.date_range("2020-01-31", periods=4, freq=freq)
        assert (time_index.future(stamps[:2], time_index.infer(stamps[:2]), 2) == stamps[2:]).all()
    with pytest.raises(ValueError, match="pass freq"):
        time_index.infer(stamps[:1])


@pytest.mark.parametrize("freq", ["BME", "BMS", "BQE", "BYE", "SMS", "bh"])
def test_offsets_without_a_fixed_length(freq):
    stamps = pd.date_range("2020-01-06 10:00", periods=30, freq=freq)
    assert (time_index.future(stamps[:20], parse(freq), 10) == stamps[20:]).all()
    assert (time_index.positions(stamps, parse(freq)) == np.arange(30)).all()


def test_place_within_the_month_is_kept():
    fifteenths = pd.date_range("2020-01-01", periods=6, freq="MS") + pd.Timedelta(days=14)
    after = time_index.future(fifteenths, time_index.infer(fifteenths), 2)
    assert list(after) == [pd.Timestamp("2020-07-15"), pd.Timestamp("2020-08-15")]
    starts = pd.date_range("2020-01-01", periods=6, freq="MS")
    assert time_index.future(starts, parse("M"), 1)[0] == pd.Timestamp("2020-07-01")


def test_months_of_unequal_length():
    thirtieths = pd.DatetimeIndex(["2023-12-30 06:00", "2024-01-30 06:00"])
    after = time_index.future(thirtieths, parse("ME"), 3)
    assert list(after) == list(pd.to_datetime(["2024-02-29 06:00", "2024-03-30 06:00", "2024-04-30 06:00"]))
    with pytest.raises(ValueError, match="(?i)out of bounds|overflow"):
        time_index.future(thirtieths.as_unit("ns"), parse("YE"), 300)


@pytest.mark.parametrize("offset", [pd.DateOffset(months=1), pd.DateOffset(days=1), pd.DateOffset(hours=6)])
def test_offsets_without_an_alias_are_found_by_their_stamps(offset):
    stamps = pd.date_range("2020-01-01", periods=20, freq=offset)
    assert time_index.carried(stamps) is None and time_index.carried(pd.date_range("2020", periods=9)) == parse("D")
    series = pd.Series(np.arange(18.0), index=stamps[:18])
    assert series.index.freq is not None
    assert list(from_pandas(series).future(0, 2)) == list(stamps[18:])
    assert find_frequency(series.index) == time_index.infer(stamps)


def test_irregular_time_stamps():
    stamps = pd.DatetimeIndex(["2020-01-01", "2020-01-02", "2020-01-04"])
    with pytest.raises(ValueError, match="2 days.*2020-01-02"):
        time_index.infer(stamps)
    assert list(time_index.positions(stamps, parse("D"))) == [0, 1, 3]
    with pytest.raises(ValueError, match="2020-01-02"):
        time_index.positions(stamps, parse("ME"))
    with pytest.raises(ValueError, match="whole steps of 'D'"):
        time_index.positions(stamps + pd.to_timedelta([0, 1, 0], unit="h"), parse("D"))
    with pytest.raises(ValueError, match="at most"):
        time_index.positions(stamps, parse("ns"))


TEXT_OF_DATES = {  # written, of which frequency and day or month first
    "dots": ("%d.%m.%Y", "D"),
    "slashes that only the day first reads": ("%d/%m/%Y", "D"),
    "hours": ("%d/%m/%Y %H:%M", "h"),
    "months, day first": ("%d/%m/%Y", "MS"),
    "months, month first": ("%m/%d/%Y", "MS"),
    "days, month first": ("%m/%d/%Y", "D"),
}


@pytest.mark.parametrize("case", TEXT_OF_DATES)
@pytest.mark.filterwarnings("error")
def test_the_order_of_day_and_month(case):
    form, freq = TEXT_OF_DATES[case]
    length = 10 if case == "dots" else 40  # ten days with dots could be ten months
    stamps = pd.date_range("2026-01-01", periods=length + 1, freq=freq)
    table = pd.DataFrame({"date": stamps[:-1].strftime(form), "x": np.arange(float(length))})
    assert list(from_pandas(table).future(0, 1)) == [stamps[-1]]


def test_dates_that_either_order_spaces_evenly_are_month_first_aloud():
    stamps = pd.date_range("2026-01-01", periods=5, freq="MS")
    table = pd.DataFrame({"date": stamps[:-1].strftime("%m/%d/%Y"), "x": range(4)})
    with pytest.warns(UserWarning, match="'date' is read month first, 02/01/2026 as 2026-02-01, though 2026-01-02"):
        assert list(from_pandas(table).future(0, 1)) == [stamps[-1]]


@pytest.mark.parametrize("form, freq", [("%Y%m%d", "D"), ("%Y%m", "MS")])
def test_whole_numbers_that_are_dates(form, freq):
    stamps = pd.date_range("2025-12-01", periods=32, freq=freq)
    numbers = stamps[:-1].strftime(form).astype(int)
    for table in (
        pd.DataFrame({"date": numbers, "x": np.arange(31.0)}),
        pd.Series(np.arange(31.0), index=numbers),
        pd.Series(np.arange(31.0), index=numbers.astype(str)),
    ):
        assert list(from_pandas(table).future(0, 1)) == [stamps[-1]]
    # One that is no date, or rows that a RangeIndex counts, and all are numbers.
    counted = pd.Series(range(20), index=pd.Index(range(202501, 202521)))
    assert list(from_pandas(counted).future(0, 1)) == [202521]
    assert list(from_pandas(counted[:6].set_axis(pd.RangeIndex(202501, 202507))).future(0, 1)) == [202507]
