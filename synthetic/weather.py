"""Weather and air: temperature, wind, radiation, humidity, rain and pollution, at ten minutes to a day."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import standardise, time_steps
from tsseq.synthetic.draws import chance, host_generator, log_uniform, pick, shuffled, systematic, uniform
from tsseq.synthetic.hydrology import rainfall
from tsseq.synthetic.noise import autoregressive
from tsseq.synthetic.scan import exponential_filter

STEPS_PER_DAY = (288, 144, 96, 48, 24, 8, 4, 1)
STEP_WEIGHTS = (0.7, 1.5, 0.8, 0.8, 2.5, 0.4, 0.3, 2.0)


@dataclass(frozen=True)
class Weather(Prior):
    """One variable per series, all of them driven by season, sun and passing weather systems of a few days.

    Shares: temperature, humidity, radiation, pollution, rain, wind.
    """

    variables: tuple[float, float, float, float, float, float] = (0.3, 0.13, 0.17, 0.17, 0.08, 0.15)

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        day = pick(generator, shape, STEPS_PER_DAY, STEP_WEIGHTS)
        days = time_steps(generator, length) / day + uniform(generator, shape, 0.0, 365.25)
        sun = self._sun(generator, days, day)
        counts = systematic(host_generator(generator), batch_size, self.variables)
        systems = self._systems(generator, day, length)
        # Each variable is computed on its own rows only; the first three need the clouds, the first two the air.
        under, outside = sum(counts[:3]), sum(counts[:2])
        cloud = torch.sigmoid(2 * self._systems(generator, day[:under], length) + 1.2 * systems[:under])
        air = self._air(generator, days[:outside], sun[:outside], systems[:outside], cloud[:outside], day[:outside])
        dry, damp = air.split(counts[:2])
        radiation = sun[outside:under] * (1 - uniform(generator, (counts[2], 1), 0.2, 0.9) * cloud[outside:])
        rows = [x.split([under, *counts[3:]])[1:] for x in (days, sun, systems, day)]
        makers = (self._pollution, self._rain, self._wind)
        others = [maker(generator, *part) for maker, part in zip(makers, zip(*rows, strict=True), strict=True)]
        humidity = self._humidity(generator, damp, cloud[counts[0] : outside])
        return shuffled(generator, torch.cat([dry, humidity, radiation, *others]))

    def _sun(self, generator: Generator, days: Tensor, day: Tensor) -> Tensor:
        """Clear-sky radiation, zero at night; days are longer and brighter in summer."""
        shape = day.shape
        latitude = uniform(generator, tuple(shape), 0.0, 0.8)
        season = torch.sin(2 * torch.pi * days / 365.25) * latitude
        height = torch.cos(2 * torch.pi * (days - uniform(generator, tuple(shape)))) + 0.9 * season
        return torch.where(day > 1, height.clamp(min=0), 1 + season)

    def _systems(self, generator: Generator, day: Tensor, length: int) -> Tensor:
        """A smooth AR(2) of 1 to 6 days, unit variance, plus a rough part."""
        shape = tuple(day.shape)
        memory = day * uniform(generator, shape, 0.7, 5.0)
        slow = autoregressive(generator, memory, length)
        smooth = exponential_filter(slow, memory / 4) * 1.1
        return smooth + uniform(generator, shape, 0.0, 0.5) * autoregressive(generator, 0.1 * memory, length)

    def _air(
        self, generator: Generator, days: Tensor, sun: Tensor, systems: Tensor, cloud: Tensor, day: Tensor
    ) -> Tensor:
        """Temperature: season, passing systems, and the day's heating as the air answers to the sun hours later."""
        shape = tuple(day.shape)
        season = torch.sin(2 * torch.pi * (days - 30) / 365.25) * uniform(generator, shape, 0.3, 3.0)
        heating = exponential_filter(sun * (1 - 0.7 * cloud), day * uniform(generator, shape, 0.08, 0.25))
        return season + systems * uniform(generator, shape, 0.2, 1.0) + heating * uniform(generator, shape, 0.5, 4.0)

    def _humidity(self, generator: Generator, temperature: Tensor, cloud: Tensor) -> Tensor:
        """Percent, falling with temperature, up to a ceiling that some stations reach every night."""
        shape = (cloud.shape[0], 1)
        dry = standardise(temperature - uniform(generator, shape, 0.0, 1.5) * cloud)
        return (uniform(generator, shape, 50.0, 90.0) - 14 * dry).clamp(3.0, 100.0)

    def _rain(self, generator: Generator, days: Tensor, sun: Tensor, systems: Tensor, day: Tensor) -> Tensor:
        return rainfall(generator, 0.5 * systems - 1.0, day)

    def _wind(self, generator: Generator, days: Tensor, sun: Tensor, systems: Tensor, day: Tensor) -> Tensor:
        """The length of a two-dimensional Gaussian vector whose variance follows sun and weather."""
        shape, length = tuple(day.shape), sun.shape[-1]
        east, north = systems, self._systems(generator, day, length)
        gust = autoregressive(generator, 0.02 * day + 0.5, length) * uniform(generator, shape, 0.0, 0.4)
        breeze = 1 + uniform(generator, shape, 0.0, 0.6) * sun
        return (east + uniform(generator, shape, 0.0, 1.5)).hypot(north) * breeze * (1 + gust).clamp(min=0)

    def _pollution(self, generator: Generator, days: Tensor, sun: Tensor, systems: Tensor, day: Tensor) -> Tensor:
        """Log-normal: traffic peaks twice a day, builds up for days, is washed out at once."""
        shape, length = tuple(day.shape), sun.shape[-1]
        traffic = torch.cos(4 * torch.pi * (days - uniform(generator, shape))) * (day > 1)
        memory = autoregressive(generator, day * log_uniform(generator, shape, 0.1, 4.0), length)
        winter = torch.cos(2 * torch.pi * days / 365.25) * uniform(generator, shape, 0.0, 0.6)
        sign = torch.where(chance(generator, shape, 0.5), 1.0, -1.0)
        exponent = 0.3 * traffic + 0.3 * sign * sun + 0.6 * systems + 0.5 * memory + winter
        return torch.exp(exponent * uniform(generator, shape, 0.4, 1.2))
