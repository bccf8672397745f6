"""Random parameters on a generator's device, in one call for the whole batch and without a host transfer."""

import math
import zlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Generator, Tensor

Shape = tuple[int, ...]


def uniform(generator: Generator, shape: Shape, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform on [low, high)."""
    return torch.empty(shape, device=generator.device).uniform_(low, high, generator=generator)


def log_uniform(generator: Generator, shape: Shape, low: float, high: float) -> Tensor:
    """A positive scale whose logarithm is uniform on [log low, log high)."""
    return uniform(generator, shape, math.log(low), math.log(high)).exp_()


def normal(generator: Generator, shape: Shape) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=generator, device=generator.device)


def chance(generator: Generator, shape: Shape, probability: float | Tensor) -> Tensor:
    """Boolean, true with the given probability."""
    if isinstance(probability, float):
        drawn = torch.empty(shape, dtype=torch.bool, device=generator.device)
        return drawn.bernoulli_(probability, generator=generator)
    return torch.rand(shape, generator=generator, device=generator.device) < probability


def integers(generator: Generator, shape: Shape, low: int, high: int) -> Tensor:
    """Whole numbers in low, …, high - 1 (int64)."""
    return torch.randint(low, high, shape, generator=generator, device=generator.device)


def student(generator: Generator, shape: Shape, degrees: Tensor) -> Tensor:
    """Student's t with real degrees of freedom, by the polar method of Bailey (1994)."""
    log_u = uniform(generator, shape).clamp_(min=1e-7).log_()
    radius = log_u.mul_(-2.0 / degrees).expm1_().mul_(degrees).sqrt_()
    return radius.mul_(uniform(generator, shape, 0.0, 2 * math.pi).cos_())


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A float32 table on `device`, uploaded once: an upload waits for everything queued on a GPU."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def choice(generator: Generator, shape: Shape, weights: Sequence[float]) -> Tensor:
    """Indices (int64) drawn in proportion to `weights`."""
    total, running = math.fsum(weights), 0.0
    edges = []
    for weight in weights[:-1]:
        running += weight / total
        edges.append(running)
    return torch.bucketize(uniform(generator, shape), constant(tuple(edges), generator.device), right=True)


def pick(generator: Generator, shape: Shape, values: Sequence[float], weights: Sequence[float] | None = None) -> Tensor:
    """One of `values` (float32) for every entry, in proportion to `weights` (default: equal)."""
    index = choice(generator, shape, weights or (1.0,) * len(values))
    return constant(tuple(map(float, values)), generator.device)[index]


def systematic(host: Generator, total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` in proportion to `weights`, without bias and each part less than one away from its share."""
    shares = torch.tensor(tuple(weights), dtype=torch.float64)
    edges = (shares.cumsum(0) / shares.sum() * total + torch.rand((), generator=host)).floor()
    edges[-1] = total
    return edges.diff(prepend=torch.zeros(1, dtype=torch.float64)).long().tolist()


def shuffled(generator: Generator, x: Tensor) -> Tensor:
    """The rows in random order."""
    return x[torch.randperm(x.shape[0], generator=generator, device=x.device)]


def host_generator(generator: Generator) -> Generator:
    """A CPU generator for decisions that shape the computation, seeded by the state of `generator`.

    The state of a CUDA generator lives on the host, so this waits for no kernel. One number is drawn from
    `generator`, so that the next call gives another stream.
    """
    seed = zlib.crc32(generator.get_state().numpy().tobytes())
    torch.rand((1,), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(seed)
