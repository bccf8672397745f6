"""The contract every synthetic prior keeps."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

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
