"""Cuts series into histories and what followed them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsseq.datasets.series import Series


@dataclass(frozen=True)
class Windows:
    """`contexts` of any lengths, oldest value first; `labels`, window × horizon, follow them."""

    contexts: list[NDArray[np.float32]]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.contexts)

    def batches(self, batch_size: int, points: int = 2**25) -> Iterator["Windows"]:
        """Slices in order, of at most `batch_size` windows and about `points` values of history in total."""
        start, held = 0, 0
        for stop, context in enumerate(self.contexts):
            if stop > start and (stop - start == batch_size or held + len(context) > points):
                yield Windows(self.contexts[start:stop], self.labels[start:stop])
                start, held = stop, 0
            held += len(context)
        if start < len(self):
            yield Windows(self.contexts[start:], self.labels[start:])


def last_windows(series: Sequence[Series], horizon: int, count: int) -> Windows:
    """The last `count` windows of every series and channel, `horizon` apart, oldest first.

    Raises ValueError for a series that leaves its first window without history.
    """
    for s in series:
        if s.target.shape[-1] <= count * horizon:
            raise ValueError(
                f"expected more than {count * horizon} values for {count} windows of {horizon}, "
                f"got {s.target.shape[-1]} in series {s.item_id!r}"
            )
    channels = [channel for s in series for channel in s.channels()]
    ends = [-horizon * k for k in range(count, 0, -1)]
    labels = [channel[-horizon * count :].reshape(count, horizon) for channel in channels]
    return Windows([channel[:end] for channel in channels for end in ends], np.concatenate(labels))
