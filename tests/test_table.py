"""pandas tables in, pandas tables out: layouts, indexes, frequencies, and every kind of bad input."""

import warnings

import numpy as np
import pandas as pd
import pytest

import tsseq
from tsseq.seasonal_naive import SeasonalNaive
from tsseq.table import forecast

LEVELS = (0.1, 0.5, 0.9)


class Recorder:
    """Seasonal Naive that remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def forecast(self, context, horizon, quantile_levels):
        self.calls.append([np.asarray(series) for series in context])
        return SeasonalNaive(3).forecast(context, horizon, quantile_levels)


def run(data, horizon=3, model=None, **options):
    return forecast(data, horizon, model=model or SeasonalNaive(3), quantile_levels=LEVELS, **options)


def long_table(days=8):
    stamps = pd.date_range("2024-01-01", periods=days)
    return pd.DataFrame(
        {
            "unique_id": ["zebra"] * days + ["ant"] * days + ["01"] * days,
            "ds": [*stamps] * 3,
            "y": np.arange(3.0 * days),
        }
    )


def test_long_table_keeps_names_order_and_dates():
    recorder = Recorder()
    result = run(long_table(), model=recorder)
    assert list(result.columns) == ["item_id", "timestamp", "mean", "0.1", "0.5", "0.9"]
    assert list(result["item_id"]) == ["zebra"] * 3 + ["ant"] * 3 + ["01"] * 3
    assert list(result["timestamp"][:3]) == list(pd.date_range("2024-01-09", periods=3))
    assert list(result["mean"][3:6]) == [13.0, 14.0, 15.0]
    assert (result["0.1"] <= result["0.5"]).all() and (result["0.5"] <= result["0.9"]).all()
    assert len(recorder.calls) == 1, "all series go into one call"


def test_rows_of_series_may_interleave():
    table = long_table()
    shuffled = table.sort_values(["ds", "unique_id"], kind="stable")
    expected = run(table).set_index("item_id").loc[["01", "ant", "zebra"]].reset_index()
    pd.testing.assert_frame_equal(run(shuffled), expected)


def test_wide_and_long_agree():
    table = long_table()
    wide = table.pivot(index="ds", columns="unique_id", values="y")[["zebra", "ant", "01"]]
    wide.columns.name = None
    pd.testing.assert_frame_equal(run(wide), run(table), check_names=False)
    pd.testing.assert_frame_equal(run(wide.reset_index()), run(table), check_names=False)


def test_levels_in_any_order_name_their_columns():
    result = forecast(long_table(), 2, model=SeasonalNaive(3), quantile_levels=(0.9, 0.025, 0.5))
    assert list(result.columns[3:]) == ["0.9", "0.025", "0.5"]
    assert (result["0.025"] < result["0.9"]).all()


def test_named_columns():
    table = long_table().rename(columns={"unique_id": "shop", "ds": "when", "y": "sold"})
    table["price"] = 1.0
    with pytest.warns(UserWarning, match="columns not used: 'price'"):
        result = run(table, id_column="shop", time_column="when", target_column="sold")
    pd.testing.assert_frame_equal(result, run(long_table()))


def test_index_of_series_and_time():
    indexed = long_table().set_index(["unique_id", "ds"])
    pd.testing.assert_frame_equal(run(indexed), run(long_table()))


@pytest.mark.parametrize("dtype", ["string", "category", "object"])
def test_types_of_names(dtype):
    result = run(long_table().astype({"unique_id": dtype}))
    assert list(map(str, result["item_id"].unique())) == ["zebra", "ant", "01"]


def test_numbers_of_any_type():
    table = long_table()
    expected = run(table)
    for column in (
        table["y"].astype(int),
        table["y"].astype("Float64"),
        table["y"].astype(str),
        table["y"].astype(object),
    ):
        pd.testing.assert_frame_equal(run(table.assign(y=column)), expected)


EVERY_INDEX = {
    "range": (pd.RangeIndex(6), [6, 7]),
    "years": (pd.Index(range(1950, 1956)), [1956, 1957]),
    "tens": (pd.Index([0, 10, 20, 30, 40, 50]), [60, 70]),
    "months": (pd.date_range("2020-01-01", periods=6, freq="MS"), pd.to_datetime(["2020-07-01", "2020-08-01"])),
    "six o'clock": (
        pd.date_range("2020-01-31 06:00", periods=6),
        pd.to_datetime(["2020-02-06 06:00", "2020-02-07 06:00"]),
    ),
    "business days": (
        pd.date_range("2024-01-01", periods=6, freq="B"),
        pd.to_datetime(["2024-01-09", "2024-01-10"]),
    ),
    "quarters": (pd.period_range("2020Q1", periods=6, freq="Q"), pd.period_range("2021Q3", periods=2, freq="Q")),
    "month periods": (
        pd.period_range("2020-01", periods=6, freq="M"),
        pd.period_range("2020-07", periods=2, freq="M"),
    ),
    "days over a change of clocks": (
        pd.date_range("2024-03-28", periods=6, tz="Europe/Berlin"),
        pd.date_range("2024-04-03", periods=2, tz="Europe/Berlin"),
    ),
    "hours over a change of clocks": (
        pd.date_range("2024-10-26 22:00", periods=6, freq="h", tz="Europe/Berlin"),
        pd.date_range("2024-10-27 03:00", periods=2, freq="h", tz="Europe/Berlin"),
    ),
}


@pytest.mark.parametrize("case", EVERY_INDEX)
def test_every_index(case):
    index, following = EVERY_INDEX[case]
    result = run(pd.Series(np.arange(6.0), index=index, name="x"), 2)
    assert list(result["timestamp"]) == list(following)
    assert list(result["item_id"]) == ["x", "x"]


@pytest.mark.parametrize(
    "old, new", [("H", "h"), ("T", "min"), ("M", "ME"), ("Q", "QE"), ("A", "YE"), ("15T", "15min")]
)
def test_old_and_new_aliases(old, new):
    one = pd.Series([1.0], index=pd.DatetimeIndex(["2020-12-31"]))
    pd.testing.assert_frame_equal(run(one, freq=old), run(one, freq=new))


def test_dates_as_text():
    table = long_table()
    pd.testing.assert_frame_equal(
        run(table.assign(ds=table["ds"].dt.strftime("%Y-%m-%d"))), run(table), check_dtype=False
    )
    first = pd.DataFrame({"whatever": ["2024-01-01", "2024-01-02", "2024-01-03"], "x": [1.0, 2.0, 3.0]})
    assert list(run(first, 1)["timestamp"]) == [pd.Timestamp("2024-01-04")]


ARROW = ["timestamp[us][pyarrow]", "timestamp[ns, tz=Europe/Berlin][pyarrow]", "date32[pyarrow]"]


@pytest.mark.parametrize("dtype", ["object", "string", "category", "date", *ARROW])
def test_types_of_dates(dtype):
    if dtype in ARROW:
        pytest.importorskip("pyarrow")
    stamps = pd.date_range("2024-02-20", periods=12, tz="Europe/Berlin" if "Berlin" in dtype else None)
    text = stamps[:-1].strftime("%Y-%m-%d")
    written = stamps[:-1].date if dtype == "date" else stamps[:-1].astype(dtype) if dtype in ARROW else text
    index = pd.Index(written, dtype=None if dtype in ("date", *ARROW) else dtype)
    for table in (pd.Series(np.arange(11.0), index=index), pd.DataFrame({"date": index, "x": np.arange(11.0)})):
        assert list(run(table, 1)["timestamp"]) == [stamps[-1]]


def test_labels_beside_a_column_of_time_do_not_matter():
    table = long_table()
    labelled = table.set_axis([f"row {row}" for row in range(len(table))])
    pd.testing.assert_frame_equal(run(labelled), run(table))


def test_whole_numbers_of_any_type_are_an_index():
    for index in (pd.Index([4.0, 6.0, 8.0]), pd.Index(["4", "6", "8"]), pd.Index([4, 6, 8], dtype="Int64")):
        assert list(run(pd.Series([1.0, 2.0, 3.0], index=index), 1)["timestamp"]) == [10]


def test_missing_values_and_missing_rows():
    stamps = pd.date_range("2024-01-01", periods=6)
    values = [1.0, np.nan, 3.0, 4.0, np.nan, np.nan]
    recorder = Recorder()
    run(pd.Series(values, index=stamps), model=recorder)
    np.testing.assert_array_equal(recorder.calls[0][0], values)
    # With a frequency, an absent row is a missing value.
    result = run(pd.Series([1.0, 3.0, 4.0], index=stamps[[0, 2, 3]]), model=recorder, freq="D")
    np.testing.assert_array_equal(recorder.calls[1][0], [1.0, np.nan, 3.0, 4.0])
    assert result["timestamp"].iloc[0] == pd.Timestamp("2024-01-05")


def test_series_of_different_frequencies():
    table = pd.DataFrame(
        {
            "item_id": ["a"] * 3 + ["b"] * 3,
            "timestamp": [
                *pd.date_range("2024-01-01", periods=3, freq="h"),
                *pd.date_range("2020", periods=3, freq="YS"),
            ],
            "target": np.arange(6.0),
        }
    )
    assert list(run(table, 1)["timestamp"]) == [pd.Timestamp("2024-01-01 03:00"), pd.Timestamp("2023-01-01")]


def test_label_column_with_repeated_dates_names_the_series():
    table = long_table().rename(columns={"unique_id": "shop"})
    pd.testing.assert_frame_equal(run(table), run(long_table()))


def test_text_beside_a_wide_table_is_left_out_aloud():
    table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=3), "x": [1.0, 2, 3], "note": list("abc")})
    with pytest.warns(UserWarning, match="'note'"):
        assert list(run(table, 1)["item_id"]) == ["x"]


DAYS = pd.date_range("2024-01-01", periods=5)
BAD = {
    "empty table": (pd.DataFrame(), {}, "empty table"),
    "no rows": (pd.DataFrame({"date": [], "x": []}), {}, "empty table"),
    "no numeric column": (pd.DataFrame({"date": DAYS, "x": list("abcde")}), {}, "numeric column, got 'date', 'x'"),
    "text among numbers": (
        pd.DataFrame({"date": DAYS, "x": ["1", "2", "oops", "4", "5"]}),
        {},
        "column 'x', got 'oops' in row 3",
    ),
    "unsorted": (
        pd.DataFrame({"date": DAYS[[0, 1, 3, 2, 4]], "x": range(5)}),
        {},
        "increasing time stamps, got 2024-01-03 00:00:00 after 2024-01-04 00:00:00 in row 4",
    ),
    "repeated": (
        pd.DataFrame({"date": DAYS[[0, 1, 1, 2, 3]], "x": range(5)}),
        {},
        "2024-01-02 00:00:00 twice in row 3",
    ),
    "unknown frequency": (pd.Series(range(5), index=DAYS), {"freq": "fortnight"}, "unknown frequency 'fortnight'"),
    "irregular": (pd.Series(range(4), index=DAYS[[0, 1, 2, 4]]), {}, "evenly spaced time stamps or a freq"),
    "off the grid": (pd.Series(range(5), index=DAYS), {"freq": "2D"}, "whole steps of '2D'"),
    "one stamp, no freq": (pd.Series([1.0], index=pd.to_datetime(["2024-01-01"])), {}, "pass freq"),
    "freq without stamps": (pd.Series(range(5)), {"freq": "h"}, "time stamps to go with freq 'h', got integers"),
    "uneven integers": (pd.Series(range(4), index=[0, 1, 2, 5]), {}, "evenly spaced integers, got 5 after 2"),
    "gap in periods": (
        pd.Series(range(3), index=pd.PeriodIndex(["2020-01", "2020-02", "2020-04"], freq="M")),
        {},
        "consecutive periods or a freq, got 2020-04 after 2020-02",
    ),
    "wrong freq of periods": (
        pd.Series(range(3), index=pd.period_range("2020-01", periods=3, freq="M")),
        {"freq": "D"},
        "expected freq 'M' as in the periods, got 'D'",
    ),
    "all missing": (
        pd.DataFrame({"a": range(5), "b": [np.nan] * 5}, index=DAYS),
        {},
        "series 'b': expected at least one",
    ),
    "infinite": (pd.DataFrame({"a": [0, 1, np.inf, 3, 4]}, index=DAYS), {}, "finite values, got inf in row 3"),
    "beyond float32": (pd.DataFrame({"a": [0, 1, 1e39, 3, 4]}, index=DAYS), {}, "got 1e\\+39 in row 3"),
    "one name twice": (
        pd.DataFrame(np.ones((2, 2)), columns=["a", "a"]),
        {},
        "distinct column names, got 'a' twice",
    ),
    "unknown column": (pd.DataFrame({"a": range(5)}, index=DAYS), {"target_column": "b"}, "a column 'b', got 'a'"),
    "two targets": (
        pd.DataFrame({"item_id": list("aabbb"), "u": range(5), "v": range(5)}),
        {},
        "one target column beside the series column 'item_id', got 'u', 'v'",
    ),
    "nameless series": (pd.DataFrame({"item_id": ["a", None], "y": [1, 2]}), {}, "column 'item_id', got none in row 2"),
    "series without time": (pd.DataFrame({"shop": list("aabbb"), "y": range(5)}), {}, "pass id_column \\('shop'\\)"),
    "bad date": (pd.DataFrame({"date": ["2024-01-01", "soon"], "y": [1, 2]}), {}, "column 'date', got 'soon' in row 2"),
    "no date": (pd.DataFrame({"date": [DAYS[0], pd.NaT], "y": [1, 2]}), {}, "column 'date', got none in row 2"),
    "fractional time": (
        pd.DataFrame({"t": [0.5, 1.5], "y": [1, 2]}),
        {"time_column": "t"},
        "time stamps or integers in column 't'",
    ),
    "index of labels": (
        pd.Series(range(3), index=list("abc")),
        {},
        r"in the index, got 'a' in row 1 \(after reset_index",
    ),
    "index of times since": (pd.Series(range(2), index=pd.to_timedelta([0, 1], unit="h")), {}, "index, got Timedelta"),
    "index of fractions": (pd.Series(range(2), index=[0.5, 1.5]), {}, "or integers in the index, got float64 numbers"),
    "index with a hole": (
        pd.Series(range(5), index=DAYS.where(DAYS != DAYS[3])),
        {},
        "row of the index, got none in row 4",
    ),
    "index with a bad date": (pd.Series([1, 2], index=["2024-01-01", "soon"]), {}, "index, got 'soon' in row 2"),
    "not a table": ([1, 2, 3], {}, "DataFrame or Series, got list"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(case):
    data, options, message = BAD[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message) as caught:
            run(data, **options)
    assert "\n" not in str(caught.value)


def test_message_names_the_series_of_a_long_table():
    table = long_table()
    table.loc[[9, 10], "ds"] = table.loc[[10, 9], "ds"].to_numpy()
    with pytest.raises(ValueError, match="series 'ant': .*in row 11"):
        run(table)


@pytest.mark.parametrize("horizon", [0, -1, 2.5, True, "3"])
def test_bad_horizons(horizon):
    with pytest.raises(ValueError, match="horizon of one step or more"):
        run(long_table(), horizon)


@pytest.mark.parametrize("freq", ["h", "D", "W", "B", "ME", "QE", "YE"])
def test_dates_beyond_those_of_pandas(freq):
    series = pd.Series(np.arange(5.0), index=pd.date_range("2024-01-01", periods=5, freq=freq))
    horizon = 400 * {"h": 8766, "D": 366, "W": 53, "B": 262, "ME": 12, "QE": 4, "YE": 1}[freq]
    with pytest.raises(ValueError, match=f"horizon whose time stamps pandas can hold, got {horizon} steps"):
        run(series, horizon)


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.0, 0.5), (1.2,), (float("nan"),)])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match="quantile levels"):
        forecast(long_table(), 2, model=SeasonalNaive(3), quantile_levels=levels)


def test_many_series_in_one_call():
    recorder = Recorder()
    names = [f"s{i}" for i in range(500)]
    stamps = pd.date_range("2024-01-01", periods=50, freq="h")
    table = pd.DataFrame({"item_id": np.repeat(names, 50), "timestamp": [*stamps] * 500, "target": np.arange(25_000.0)})
    result = run(table, 24, model=recorder)
    assert len(recorder.calls) == 1 and len(recorder.calls[0]) == 500
    assert list(result["item_id"].unique()) == names
    alone = run(table[table["item_id"] == "s123"], 24)
    pd.testing.assert_frame_equal(result[result["item_id"] == "s123"].reset_index(drop=True), alone)


def test_exported():
    assert tsseq.forecast is forecast


def test_checkpoints_by_path_and_device(tmp_path):
    torch = pytest.importorskip("torch")
    from tsseq.backbone import BackboneConfig
    from tsseq.forecaster import Forecaster, ForecasterConfig
    from tsseq.inference import Predictor

    torch.manual_seed(0)
    small = ForecasterConfig(patch_length=8, hidden_width=8, backbone=BackboneConfig(width=16, layers=1))
    network = Forecaster(small).eval()
    path = network.save_pretrained(tmp_path / "small.safetensors")
    by_path = forecast(long_table(), 5, model=path, device="cpu")
    pd.testing.assert_frame_equal(by_path, forecast(long_table(), 5, model=Predictor(network)))
    for device in ("abacus", "cuda"):
        if device == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(ValueError, match=f"device.*{device}"):
            forecast(long_table(), 5, model=path, device=device)
    with pytest.raises(ValueError, match="no checkpoint"):
        forecast(long_table(), 5, model="no such name")
