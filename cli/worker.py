"""A process for work that may break the process it runs in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Calls functions in one other process, which is replaced once a call has failed there.

    After an illegal memory access a GPU serves its process no more, and often it is a later call that hears of it.
    """

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result; a RuntimeError is its own, or says that the process died."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            return self._pool.submit(function, *args, **kwargs).result()
        except RuntimeError:
            self.close()
            raise

    def close(self) -> None:
        """End the process; the next call starts another one."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
