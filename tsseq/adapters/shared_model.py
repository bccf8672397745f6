"""Trained forecasters as estimators hold them: one copy in a process, a path or the bare weights in a pickle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import safetensors.torch

from tsseq.checkpoint import find, load
from tsseq.device import resolve_device
from tsseq.forecaster import Forecaster, ForecasterConfig


class SharedModel:
    """A forecaster whose weights never change again, so that all copies of an estimator share it.

    Pickled, a model from a checkpoint is the checkpoint's name and digest, and one trained in this process is its
    configuration and weights as safetensors bytes. Either is loaded when first used, on the device that `device`
    means there.
    """

    def __init__(self, device: str, loaded: _Loaded | None, source: str | None, digest: str | None) -> None:
        self._device, self._loaded, self._source, self._digest = device, loaded, source, digest

    @classmethod
    def from_checkpoint(cls, name_or_path: str | Path, device: str = "auto") -> SharedModel:
        """The model of a checkpoint; ValueError as from `tsseq.load`, or for an unknown device."""
        loaded = _load_once(str(name_or_path), device)
        return cls(device, loaded, str(name_or_path), loaded.digest)

    @classmethod
    def from_weights(cls, forecaster: Forecaster, device: str = "auto") -> SharedModel:
        """A model that was trained here and lives in no file."""
        return cls(device, _Loaded(forecaster.eval().requires_grad_(False), ""), None, None)

    @property
    def forecaster(self) -> Forecaster:
        """The network, on its device. Raises ValueError if its checkpoint is gone or is now another one."""
        if self._loaded is None:
            assert self._source is not None
            loaded = _load_once(self._source, self._device)
            if loaded.digest != self._digest:
                raise ValueError(
                    f"the checkpoint {self._source} has changed since this estimator was fitted: fit again"
                )
            self._loaded = loaded
        return self._loaded.forecaster

    def __copy__(self) -> SharedModel:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedModel:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is not None:
            return SharedModel, (self._device, None, self._source, self._digest)
        model = self.forecaster
        weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
        return _from_bytes, (model.config.to_dict(), safetensors.torch.save(weights), self._device)


class _Loaded:
    def __init__(self, forecaster: Forecaster, digest: str) -> None:
        self.forecaster, self.digest = forecaster, digest


# (file, time of change, device) -> model, as long as an estimator holds it.
_open: WeakValueDictionary[tuple[str, int, str], _Loaded] = WeakValueDictionary()
# The model used last stays, or each fold of a cross-validation would load it anew.
_latest: list[_Loaded] = []


def clear_cache() -> None:
    """Forget every model that no estimator holds."""
    _latest.clear()


def _load_once(source: str, device: str) -> _Loaded:
    path, where = find(source), resolve_device(device)
    key = (str(path.resolve()), path.stat().st_mtime_ns, str(where))
    loaded = _open.get(key)
    if loaded is None:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        loaded = _Loaded(load(path).to(where).requires_grad_(False), digest)
        _open[key] = loaded
    _latest[:] = [loaded]
    return loaded


def _from_bytes(config: dict[str, Any], weights: bytes, device: str) -> SharedModel:
    model = Forecaster(ForecasterConfig.from_dict(config))
    model.load_state_dict(safetensors.torch.load(weights))
    return SharedModel.from_weights(model.to(resolve_device(device)), device)
