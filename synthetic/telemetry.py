"""Cloud and sensor telemetry at ten seconds to five minutes: load, requests, latency, memory, batch jobs."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import impulses, lookup, renewals, segments, smooth_path, time_steps
from tsseq.synthetic.draws import (
    chance,
    host_generator,
    integers,
    log_uniform,
    normal,
    pick,
    shuffled,
    systematic,
    uniform,
)
from tsseq.synthetic.noise import autoregressive
from tsseq.synthetic.profiles import random_profiles
from tsseq.synthetic.scan import linear_scan

DAYS = (8640, 2880, 1440, 288, 144, 96, 24)
DAY_WEIGHTS = (1, 0.5, 1, 3, 1, 1, 1)
JOBS = (5, 6, 10, 12, 15, 30, 36, 60, 72, 90, 120, 144, 180, 288, 360)


@dataclass(frozen=True)
class Telemetry(Prior):
    """One of five metrics per series, on a common day cycle, bursts that decay, scheduled jobs and idle stretches.

    Shares: utilisation with a ceiling, request counts, queueing latency, memory that grows until it is reset,
    jobs over an idle machine. `coarse` is the share reported in whole steps.
    """

    metrics: tuple[float, float, float, float, float] = (0.3, 0.25, 0.15, 0.12, 0.18)
    coarse: float = 0.35

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        day = self._day(generator, batch_size, length)
        bursts = self._bursts(generator, day)
        jobs = self._jobs(generator, batch_size, length)
        wander = autoregressive(generator, log_uniform(generator, shape, 1.0, 200.0), length)
        wander = wander * log_uniform(generator, shape, 0.02, 0.8)
        busy = self._gate(generator, batch_size, length)
        demand = (day + wander).exp() * busy + bursts * (0.3 + 0.7 * busy) + jobs
        counts = systematic(host_generator(generator), batch_size, self.metrics)
        makers = (self._utilisation, self._requests, self._latency, self._memory, self._idle_jobs)
        rows = zip(demand.split(counts), jobs.split(counts), strict=True)
        parts = [maker(generator, *part) for maker, part in zip(makers, rows, strict=True) if len(part[0])]
        out = shuffled(generator, torch.cat(parts))
        step = log_uniform(generator, shape, 0.003, 0.15) * (out.amax(-1, keepdim=True) - out.amin(-1, keepdim=True))
        rounded = torch.round(out / step.clamp(min=1e-6)) * step
        return torch.where(chance(generator, shape, self.coarse), rounded, out)

    def _day(self, generator: Generator, batch: int, length: int) -> Tensor:
        """Logarithm of the usual load: a day, or a test run or work cycle of any length, within seven of them."""
        shape = (batch, 1)
        free = log_uniform(generator, shape, 20.0, 3000.0)
        period = torch.where(chance(generator, shape, 0.35), free, pick(generator, shape, DAYS, DAY_WEIGHTS))
        phase = time_steps(generator, length) / period + uniform(generator, shape)
        tables = random_profiles(generator, 2 * batch).chunk(2)
        profile, week = lookup(tables[0], phase), lookup(tables[1], phase / 7) * chance(generator, shape, 0.4)
        slow = smooth_path(generator, log_uniform(generator, shape, 100.0, 4000.0), length)
        strength = log_uniform(generator, shape, 0.1, 1.2) * chance(generator, shape, 0.75)
        return strength * (profile + 0.4 * week) + slow * uniform(generator, shape, 0.0, 0.5)

    def _bursts(self, generator: Generator, day: Tensor) -> Tensor:
        """Arrivals with a log-normal size, each decaying exponentially, more of them when load is high."""
        shape = (day.shape[0], 1)
        rate = log_uniform(generator, shape, 1e-3, 0.15) * day.clamp(max=2.0).exp()
        size = impulses(generator, rate, uniform(generator, shape, 0.2, 1.3))
        decay = torch.exp(-1 / log_uniform(generator, shape, 0.3, 150.0))
        height = log_uniform(generator, shape, 0.2, 6.0) * chance(generator, shape, 0.7)
        return height * linear_scan(decay.expand_as(day), size).clamp(max=60.0)

    def _jobs(self, generator: Generator, batch: int, length: int) -> Tensor:
        """Rectangular pulses at a fixed interval, of a height and duration that vary from run to run."""
        shape = (batch, 1)
        period = pick(generator, shape, JOBS)
        clock = (time_steps(generator, length) + integers(generator, shape, 0, 360)) / period
        run = clock.floor()
        index = (run - run[:, :1]).long()
        table = normal(generator, (batch, int(length / min(JOBS)) + 2))
        vary = uniform(generator, shape, 0.0, 0.5) * chance(generator, shape, 0.6)
        height = torch.exp(vary * table.gather(-1, index))
        duty = log_uniform(generator, shape, 0.03, 0.6) * torch.exp(0.5 * vary * table.roll(1, -1).gather(-1, index))
        skipped = table.roll(2, -1).gather(-1, index) < -2.0
        scale = log_uniform(generator, shape, 0.3, 6.0) * chance(generator, shape, 0.35)
        return scale * height * ((clock - run) * period < (duty * period).clamp(min=1.0)) * ~skipped

    def _gate(self, generator: Generator, batch: int, length: int) -> Tensor:
        """1 while in use, almost 0 in idle stretches; three quarters of the series are always in use."""
        dwell = log_uniform(generator, (batch, 2), 8.0, 1500.0).repeat(1, 48)
        idle = segments(generator, dwell, length) % 2 == 1
        return 1 - 0.97 * (idle & chance(generator, (batch, 1), 0.25))

    def _utilisation(self, generator: Generator, demand: Tensor, _: Tensor) -> Tensor:
        """Percent of capacity: bends into or hits a ceiling."""
        shape = (demand.shape[0], 1)
        load = demand / demand.mean(-1, keepdim=True).clamp(min=1e-3) * log_uniform(generator, shape, 0.02, 0.9)
        return 100 * torch.where(chance(generator, shape, 0.5), 1 - torch.exp(-load), load.clamp(max=1.0))

    def _requests(self, generator: Generator, demand: Tensor, _: Tensor) -> Tensor:
        """Poisson counts per step, from a few to thousands."""
        shape = (demand.shape[0], 1)
        mean = demand / demand.mean(-1, keepdim=True).clamp(min=1e-3) * log_uniform(generator, shape, 0.3, 3000.0)
        return torch.poisson(mean.clamp(max=1e5), generator=generator)

    def _latency(self, generator: Generator, demand: Tensor, _: Tensor) -> Tensor:
        """Waiting time 1 / (1 - utilisation) with log-normal noise."""
        shape = (demand.shape[0], 1)
        load = demand / demand.mean(-1, keepdim=True).clamp(min=1e-3) * uniform(generator, shape, 0.1, 0.7)
        noise = log_uniform(generator, shape, 0.01, 0.4) * normal(generator, tuple(demand.shape))
        return torch.exp(noise) / (1.03 - load.clamp(max=1.0))

    def _memory(self, generator: Generator, demand: Tensor, _: Tensor) -> Tensor:
        """Grows with use, is released at random times, over a level that steps."""
        batch, length = demand.shape
        shape = (batch, 1)
        dwell = log_uniform(generator, shape, 20.0, 1500.0)
        index, age = renewals(generator, dwell.expand(-1, 64), length)
        speed = torch.exp(0.3 * normal(generator, (batch, 64))).gather(-1, index)
        base = normal(generator, (batch, 64)).gather(-1, index) * uniform(generator, shape)
        load = demand / demand.mean(-1, keepdim=True).clamp(min=1e-3)
        return (
            3 * base
            + speed * age / dwell * uniform(generator, shape, 0.5, 4.0)
            + load * log_uniform(generator, shape, 0.01, 1.0)
        )

    def _idle_jobs(self, generator: Generator, _: Tensor, jobs: Tensor) -> Tensor:
        """Almost nothing, now and then a run: a second schedule, a telegraph signal and small noise."""
        batch, length = jobs.shape
        shape = (batch, 1)
        dwell = log_uniform(generator, (batch, 2), 2.0, 300.0).repeat(1, 128)
        index = segments(generator, dwell, length)
        height = log_uniform(generator, (batch, 256), 0.5, 3.0).gather(-1, index)
        runs = (index % 2 == 1) * height
        floor = log_uniform(generator, shape, 1e-3, 0.1) * normal(generator, (batch, length)).abs()
        return runs + jobs + self._jobs(generator, batch, length) + floor
