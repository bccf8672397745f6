"""The contract every synthetic prior keeps."""

from abc import ABC, abstractmethod
from collections.abc import Generator as Pieces
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Generator

from tsseq.array_typing import Float, Tensor


@dataclass(frozen=True)
class Prior(ABC):
    """A distribution over series. Fields are its hyper-parameters, all with defaults.

    `sample` draws on the generator's device, vectorised over the batch, and takes its randomness from the
    generator alone: the same seed gives the same series in a fresh process.
    """

    sequential: ClassVar[bool] = False
    """Whether drawing loops over time, which makes very long windows dear on a CPU."""

    @abstractmethod
    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        """Draw `batch_size` independent series of `length` points, float32 and finite."""

    def in_pieces(
        self, generator: Generator, batch_size: int, length: int
    ) -> Pieces[None, None, Float[Tensor, "batch time"]]:
        """`sample` as a coroutine that pauses between pieces of work, for whoever has other work in between."""
        yield
        return self.sample(generator, batch_size, length)


class Law(NamedTuple):
    """Series, and the normal law of their last `horizon` values given all values before and the hidden parameters.

    Each step has a law of its own, the marginal one: what several steps have in common is not told.
    """

    values: Float[Tensor, "batch time"]
    mean: Float[Tensor, "batch horizon"]
    scale: Float[Tensor, "batch horizon"]


class PriorWithLaw(Prior):
    """A prior that knows what is to be expected, so that a loss may be an expectation instead of one realised path."""

    @abstractmethod
    def sample_with_law(self, generator: Generator, batch_size: int, length: int, horizon: int) -> Law:
        """Like `sample`, of the part of the family whose law is normal and known. 0 < horizon < length."""
