"""Several priors in every batch, in known shares, at several sampling rates, then edited."""

from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Generator as Pieces
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float, Int
from tsseq.synthetic import augment
from tsseq.synthetic.base import Prior
from tsseq.synthetic.draws import host_generator, systematic

Edit = Callable[[Generator, Tensor, float], Tensor]
Labelled = tuple[Float[Tensor, "batch time"], Int[Tensor, " batch"]]

ONLINE: tuple[tuple[Edit, float], ...] = (
    (augment.mix, 0.25),
    (augment.modulate, 0.1),
    (augment.bend, 0.1),
    (augment.integrate, 0.03),
    (augment.convolve, 0.03),
    (augment.warp, 0.03),
    (augment.splice, 0.03),
    (augment.calendar, 0.03),
    (augment.flip, 0.3),
    (augment.observe, 0.1),
    (augment.spike, 0.06),
    (augment.outage, 0.03),
    (augment.hold, 0.03),
    (augment.censor, 0.06),
    (augment.quantise, 0.08),
)
"""Edits and the share of rows each changes, in the order of nature: what the process does, then the sensor."""

OFFLINE: tuple[tuple[Edit, float], ...] = (
    (augment.mix, 0.3),
    (augment.flip, 0.15),
    (augment.warp, 0.05),
    (augment.modulate, 0.15),
)
"""About what TempoPFN's stored, augmented quarter of every batch holds."""

COARSER = (2, 3, 4, 5, 6, 8, 10, 12, 15, 24, 30, 48)
COARSER_WEIGHTS = tuple(1 / factor for factor in COARSER)


@dataclass(frozen=True)
class Mixture(Prior):
    """Draws `weights[name]` of every batch from each prior, shuffled.

    Counts are stratified: they differ from batch size × weight by less than one, without bias, so a rare family
    gets its share over many batches. In every call a share of rows, `coarser / factor`, from two families is
    drawn `factor` times longer and brought back by block mean, sum, maximum or point sampling.

    Attributes:
        weights: relative share of each name in PRIORS.
        priors: the prior behind each name; default, the one in PRIORS.
        edits: augmentations and the share of rows each is applied to, in order.
        coarser: bounds the extra points drawn for coarser sampling rates, relative to the batch.
        delivered: series delivered so far by family, counted by `sample`.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    priors: Mapping[str, Prior] = field(default_factory=dict)
    edits: tuple[tuple[Edit, float], ...] = ()
    coarser: float = 0.0
    delivered: Counter[str] = field(default_factory=Counter, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0:
            raise ValueError(f"expected weights >= 0 with a positive sum, got {dict(self.weights)}")
        if set(self.weights) != set(self.priors):
            raise ValueError(f"expected one prior per weight, got {sorted(self.priors)} for {sorted(self.weights)}")

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        return self.sample_labelled(generator, batch_size, length)[0]

    def in_pieces(
        self, generator: Generator, batch_size: int, length: int
    ) -> Pieces[None, None, Float[Tensor, "batch time"]]:
        """`sample`, with a pause after every family and every edit."""
        return (yield from self._drawing(generator, batch_size, length))[0]

    def sample_labelled(self, generator: Generator, batch_size: int, length: int) -> Labelled:
        """A batch, and for every series the position of its family in `weights`."""
        pieces = self._drawing(generator, batch_size, length)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                drawn: Labelled = end.value
                return drawn

    def _drawing(self, generator: Generator, batch_size: int, length: int) -> Pieces[None, None, Labelled]:
        host = host_generator(generator)
        pick = int(torch.multinomial(torch.tensor(COARSER_WEIGHTS), 1, generator=host))
        factor, how = COARSER[pick], list(augment.RATES)[int(torch.randint(0, 4, (1,), generator=host))]
        slow = int(self.coarser * batch_size / factor + float(torch.rand((), generator=host)))
        slow = min(slow, batch_size) if any(not prior.sequential for prior in self.priors.values()) else 0
        drawn = yield from self._draw(generator, self.counts(host, batch_size - slow), length)
        if slow:
            fine, labels = yield from self._draw(generator, self._few(host, slow), length * factor)
            drawn = (torch.cat([drawn[0], augment.decimate(fine, factor, how)]), torch.cat([drawn[1], labels]))
        order = torch.randperm(batch_size, generator=generator, device=generator.device)
        x = drawn[0][order]
        for edit, share in self.edits:
            # Rows are in random order, so any run of them is a random subset, and the rest costs nothing.
            count = int(share * batch_size + float(torch.rand((), generator=host)))
            if count:
                start = int(torch.randint(0, batch_size - count + 1, (1,), generator=host))
                rows = slice(start, start + count)
                x[rows] = edit(generator, x[rows], 1.0)
                yield
        return x, drawn[1][order]

    def shares(self) -> dict[str, float]:
        """Share of each family among all series delivered by this object so far."""
        total = max(sum(self.delivered.values()), 1)
        return {name: self.delivered[name] / total for name in self.weights}

    def counts(self, host: Generator, batch_size: int) -> list[int]:
        """Series of each family in one batch: systematic sampling of the cumulated weights."""
        return systematic(host, batch_size, list(self.weights.values()))

    def _few(self, host: Generator, batch_size: int, families: int = 2) -> list[int]:
        """Like `counts`, concentrated on a few random families, since every further one costs its own launches."""
        weights = [0.0 if self.priors[name].sequential else weight for name, weight in self.weights.items()]
        drawn = torch.multinomial(torch.tensor(weights), families, True, generator=host)
        each = torch.full((families,), batch_size // families)
        each[: batch_size % families] += 1
        return torch.zeros(len(self.weights), dtype=torch.int64).scatter_add_(0, drawn, each).tolist()

    def _draw(self, generator: Generator, counts: list[int], length: int) -> Pieces[None, None, Labelled]:
        parts, labels = [], []
        for label, (name, count) in enumerate(zip(self.weights, counts, strict=True)):
            if count == 0:
                continue
            parts.append(self.priors[name].sample(generator, count, length))
            labels.append(torch.full((count,), label, device=generator.device))
            self.delivered[name] += count
            yield
        if not parts:
            empty = torch.empty((0, length), device=generator.device)
            return empty, torch.empty(0, dtype=torch.int64, device=generator.device)
        return torch.cat(parts), torch.cat(labels)


TSSEQ = {
    "seasonal_trend": 0.22,
    "gaussian_process": 0.125,
    "sde": 0.08,
    "telemetry": 0.07,
    "arima": 0.06,
    "ets": 0.06,
    "economy": 0.06,
    "sensor": 0.045,
    "weather": 0.045,
    "power": 0.035,
    "cauker": 0.03,
    "demand": 0.03,
    "traffic": 0.025,
    "waveforms": 0.02,
    "threshold_autoregression": 0.015,
    "step": 0.015,
    "spikes": 0.01,
    "epidemic": 0.01,
    "hydrology": 0.01,
    "dynamics": 0.006,
    "chaotic_maps": 0.004,
    "forecast_pfn": 0.01,
    "financial_volatility": 0.005,
    "multiscale_fractal": 0.005,
    "anomaly": 0.005,
}
"""Anchored on nested seasons and Gaussian processes, then persistent dynamics; events and counts a tenth."""

TEMPOPFN = {
    "forecast_pfn": 1.0,
    "gaussian_process": 1.0,
    "kernel_synth": 1.0,
    "sawtooth": 1.0,
    "sine_waves": 1.0,
    "step": 1.0,
    "anomaly": 1.0,
    "spikes": 1.0,
    "cauker": 1.0,
    "sde": 3.0,
    "financial_volatility": 0.1,
    "multiscale_fractal": 0.1,
    "network_topology": 0.5,
    "stochastic_rhythm": 0.5,
}
"""The weights TempoPFN declares for its families (arXiv 2510.25502), all of them delivered."""


def preset(name: str) -> Mixture:
    """A mixture by name. Raises ValueError for an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"expected a mixture among {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()


def _make(weights: Mapping[str, float], edits: tuple[tuple[Edit, float], ...] = (), coarser: float = 0.0) -> Mixture:
    from tsseq.synthetic import PRIORS

    return Mixture(weights, {key: PRIORS[key]() for key in weights}, edits, coarser)


def _everything() -> Mixture:
    from tsseq.synthetic import PRIORS

    return _make(dict.fromkeys(PRIORS, 1.0))


PRESETS: dict[str, Callable[[], Mixture]] = {
    "tsseq": lambda: _make(TSSEQ, ONLINE, coarser=0.3),
    "tempopfn": lambda: _make(TEMPOPFN, OFFLINE),
    "everything": _everything,
}
"""Mixtures by name: our best, TempoPFN's weights, and all families alike and unedited."""
