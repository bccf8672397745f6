"""The UEA archive: both layouts, files with a fault, and the split of Log-NCDE."""

from pathlib import Path

import numpy as np
import pytest

from tsseq.datasets import uea


def labelled(cases, channels=2, length=5, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(cases, channels, length)).astype(np.float32)
    return uea.LabelledSeries(values, np.full(cases, length), rng.integers(0, 3, cases), ("a", "b", "c"))


def write_npz(folder, train, test, name="Toy"):
    arrays = {"classes": np.array(train.classes)}
    for part, data in (("train", train), ("test", test)):
        values = np.nan_to_num(data.values)
        arrays |= {f"X_{part}": values, f"y_{part}": data.labels.astype(np.int16), f"len_{part}": data.lengths}
    np.savez(folder / f"{name}.npz", **arrays)


def test_uea_npz(tmp_path):
    train, test = labelled(6), labelled(4, seed=1)
    test.values[0, :, 3:] = np.nan
    test.lengths[0] = 3
    write_npz(tmp_path, train, test)
    assert uea.names(tmp_path) == ["Toy"]
    for wanted, got in zip((train, test), uea.load(tmp_path, "Toy"), strict=True):
        np.testing.assert_array_equal(got.values, wanted.values)
        np.testing.assert_array_equal(got.labels, wanted.labels)
        np.testing.assert_array_equal(got.lengths, wanted.lengths)
        assert got.classes == wanted.classes
    with pytest.raises(ValueError, match=r"expected Other\.npz or Other_TRAIN\.ts"):
        uea.load(tmp_path, "Other")


def test_uea_ts_files():
    sktime = pytest.importorskip("sktime")
    folder = Path(sktime.__file__).parent / "datasets" / "data"
    train, test = uea.load(folder, "BasicMotions")
    assert train.values.shape == test.values.shape == (40, 6, 100)
    assert len(train.classes) == 4 and np.isfinite(train.values).all()
    train, test = uea.load(folder, "JapaneseVowels")
    assert train.values.shape == (270, 12, 29) and len(test) == 370
    assert (train.lengths.min(), train.lengths.max()) == (7, 26)
    shortest = int(train.lengths.argmin())
    assert np.isnan(train.values[shortest, :, 7:]).all() and np.isfinite(train.values[shortest, :, :7]).all()


WRONG_ARRAYS = {
    "no labels": ("y_train", None, "y_train is not a file"),
    "too few labels": ("y_train", np.zeros(5, int), r"train: expected a label for each of 6 series, got shape \(5,\)"),
    "a label beyond the classes": ("y_test", np.array([0, 1, 2, 3]), "test: expected labels from 0 to 2, got 0 to 3"),
    "labels that are no places": ("y_train", np.full(6, 0.5), "y_train .integers.*same_kind"),
    "a length beyond the end": ("len_train", np.full(6, 9), "train: expected lengths from 1 to 5, got 9 to 9"),
    "no series": ("X_train", np.zeros((0, 2, 5)), r"at least one, got shape \(0, 2, 5\)"),
    "no channels": ("X_train", np.zeros((6, 5)), r"case × channel × time, at least one, got shape \(6, 5\)"),
    "words": ("X_train", np.full((6, 2, 5), "x"), "could not convert string to float"),
    "infinite": ("X_test", np.full((4, 2, 5), np.inf), "test: expected finite values or NaN, got .* in series 0"),
    "other channels": ("X_test", np.zeros((4, 3, 5)), "expected 2 channels as in the training series, got 3"),
}


@pytest.mark.parametrize("fault", WRONG_ARRAYS)
def test_uea_npz_with_a_fault_is_named(fault, tmp_path):
    write_npz(tmp_path, labelled(6), labelled(4, seed=1))
    path, (key, array, message) = tmp_path / "Toy.npz", WRONG_ARRAYS[fault]
    with np.load(path) as arrays:
        changed = {name: values for name, values in {**arrays, key: array}.items() if values is not None}
    np.savez(path, **changed)
    with pytest.raises(ValueError, match=rf"Toy\.npz.*{message}"):
        uea.load(tmp_path, "Toy")


def test_uea_npz_that_is_cut_off(tmp_path):
    write_npz(tmp_path, labelled(6), labelled(4, seed=1))
    path = tmp_path / "Toy.npz"
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"Toy\.npz: expected an npz file with X_train"):
            uea.load(tmp_path, "Toy")


def test_uea_ts_files_with_a_fault_are_named(tmp_path):
    pytest.importorskip("sktime")
    head = "@problemName Toy\n@timeStamps false\n@univariate false\n@classLabel true a b\n@data\n"
    good = "1,2:3,4:a\n5,6:7,8:b\n"
    for rows, message in (
        (good.replace(":b", ""), "a class for each series"),
        ("", "a class for each series"),
        (good.replace("5", "x"), "could not convert string to float"),
        (good.replace("5,6:", "5:"), "same shape"),
        (good.replace("5", "inf"), "expected finite values or NaN, got an infinite one in series 1"),
        ("1,2:a\n5,6:b\n", "expected 2 channels as in the training series, got 1"),
    ):
        (tmp_path / "Toy_TRAIN.ts").write_text(head + good)
        (tmp_path / "Toy_TEST.ts").write_text(head + rows)
        with pytest.raises(ValueError, match=rf"Toy_TEST\.ts.*{message}"):
            uea.load(tmp_path, "Toy")


def test_uea_resplit():
    train, test = labelled(60), labelled(40, seed=1)
    test.values[:5], test.labels[:5] = train.values[:5], train.labels[:5]
    parts = uea.resplit(train, test, uea.SEEDS[0])
    assert [len(part) for part in parts] == [66, 14, 15]
    seen = np.concatenate([part.values for part in parts]).reshape(95, -1)
    assert len(np.unique(seen, axis=0)) == 95
    again, other = uea.resplit(train, test, uea.SEEDS[0]), uea.resplit(train, test, uea.SEEDS[1])
    np.testing.assert_array_equal(parts[0].values, again[0].values)
    assert not np.array_equal(parts[0].values, other[0].values)
