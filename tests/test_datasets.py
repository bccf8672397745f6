"""Where real series come from: bundled ones, files, and the three benchmarks."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tsseq.datasets import DATASETS, bundled, csv, gift_eval, ltsf
from tsseq.datasets.panel import from_series
from tsseq.datasets.series import Series, read_arrow_folder, read_parquet, write_parquet
from tsseq.datasets.windows import last_windows
from tsseq.seasonal_naive import SeasonalNaive


def test_registry_is_documented():
    assert set(DATASETS) >= {"bundled", "csv", "gift_eval", "ltsf", "uea"}
    assert all(callable(load) and load.__doc__ for load in DATASETS.values())


@pytest.mark.parametrize("name", bundled.names())
def test_bundled_series(name):
    panel = bundled.load(name)
    assert list(panel.ids) == [name]
    assert len(panel.values[0]) == len(panel.grids[0].index) >= 100
    assert np.isfinite(panel.values[0]).all()
    assert name in bundled.__doc__


def test_airline():
    panel = bundled.load("airline")
    stamps, values = panel.grids[0].index, panel.values[0]
    assert (str(stamps[0].date()), str(stamps[-1].date())) == ("1949-01-01", "1960-12-01")
    assert list(values[:3]) == [112, 118, 132] and list(values[-2:]) == [390, 432]
    assert values.sum() == 40363
    assert list(panel.future(0, 2)) == [pd.Timestamp("1961-01-01"), pd.Timestamp("1961-02-01")]
    with pytest.raises(ValueError, match="no bundled series 'train': expected airline"):
        bundled.load("train")


@pytest.fixture
def wide():
    stamps = pd.date_range("2024-01-01", periods=6, freq="h")
    return pd.DataFrame({"time": stamps, "a": [1.0, 2, np.nan, 4, 5, 6], "b": np.arange(6.0)})


@pytest.fixture
def long(wide):
    return wide.melt("time", var_name="item_id", value_name="target")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("layout", ["wide", "long"])
def test_files_wide_and_long(layout, suffix, wide, long, tmp_path):
    table, path = {"wide": wide, "long": long}[layout], tmp_path / f"series{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path, index=False)
    panel = csv.load(path)
    assert list(panel.ids) == ["a", "b"]
    np.testing.assert_array_equal(panel.values[0], [1, 2, np.nan, 4, 5, 6])
    assert list(panel.future(1, 2)) == list(pd.date_range("2024-01-01 06:00", periods=2, freq="h"))


def test_csv_with_its_index_written(wide, tmp_path):
    wide.set_index("time").to_csv(tmp_path / "named.csv")
    wide.drop(columns="time").to_csv(tmp_path / "numbered.csv")
    assert list(csv.load(tmp_path / "named.csv").ids) == ["a", "b"]
    assert list(csv.load(tmp_path / "numbered.csv").ids) == ["a", "b"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty.csv", "", "got an empty file"),
        ("header.csv", "time,a\n", "rows below the header, got none under time, a"),
        ("ragged.csv", "a,b\n1,2\n1,2,3,4\n", "expected comma-separated text.*line 3"),
        ("semicolons.csv", "time;a\n2024-01-01;1,5\n", "separated by commas, got ';'"),
        ("headless.csv", "112\n118\n132\n", "column names in the first line, got numbers: 112"),
        ("words.csv", "time,a\n2024-01-01,x\n2024-01-02,y\n", "numeric column, got 'time', 'a'"),
        ("broken.parquet", "PAR1 but not really", "expected a parquet file"),
        ("empty.parquet", "", "expected a parquet file"),
    ],
)
def test_bad_files(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        csv.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        csv.load(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="is a folder"):
        csv.load(tmp_path)
    (tmp_path / "image.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ValueError, match=r"image\.csv"):
        csv.load(tmp_path / "image.csv")


SERIES = [
    Series("a", np.array([1, 2, np.nan], np.float32), "2024-01-31", "M"),
    Series("b", np.array([4, 5], np.float32), "2024-01-31", "M"),
]


def test_lists_in_parquet(tmp_path):
    path = tmp_path / "lists.parquet"
    write_parquet(path, SERIES)
    back = read_parquet(path)
    for one, other in zip(SERIES, back, strict=True):
        assert (one.item_id, one.start, one.freq) == (other.item_id, other.start, other.freq)
        np.testing.assert_array_equal(one.target, other.target)
    panel = csv.load(path)
    assert list(panel.ids) == ["a", "b"]
    assert list(panel.future(0, 1)) == [pd.Timestamp("2024-04-30")]
    assert list(panel.future(1, 1)) == [pd.Timestamp("2024-03-31")]


def test_lists_of_channels(tmp_path):
    target = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_parquet(tmp_path / "two.parquet", [Series("m", target, "2024-01-01", "H")])
    (back,) = read_parquet(tmp_path / "two.parquet")
    np.testing.assert_array_equal(back.target, target)
    panel = from_series([back])
    assert list(panel.ids) == ["m_dim0", "m_dim1"]
    assert panel.future(1, 1)[0] == pd.Timestamp("2024-01-01 03:00")


def test_lists_without_start_count_from_zero():
    panel = from_series([Series("a", np.ones(3, np.float32))])
    assert list(panel.future(0, 2)) == [3, 4]
    with pytest.raises(ValueError, match="got an empty table"):
        from_series([])
    with pytest.raises(ValueError, match="series 'a': expected at least one observed"):
        from_series([Series("a", np.full(3, np.nan, np.float32))])


def write_arrow_folder(path: Path, series, shards=2):
    """The layout of Hugging Face's `save_to_disk`: streams of record batches, named in state.json."""
    import pyarrow as pa

    path.mkdir(parents=True)
    target = pa.list_(pa.float32()) if series[0].target.ndim == 1 else pa.list_(pa.list_(pa.float32()))
    schema = pa.schema(
        [("item_id", pa.string()), ("start", pa.timestamp("s")), ("freq", pa.string()), ("target", target)]
    )
    names = []
    for shard in range(shards):
        rows = series[shard::shards]
        columns = [
            [s.item_id for s in rows],
            [pd.Timestamp(s.start) for s in rows],
            [s.freq for s in rows],
            [s.target.tolist() for s in rows],
        ]
        arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
        names.append({"filename": f"data-{shard:05d}-of-{shards:05d}.arrow"})
        with pa.ipc.new_stream(path / names[-1]["filename"], schema) as stream:
            stream.write_batch(pa.record_batch(arrays, schema))
    (path / "state.json").write_text(json.dumps({"_data_files": names, "_split": None}))


def test_arrow_folders(tmp_path):
    write_arrow_folder(tmp_path / "x", SERIES)
    back = read_arrow_folder(tmp_path / "x")
    assert [s.item_id for s in back] == ["a", "b"]
    np.testing.assert_array_equal(back[0].target, SERIES[0].target)
    assert pd.Timestamp(back[0].start) == pd.Timestamp("2024-01-31")
    with pytest.raises(ValueError, match="not a dataset saved to disk"):
        read_arrow_folder(tmp_path)
    (tmp_path / "x" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="not a dataset saved to disk"):
        read_arrow_folder(tmp_path / "x")


def test_parquet_of_something_else(tmp_path):
    pd.DataFrame({"item_id": ["a"], "values": [1.0]}).to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(ValueError, match="expected columns item_id, start, freq, target, got item_id, values"):
        read_parquet(tmp_path / "odd.parquet")


@pytest.mark.parametrize(
    "target, message",
    [
        (["abc"], "series 'a': expected a target of lists of numbers, got string"),
        ([1.0], "series 'a': expected a target of lists of numbers, got double"),
        ([["x", "y"]], "series 'a': could not convert string to float: 'x'"),
        ([[1.0], None], "series 'b': expected a target of lists of numbers, got none"),
        ([[[1.0, 2.0], [3.0]]], "series 'a': all input arrays must have the same shape"),
        ([[1.0], [2.0, np.inf]], "series 'b': expected finite values or NaN, got an infinite one"),
        ([], "expected at least one series, got none"),
    ],
)
def test_lists_with_a_fault_are_named(target, message, tmp_path):
    path, ids = tmp_path / "lists.parquet", ["a", "b"][: len(target)]
    pd.DataFrame({"item_id": ids, "start": "2024-01-31", "freq": "M", "target": target}).to_parquet(path)
    with pytest.raises(ValueError, match=rf"lists\.parquet: {message}"):
        read_parquet(path)


def test_configurations():
    terms = [c.term for c in gift_eval.CONFIGURATIONS.values()]
    assert (len(terms), terms.count("short"), terms.count("medium"), terms.count("long")) == (97, 55, 21, 21)
    domains = pd.Series([c.domain for c in gift_eval.CONFIGURATIONS.values()]).value_counts()
    assert set(domains.index) == {"Energy", "Transport", "Web/CloudOps", "Sales", "Nature", "Econ/Fin", "Healthcare"}
    assert set(gift_eval.QUICK) <= set(gift_eval.CONFIGURATIONS)


@pytest.mark.parametrize(
    "name, horizon, season, folder",
    [
        ("electricity/15T/long", 720, 96, "electricity/15T"),
        ("bizitobs_service/10S/medium", 600, 360, "bizitobs_service"),
        ("saugeen/W/short", 8, 1, "saugeenday/W"),
        ("loop_seattle/D/short", 30, 1, "LOOP_SEATTLE/D"),
        ("car_parts/M/short", 12, 12, "car_parts_with_missing"),
        ("m4_monthly/M/short", 18, 12, "m4_monthly"),
        ("m4_yearly/A/short", 6, 1, "m4_yearly"),
        ("m4_quarterly/Q/short", 8, 4, "m4_quarterly"),
        ("m4_daily/D/short", 14, 1, "m4_daily"),
    ],
)
def test_horizons_and_seasons(name, horizon, season, folder):
    configuration = gift_eval.CONFIGURATIONS[name]
    assert (configuration.horizon, configuration.seasonality, configuration.folder) == (horizon, season, folder)


def test_window_counts():
    def count(name, length):
        return gift_eval.window_count(gift_eval.CONFIGURATIONS[name], length)

    assert count("ett1/15T/long", 69680) == 10
    assert count("ett1/H/short", 17420) == 20
    assert count("us_births/M/short", 240) == 2
    assert count("hospital/M/short", 84) == 1
    assert count("m4_hourly/H/short", 100_000) == 1


def test_windows_are_the_last_ones():
    series = [Series("m", np.arange(20, dtype=np.float32).reshape(2, 10)), Series("n", np.arange(8, dtype=np.float32))]
    cut = last_windows(series, 2, 3)
    assert [len(c) for c in cut.contexts] == [4, 6, 8] * 2 + [2, 4, 6]
    assert cut.labels.tolist()[:3] == [[4, 5], [6, 7], [8, 9]]
    assert cut.labels.tolist()[-1] == [6, 7]
    for context, label in zip(cut.contexts, cut.labels, strict=True):
        assert context[-1] + 1 == label[0]
    sizes = [len(batch) for batch in cut.batches(4)]
    assert sizes == [4, 4, 1]
    assert sum(len(batch) for batch in cut.batches(100, points=10)) == 9
    with pytest.raises(ValueError, match="more than 8 values for 4 windows of 2, got 8 in series 'n'"):
        last_windows(series, 2, 4)


def test_both_layouts_score_the_same(tmp_path):
    rng = np.random.default_rng(0)
    series = [Series(f"s{i}", rng.normal(size=84).astype(np.float32), "2000-01-31", "M") for i in range(5)]
    for folder, write in (("official", write_arrow_folder), ("plain", write_parquet)):
        (tmp_path / folder).mkdir()
        name = "hospital" if folder == "official" else "hospital__M.parquet"
        write(tmp_path / folder / name, series)
    tables = []
    for folder in ("official", "plain"):
        assert gift_eval.available(tmp_path / folder) == ["hospital/M/short"]
        tables.append(gift_eval.evaluate(SeasonalNaive(12), tmp_path / folder).drop(columns="seconds"))
    assert tables[0]["mase_ratio"].item() == 1.0 and tables[0]["crps_ratio"].item() == 1.0
    # Shards are read one after the other, so the order of the series differs and rounding with it.
    pd.testing.assert_frame_equal(*tables, rtol=1e-12)


def test_batches_do_not_change_scores(tmp_path):
    rng = np.random.default_rng(0)
    series = [Series(f"s{i}", rng.normal(size=260).astype(np.float32), "2014-01-08", "W-WED") for i in range(7)]
    write_parquet(tmp_path / "hierarchical_sales__W.parquet", series)
    whole, parts = (
        gift_eval.evaluate(SeasonalNaive(4), tmp_path, batch_size=size).drop(columns="seconds") for size in (4096, 5)
    )
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-12)


class MissingWhereNothing(SeasonalNaive):
    """As our forecasters: Seasonal Naive itself forecasts zero after a history without any observation."""

    def forecast(self, context, horizon, quantile_levels):
        empty = np.array([np.isnan(values).all() for values in context])
        forecast = super().forecast(context, horizon, quantile_levels)
        forecast.mean[empty] = forecast.quantiles[empty] = np.nan
        return forecast


def test_what_follows_nothing_is_scored_as_forecast_as_zero(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "hospital__M.parquet"
    series = [Series(f"s{i}", rng.normal(size=84).astype(np.float32), "2000-01-31", "M") for i in range(3)]
    for observed in (0, 3):
        series[1].target[:] = np.nan
        series[1].target[84 - observed :] = 7.0
        write_parquet(path, series)
        found, expected = (
            gift_eval.evaluate(kind(12), tmp_path).drop(columns=["seconds"])
            for kind in (MissingWhereNothing, SeasonalNaive)
        )
        pd.testing.assert_frame_equal(found, expected)
    write_parquet(path, [Series("t", np.full(84, np.nan, np.float32), "2000-01-31", "M")])
    with pytest.raises(ValueError, match="at least one observed value among those to be forecast"):
        gift_eval.evaluate(SeasonalNaive(12), tmp_path)


def test_missing_benchmark_data(tmp_path, monkeypatch):
    monkeypatch.delenv("GIFT_EVAL", raising=False)
    with pytest.raises(ValueError, match="in an argument or in GIFT_EVAL, got neither"):
        gift_eval.root()
    with pytest.raises(ValueError, match="not a folder"):
        gift_eval.root(tmp_path / "nowhere")
    monkeypatch.setenv("GIFT_EVAL", str(tmp_path))
    with pytest.raises(ValueError, match="none of its 97 configurations"):
        gift_eval.evaluate(SeasonalNaive())
    with pytest.raises(ValueError, match=r"expected a folder .*hospital or a file hospital__M\.parquet"):
        gift_eval.load(None, "hospital/M/short")
    with pytest.raises(ValueError, match="no GIFT-Eval configuration 'ett1/H/tiny': expected ett1/15T/short"):
        gift_eval.named("ett1/H/tiny")


def test_ltsf_protocol(tmp_path):
    rng = np.random.default_rng(0)
    hours = pd.DataFrame(rng.normal(5, 3, (14_400, 2)), columns=["HUFL", "OT"])
    hours.insert(0, "date", pd.date_range("2016-07-01", periods=14_400, freq="h").astype(str))
    hours.to_csv(tmp_path / "ETTh9.csv", index=False)
    one = ltsf.load(tmp_path, "ETTh9")
    assert one.parts == (8640, 11520, 14400)
    training = one.values[:, :8640]
    assert training.mean(axis=1) == pytest.approx([0, 0], abs=1e-5)
    assert training.std(axis=1) == pytest.approx([1, 1], abs=1e-5)
    windows = list(one.windows(336, 96))
    assert len(windows) == 2880 - 96 + 1
    np.testing.assert_array_equal(windows[0][1][:, 0], one.values[:, 11520])
    np.testing.assert_array_equal(windows[0][0][:, -1], one.values[:, 11519])
    np.testing.assert_array_equal(windows[-1][1][:, -1], one.values[:, -1])
    assert len(list(one.windows(336, 96, "train"))) == 8640 - 336 - 96 + 1
    assert ltsf.split("exchange_rate", 7588) == (5311, 6071, 7588)
    with pytest.raises(ValueError, match=r"expected ltsf_none\.parquet or none\.csv"):
        ltsf.load(tmp_path, "none")
    with pytest.raises(ValueError, match="at least 14400 steps in ETTh1, got 100"):
        ltsf.split("ETTh1", 100)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_ltsf_sets_with_a_fault_are_named(value, tmp_path):
    pd.DataFrame({"date": ["2020-01-01"] * 3, "a": [1.0, 2.0, value]}).to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(ValueError, match=r"one\.csv: expected columns of finite numbers"):
        ltsf.load(tmp_path, "one")
    write_parquet(tmp_path / "ltsf_two.parquet", SERIES)
    with pytest.raises(ValueError, match=r"ltsf_two\.parquet: expected one series of several channels, got 2"):
        ltsf.load(tmp_path, "two")


@pytest.mark.skipif("TSSEQ_GIFT_EVAL" not in os.environ, reason="TSSEQ_GIFT_EVAL names no folder")
def test_real_benchmark_folder():
    folder = os.environ["TSSEQ_GIFT_EVAL"]
    assert len(gift_eval.available(folder)) >= 33
    published = gift_eval.published_ratios(folder)
    assert (published.query("model == 'seasonal_naive'")["mase_ratio"] == 1).all()
