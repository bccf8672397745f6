"""Endless batches from a prior, each a function of (seed, rank, step) alone."""

import math
from collections.abc import Generator as Pieces
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils.data import IterableDataset, get_worker_info

from tsseq.datasets.tasks import TrainingBatch, masked_spans
from tsseq.synthetic import augment
from tsseq.synthetic.base import Prior


def stream_seed(seed: int, rank: int, step: int) -> int:
    """A 63-bit seed for one batch; different ranks and steps give unrelated ones (SplitMix64's finaliser)."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + rank * 0xD1B54A32D192ED03 + step * 0x8CB92BA72F3D8DD7 + 1) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return x >> 1


@dataclass(frozen=True)
class StreamConfig:
    """`batch_size` series of `patches` × `patch_length` values a step.

    `cuts` are pairs of a number of patches and the share of the steps whose series are cut into windows of so
    many, each scaled by itself: low frequencies come with short histories. `missing` is the share of series with
    holes. `block` steps are drawn from the prior at once, while the block before is trained on: on a GPU, many small
    launches would otherwise take longer than the training.
    """

    batch_size: int = 256
    patches: int = 128
    patch_length: int = 32
    cuts: tuple[tuple[int, float], ...] = ((16, 0.3),)
    missing: float = 0.15
    block: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.patches, self.patch_length, self.block) < 1:
            raise ValueError("batch_size, patches, patch_length and block must be at least 1")
        if any(patches < 2 or share < 0 for patches, share in self.cuts) or sum(s for _, s in self.cuts) > 1:
            raise ValueError(f"expected cuts of at least 2 patches with shares of at most 1 in all, got {self.cuts}")
        if not 0 <= self.missing <= 1:
            raise ValueError(f"expected missing, a share, in [0, 1], got {self.missing}")


class PriorStream(IterableDataset[TrainingBatch]):
    """Iterates over training batches from `first_step` on, drawn on `device`.

    With several DataLoader workers each draws every n-th step, so that the batches and their order do not
    depend on how many there are.
    """

    def __init__(
        self, prior: Prior, config: StreamConfig, *, rank: int = 0, first_step: int = 0, device: str = "cpu"
    ) -> None:
        self.prior, self.config, self.rank, self.first_step, self.device = prior, config, rank, first_step, device
        self._block: tuple[int, Tensor] | None = None
        self._next: _Drawing | None = None
        self._pieces = 0
        self._side: torch.cuda.Stream | None = None

    def __iter__(self) -> Iterator[TrainingBatch]:
        worker = get_worker_info()
        step, stride = self.first_step, 1
        if worker is not None:
            step, stride = step + worker.id, worker.num_workers
        while True:
            yield self.batch(step)
            step += stride

    def batch(self, step: int) -> TrainingBatch:
        """The batch of one step, the same in every process."""
        config = self.config
        values = self._series(step)
        # Blocks and steps are numbered apart, so that no task shares its seed with the series.
        seed = stream_seed(config.seed, self.rank, 2 * step + 1)
        # The choice of shape must not wait for the device, so it comes from a generator on the host.
        window = self._window(float(torch.rand((), generator=Generator().manual_seed(seed)))) * config.patch_length
        values = values[:, : values.shape[1] // window * window].reshape(-1, window)
        generator = Generator(self.device).manual_seed(seed)
        values = augment.missing(generator, values, config.missing)
        return masked_spans(generator, values, config.patch_length)

    def _window(self, uniform: float) -> int:
        """Patches in each series of a step, by the shares of `cuts`."""
        for patches, share in self.config.cuts:
            if uniform < share:
                return min(patches, self.config.patches)
            uniform -= share
        return self.config.patches

    def _series(self, step: int) -> Tensor:
        config = self.config
        block, part = divmod(step, config.block)
        if self._block is None or self._block[0] != block:
            if self._next is None or self._next.block != block:
                self._next = self._start(block)
            self._block, self._pieces, self._next = (block, self._next.finish()), self._next.drawn, None
        elif config.block > 1:
            self._next = self._next or self._start(block + 1)
            self._next.advance(-(-self._pieces // (config.block - 1)))
        return self._block[1][part * config.batch_size : (part + 1) * config.batch_size]

    def _start(self, block: int) -> "_Drawing":
        config = self.config
        if self._side is None and torch.device(self.device).type == "cuda":
            self._side = torch.cuda.Stream(self.device)
        generator = Generator(self.device).manual_seed(stream_seed(config.seed, self.rank, 2 * block))
        length = config.patches * config.patch_length
        pieces = self.prior.in_pieces(generator, config.batch_size * config.block, length)
        return _Drawing(block, pieces, self._side)


class _Drawing:
    """A block that is drawn bit by bit between the steps of the training, on a GPU beside them on a stream `side`.

    A thread would do as much, but must not allocate memory while another one captures a graph.
    """

    def __init__(self, block: int, pieces: Pieces[None, None, Tensor], side: torch.cuda.Stream | None) -> None:
        self.block, self.drawn = block, 0
        self._pieces, self._side = pieces, side
        self._values: Tensor | None = None

    def advance(self, pieces: float) -> None:
        """Draw so many further pieces, or what is left."""
        with torch.cuda.stream(self._side):  # nothing without a GPU
            while self._values is None and pieces > 0:
                try:
                    next(self._pieces)
                except StopIteration as end:
                    self._values = end.value
                self.drawn, pieces = self.drawn + 1, pieces - 1

    def finish(self) -> Tensor:
        self.advance(math.inf)
        assert self._values is not None
        if self._side is not None:
            current = torch.cuda.current_stream(self._side.device)
            current.wait_stream(self._side)
            self._values.record_stream(current)  # the side stream must not reuse this memory too early
        return self._values
