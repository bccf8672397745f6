"""One file is one model: weights as safetensors, the configuration as JSON in its header. Nothing is unpickled."""

import dataclasses
import json
import math
import re
import struct
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tsseq.files import writing
from tsseq.forecaster import Forecaster, ForecasterConfig

BUNDLED = Path(__file__).parent / "checkpoints"
FILE_NAME = "model.safetensors"
FORMAT = "tsseq-forecaster-1"
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def bundled_names() -> list[str]:
    """Names of the checkpoints that ship inside the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def load(name_or_path: str | Path = "base") -> Forecaster:
    """Load a forecaster: a bundled name, a .safetensors file, a folder holding model.safetensors, or, with the
    extra `hub`, a repository "user/name" on the Hugging Face hub. A path never touches the network.

    Raises ValueError where no such checkpoint exists or the file is not one of ours.
    """
    path = find(name_or_path)
    return load_weights(_network(path), path).eval()


def load_weights(model: Forecaster, name_or_path: str | Path) -> Forecaster:
    """Give `model` the weights of a checkpoint, whatever else its configuration says; returns `model`.

    Raises ValueError as `load` does, and where the shapes differ.
    """
    path = find(name_or_path)
    read_config(path)  # says so if it is not a forecaster
    try:
        weights = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    try:
        model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"the weights in {path} do not fit the network: {reason}") from error
    return model


def read_config(path: Path) -> ForecasterConfig:
    """The configuration in the header of a checkpoint, without reading its weights."""
    metadata = _metadata(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a tsseq forecaster: expected format {FORMAT} in its header, "
            f"got {metadata.get('format', 'none')}"
        )
    try:
        values = json.loads(metadata["config"])
        check_types(ForecasterConfig, values)
        return ForecasterConfig.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"the header of {path} holds no configuration of a forecaster: {error}") from error


def check_types(annotated: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Hold values read from JSON to the fields of a dataclass, and of those in it, or to the parameters of a function.

    Raises ValueError where one is of another type. An unknown name is left to whoever takes the values.
    """
    hints = typing.get_type_hints(annotated)
    for name, hint in hints.items():
        value = values.get(name)
        if name not in values:
            continue
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            check_types(hint, value)
        elif not _is_of_type(value, hint):
            wanted = hint.__name__ if isinstance(hint, type) else hint
            raise ValueError(f"expected {name} of type {wanted}, got {value!r}")


def _is_of_type(value: Any, hint: Any) -> bool:
    """JSON has no tuples, and a whole number is a number too; true is none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(_is_of_type(value, part) for part in inner)
    if origin is tuple:  # of any length
        return isinstance(value, list | tuple) and all(_is_of_type(item, inner[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_is_of_type(item, inner[1]) for item in value.values())
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def _network(path: Path) -> Forecaster:
    """The network that a header describes, made once the weights beside it are known to be enough for one so large."""
    config, found = read_config(path), _counts(path)
    backbone = config.backbone
    least = backbone.width * (config.hidden_width + backbone.layers * backbone.mlp_width)
    largest = max([config.patch_length, *_whole_numbers(backbone.options)])
    if backbone.layers > len(found) or max(least, largest) > sum(found):
        raise ValueError(
            f"the weights in {path} do not fit the network: {len(found)} tensors of {sum(found)} numbers are too few "
            f"for {backbone.layers} layers of {least} numbers or more, or for an option of {largest}"
        )
    try:
        network = Forecaster(config)
        for name, block in zip(cycle(backbone.mixers), network.backbone.layers, strict=False):
            check_types(type(block.mixer).__init__, backbone.options.get(name, {}))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"the header of {path} describes no network: {reason}") from error
    return network


def _counts(path: Path) -> list[int]:
    """Numbers in each of the tensors of a file, without reading them."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error


def _whole_numbers(options: Mapping[str, Mapping[str, Any]]) -> Iterator[int]:
    return (value for own in options.values() for value in own.values() if isinstance(value, int))


def save(model: Forecaster, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `model` to `path` (a .safetensors file, or a folder), whole or not at all; returns the file.

    Raises ValueError where it cannot be written.
    """
    path = Path(path)
    weights = {name: w.detach().to("cpu", dtype).contiguous() for name, w in model.state_dict().items()}
    metadata = {"format": FORMAT, "config": json.dumps(model.config.to_dict())}
    if path.suffix != ".safetensors":
        path = _make_folder(path) / FILE_NAME
    return write(path, weights, metadata)


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a .safetensors file, whole or not at all; returns `path`. Raises ValueError where it cannot be written."""
    try:
        with writing(path) as partial, partial.open("wb") as file:
            file.writelines(_serialised(tensors, metadata))
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"cannot write {path}: {error}") from error
    return path


def _serialised(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[bytes, bytes, memoryview]:
    """The length of the header, the header, the weights: with the metadata in their own order, which safetensors
    shuffles, so that equal models are equal files."""
    data = safetensors.torch.save(tensors)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps({"__metadata__": metadata, **json.loads(data[8 : 8 + length])}, separators=(",", ":"))
    header += " " * (-len(header) % 8)  # the weights must stay aligned
    return struct.pack("<Q", len(header)), header.encode(), memoryview(data)[8 + length :]


def _make_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {path}: {error.strerror}") from error
    return path


def find(name_or_path: str | Path) -> Path:
    """The file that `load` reads for this name or path, fetched first if it is on the hub; errors as there."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        path = path / FILE_NAME
    if path.is_file():
        return path
    name = str(name_or_path)
    if name in bundled_names():
        return BUNDLED / f"{name}.safetensors"
    if HUB_NAME.fullmatch(name) and path.suffix != ".safetensors" and not path.parent.is_dir():
        return _download(name)
    raise ValueError(
        f"no checkpoint {name!r}: expected a bundled name ({', '.join(bundled_names()) or 'none here'}), "
        f"a .safetensors file, or a folder holding {FILE_NAME}"
    )


def _download(repository: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{repository!r} is neither a bundled name nor a path; to load it from the Hugging Face hub, "
            "install tsseq[hub]"
        ) from error
    try:
        return Path(hf_hub_download(repository, FILE_NAME, etag_timeout=5))
    except Exception as error:
        # The hub's errors share no base class, and each is a page long.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{repository!r} could not be fetched from the Hugging Face hub: {reason}") from error


def _metadata(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100_000_000:
                raise ValueError("its header has no credible length")
            header = json.loads(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is not a JSON object")
            metadata = header.get("__metadata__")
            return metadata if isinstance(metadata, dict) else {}
    except (struct.error, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
