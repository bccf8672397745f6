"""The UEA archive of multivariate time-series classification (Bagnall et al. 2018, arXiv 1811.00075).

Reads `<name>_TRAIN.ts` and `<name>_TEST.ts` through sktime's or aeon's own reader, and `<name>.npz` files with
the keys X_train, X_test (case × channel × time), len_*, y_* and classes.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

# The five seeds of Log-NCDE (Walker et al. 2024, arXiv 2402.18512), which SLiCE and LinOSS report on too.
SEEDS = (2345, 3456, 4567, 5678, 6789)
SHARES = (0.70, 0.15, 0.15)


@dataclass(frozen=True)
class LabelledSeries:
    """Multivariate series with a class each.

    values   case × channel × time, float32; NaN where missing, and after the end of a shorter series
    lengths  case
    labels   case, positions in `classes`
    """

    values: NDArray[np.float32]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> "LabelledSeries":
        return LabelledSeries(self.values[rows], self.lengths[rows], self.labels[rows], self.classes)


def names(data_dir: str | Path) -> list[str]:
    """The sets that lie under `data_dir`, in either layout."""
    folder = Path(data_dir)
    found = {path.stem for path in folder.glob("*.npz")}
    found |= {
        path.name.removesuffix("_TRAIN.ts") for path in [*folder.glob("*_TRAIN.ts"), *folder.glob("*/*_TRAIN.ts")]
    }
    return sorted(found)


def load(data_dir: str | Path, name: str) -> tuple[LabelledSeries, LabelledSeries]:
    """The archive's own train and test split of a set.

    Raises ValueError if it is not under `data_dir`, or for a file that cannot be read, lacks a part, or holds series
    without a label, infinite values, or other channels in the test than in the training part.
    """
    folder = Path(data_dir)
    packed = folder / f"{name}.npz"
    if packed.is_file():
        return _alike(_from_npz(packed, "train"), _from_npz(packed, "test"), packed)
    for place in (folder, folder / name):
        files = [place / f"{name}_{part}.ts" for part in ("TRAIN", "TEST")]
        if all(file.is_file() for file in files):
            return _alike(*_from_ts(*files), files[1])
    raise ValueError(f"expected {name}.npz or {name}_TRAIN.ts and {name}_TEST.ts in {folder}, got neither")


def resplit(
    train: LabelledSeries, test: LabelledSeries, seed: int
) -> tuple[LabelledSeries, LabelledSeries, LabelledSeries]:
    """The protocol of Log-NCDE: merge, drop exact duplicates, permute, cut into 70/15/15.

    Returns training, validation and test cases. The permutation is NumPy's for the seed, so the parts differ
    from those that the paper drew with JAX; their sizes do not.
    """
    whole = _merge(train, test)
    keys = np.nan_to_num(whole.values, nan=np.inf).reshape(len(whole), -1)
    _, first = np.unique(keys, axis=0, return_index=True)
    order = np.random.default_rng(seed).permutation(np.sort(first))
    cuts = (np.cumsum(SHARES[:2]) * len(order)).astype(int)
    training, validation, testing = np.split(order, cuts)
    return whole[training], whole[validation], whole[testing]


def _from_npz(path: Path, part: str) -> LabelledSeries:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = _values(arrays, part)
            lengths, labels = (arrays[f"{key}_{part}"].astype(np.int64, casting="same_kind") for key in ("len", "y"))
            classes = tuple(map(str, arrays["classes"]))
    except (BadZipFile, EOFError, KeyError, TypeError, ValueError, zlib.error) as error:
        expected = f"X_{part} (numbers, case × channel × time), len_{part}, y_{part} (integers) and classes"
        raise ValueError(f"{path}: expected an npz file with {expected}: {error}") from error
    return _labelled(values, lengths, labels, classes, f"{path}, {part}")


def _values(arrays: Any, part: str) -> NDArray[np.float32]:
    if f"flat_{part}" not in arrays:
        return np.asarray(arrays[f"X_{part}"], np.float32)
    # One channel is the same recording shifted by `stride`: stored once, unfolded here.
    flat, length, stride = arrays[f"flat_{part}"], int(arrays["length"]), int(arrays["stride"])
    unfolded = np.lib.stride_tricks.sliding_window_view(flat, length, axis=1)[:, ::stride]
    scaled: NDArray[np.float32] = unfolded.astype(np.float32) * np.float32(arrays["scale"])
    return scaled


def _from_ts(train: Path, test: Path) -> tuple[LabelledSeries, LabelledSeries]:
    (x_train, y_train), (x_test, y_test) = _read_ts(train), _read_ts(test)
    classes = tuple(sorted(set(map(str, y_train)) | set(map(str, y_test))))
    length = max(case.shape[1] for case in [*x_train, *x_test])
    return _pad(x_train, y_train, classes, length, train), _pad(x_test, y_test, classes, length, test)


def _read_ts(path: Path) -> tuple[list[NDArray[np.float32]], Any]:
    read = _reader(path)
    try:
        cases, labels = read(str(path))
        return [np.stack([np.asarray(channel, np.float32) for channel in case]) for case in cases], labels
    except Exception as error:  # what the readers fail with differs from fault to fault
        raise ValueError(f"{path}: expected a .ts file with a class for each series: {error}") from error


def _reader(path: Path) -> Callable[[str], Any]:
    try:
        from sktime.datasets import load_from_tsfile
    except ModuleNotFoundError:
        try:
            from aeon.datasets import load_from_ts_file  # type: ignore[import-not-found]
        except ModuleNotFoundError as error:
            raise ValueError(f"reading {path.name} needs sktime or aeon: install tsseq[sktime]") from error
        return load_from_ts_file  # type: ignore[no-any-return]

    def read(name: str) -> tuple[list[Any], Any]:
        frame, labels = load_from_tsfile(name, return_data_type="nested_univ")
        return [frame.iloc[row] for row in range(len(frame))], labels

    return read


def _pad(
    cases: list[NDArray[np.float32]], labels: Any, classes: tuple[str, ...], length: int, path: Path
) -> LabelledSeries:
    values = np.full((len(cases), len(cases[0]), length), np.nan, np.float32)
    for row, case in enumerate(cases):
        values[row, :, : case.shape[1]] = case
    lengths = np.array([case.shape[1] for case in cases])
    return _labelled(values, lengths, np.array([classes.index(str(label)) for label in labels]), classes, str(path))


def _labelled(
    values: NDArray[np.float32],
    lengths: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    where: str,
) -> LabelledSeries:
    """The series, missing after their ends; ValueError unless each has a length, a class and no infinite value."""
    if values.ndim != 3 or min(values.shape) < 1:
        raise ValueError(f"{where}: expected series as case × channel × time, at least one, got shape {values.shape}")
    cases, _, time = values.shape
    for name, numbers, low, high in (("length", lengths, 1, time), ("label", labels, 0, len(classes) - 1)):
        if numbers.shape != (cases,):
            raise ValueError(f"{where}: expected a {name} for each of {cases} series, got shape {numbers.shape}")
        if numbers.min() < low or numbers.max() > high:
            got = f"{numbers.min()} to {numbers.max()}"
            raise ValueError(f"{where}: expected {name}s from {low} to {high}, got {got}")
    beyond = np.arange(time) >= lengths[:, None]
    values = np.where(beyond[:, None, :], np.float32(np.nan), values)
    infinite = np.isinf(values).any((1, 2))
    if infinite.any():
        raise ValueError(f"{where}: expected finite values or NaN, got an infinite one in series {infinite.argmax()}")
    return LabelledSeries(values, lengths, labels, classes)


def _alike(train: LabelledSeries, test: LabelledSeries, path: Path) -> tuple[LabelledSeries, LabelledSeries]:
    channels, others = train.values.shape[1], test.values.shape[1]
    if channels != others:
        raise ValueError(f"{path}: expected {channels} channels as in the training series, got {others} in the test's")
    return train, test


def _merge(a: LabelledSeries, b: LabelledSeries) -> LabelledSeries:
    length = max(a.values.shape[-1], b.values.shape[-1])
    widened = [
        np.pad(part.values, ((0, 0), (0, 0), (0, length - part.values.shape[-1])), constant_values=np.nan)
        for part in (a, b)
    ]
    lengths, labels = np.concatenate([a.lengths, b.lengths]), np.concatenate([a.labels, b.labels])
    return LabelledSeries(np.concatenate(widened), lengths, labels, a.classes)
