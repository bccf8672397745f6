"""What happens in a series and when: bursts, resets, schedules, spikes, waves, regimes, jumps, causes and effects."""

import numpy as np
import pytest
import torch

from tsseq.synthetic import PRIORS
from tsseq.synthetic.causal import Causal
from tsseq.synthetic.diagnostics import autocorrelation
from tsseq.synthetic.epidemic import Epidemic
from tsseq.synthetic.sde import SDE
from tsseq.synthetic.spikes import Spikes
from tsseq.synthetic.telemetry import Telemetry

SEEDS = (0, 1, 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def off_beat(gaps: torch.Tensor) -> torch.Tensor:
    """How far each gap is from a whole multiple of the median gap, in units of it; a gap of nothing is all off."""
    beats = gaps / gaps.median()
    return torch.where(beats < 0.8, 1.0, (beats - beats.round()).abs())


# Telemetry


@pytest.mark.parametrize("seed", SEEDS)
def test_bursts_decay_exponentially_and_follow_the_load(seed):
    """Between arrivals a burst falls by one factor a step; e² times as many arrive when the load is e² times higher."""
    rates = []
    for load in (-1.0, 1.0):
        burst = Telemetry()._bursts(seeded(seed), torch.full((400, 3000), load)).double()
        burst = burst[burst.amax(-1) > 0]
        now, before = burst[:, 1:], burst[:, :-1]
        alive = (before > 1e-5) & (now > 1e-6)
        ratio = torch.where(alive, now / before.clamp(min=1e-30), torch.inf)
        factor = ratio.amin(-1, keepdim=True)
        assert 0.03 < factor.min() and factor.max() < 0.994
        arrived = now > before * factor * 1.001 + 1e-6
        if load < 0:  # few overlap, so nearly every other step falls by the factor itself
            assert ((ratio - factor).abs() < 1e-3 * factor)[alive & ~arrived].double().mean() > 0.999
        rates.append(float(arrived.double().mean()))
    assert 6.7 < rates[1] / rates[0] < 8.1


def test_memory_grows_until_it_is_released():
    """At constant load a straight rise between releases, which come every 20 to 1500 steps."""
    used = Telemetry()._memory(seeded(0), torch.ones(300, 2000), torch.empty(0)).double()
    slope = used.diff(dim=-1)
    assert (slope > 0).double().mean() > 0.97
    bent = (slope.diff(dim=-1).abs() > 1e-3 * used.std(-1, keepdim=True)).double().mean(-1)
    assert bent.max() < 2.5 / 20 and 0.003 < bent.median() < 0.03
    assert (slope < -0.05 * used.std(-1, keepdim=True)).any(-1).double().mean() > 0.9


def test_load_has_a_day():
    """Three quarters have one, and two in three of these a calendar's, of 10 seconds' to an hour's steps."""
    day = Telemetry()._day(seeded(0), 400, 4000)
    lags = [24, 96, 144, 288, 1440]
    assert (autocorrelation(day)[:, lags].amax(-1) > 0.4).float().mean() > 0.8


def test_machines_idle_and_counters_are_coarse():
    gate = Telemetry()._gate(seeded(0), 2000, 2000)
    idle = gate < 0.5
    assert abs(idle.any(-1).float().mean() - 0.24) < 0.04 and (gate[idle] < 0.05).all() and (gate[~idle] == 1).all()
    coarse = Telemetry(coarse=1.0).sample(seeded(0), 300, 2000)
    levels = [len(row.unique()) for row in coarse]
    assert max(levels) <= 1 / 0.003 + 2 and 10 < np.median(levels) < 100


# Spikes and anomalies


def test_most_spikes_are_regular():
    """Three in five series have no jitter; peaks of one series that are high enough are then whole intervals apart."""
    series = Spikes().sample(seeded(0), 300, 2000)
    centred = series - series.median(-1, keepdim=True).values
    highest = centred.gather(-1, centred.abs().argmax(-1, keepdim=True))
    starts = [((row[1:] > 0.5) & (row[:-1] <= 0.5)).nonzero()[:, 0] for row in centred * highest.sign()]
    gaps = [start.diff().float() for start in starts]
    regular = [float((off_beat(gap) < 0.08).float().mean()) > 0.95 for gap in gaps if len(gap) > 5]
    assert len(regular) > 150 and 0.35 < np.mean(regular) < 0.75


@pytest.mark.parametrize("seed", SEEDS)
def test_some_anomalies_have_a_period(seed):
    """Of the regular ones, 0.6, those without followers and extras (0.7) come every 20 to 299 steps exactly."""
    series = PRIORS["anomaly"]().sample(seeded(seed), 400, 3000)
    out = (series - series.median(-1, keepdim=True).values).abs() > 0.35
    gaps = [row.nonzero()[:, 0].diff().float() for row in out]
    gaps = [row for row in gaps if len(row) > 3]
    # Whole numbers are multiples of any small one.
    periods = [float(row.median()) for row in gaps if row.median() > 10 and off_beat(row).max() < 1e-3]
    assert abs(len(periods) / len(gaps) - 0.42) < 0.1
    assert min(periods) >= 20 and max(periods) < 300


# Epidemics


def test_waves_rise_and_fall_exponentially():
    """Far from the peak the logarithm is straight; the fall takes 0.7 to 5 times as long as the rise."""
    waves = Epidemic(waves=1)._waves(seeded(0), 400, 3000) - 1e-3
    found = 0
    for wave in waves:
        peak, height = int(wave.argmax()), float(wave.max())
        tail = (wave < 0.02 * height) & (wave > 5e-4 * height)
        rise, fall = tail[:peak].nonzero()[:, 0], tail[peak:].nonzero()[:, 0] + peak
        if height < 0.01 or min(len(rise), len(fall)) < 4:
            continue
        up, down = (wave.log().diff()[steps[:-1]] for steps in (rise, fall))
        assert up.std() < 0.01 * up.mean() and down.std() < 0.01 * -down.mean()
        assert 0.69 < up.mean() / -down.mean() < 5.1
        found += 1
    assert found > 60


# Regimes and jumps


def test_regimes_recur_and_last():
    two = SDE(switching=1.0, recurring=1.0)._regimes(seeded(0), 500, 2000)
    assert set(two.unique().tolist()) == {0, 1}
    changes = (two.diff(dim=-1) != 0).float().mean(-1)
    assert changes.max() < 2 / 15 and 1 / 2000 < changes.median() < 1 / 50
    new = SDE(switching=1.0, recurring=0.0)._regimes(seeded(0), 500, 2000)
    assert (new.diff(dim=-1) >= 0).all() and new.max() > 10
    assert (SDE(switching=0.0)._regimes(seeded(0), 500, 2000) == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_some_shocks_remember_and_some_jump(seed):
    """A fifth is fractional noise with memory U(-.3, .45), whose first autocorrelation d / (1 - d) passes ±0.12 for 14%
    of all; 6% or so jump further than ten standard deviations; all else is white noise of unit variance."""
    shocks = SDE()._shocks(seeded(seed), 2000, 1000)
    assert abs((autocorrelation(shocks)[:, 1].abs() > 0.12).float().mean() - 0.137) < 0.03
    assert 0.02 < (shocks.abs() > 12).any(-1).float().mean() < 0.15
    assert abs(shocks.square().mean(-1).median() - 1) < 0.05


# Causes


def test_effects_follow_their_cause_and_never_precede_it():
    """A single white cause: the effect correlates with its past 0 to 50 steps before, not with its future."""
    cause = torch.randn((400, 1, 2000), generator=seeded(0))
    effect = Causal()._effect(seeded(1), cause)
    spectra = [torch.fft.rfft(torch.nn.functional.pad(x, (0, 2000))) for x in (effect, cause[:, 0])]
    correlation = torch.fft.irfft(spectra[0] * spectra[1].conj()) / 2000
    past, future = correlation[:, :51].abs(), correlation[:, 2001:].abs()
    seen = past.amax(-1) > 0.4  # sines, remainders and absolute values hide it
    assert 0.5 < seen.float().mean() < 0.8 and future.max() < 0.15
    assert len(past[seen].argmax(-1).unique()) > 20


def test_an_effect_is_one_of_eight_functions_of_its_causes():
    x = torch.linspace(-3, 3, 601).expand(800, -1)
    y = Causal()._bend(seeded(0), x)
    line, change = x[0], y.diff(dim=-1)
    bounded = (y.amin(-1) >= 0) & (y.amax(-1) <= 1)
    kinds = {
        "identity": (y == line).all(-1),
        "absolute value": (y == line.abs()).all(-1),
        "rectifier": (y.amin(-1) == 0) & (y[:, 0] == 0) & (y.amax(-1) > 1.5) & (change >= 0).all(-1),
        "leaky rectifier": (y[:, 0] < -0.3) & (y[:, 0] > -0.9) & (change > 0).all(-1) & ~(y == line).all(-1),
        "sigmoid": bounded & (change >= 0).all(-1) & (y.amax(-1) > 0.9),
        "sine": (y.amin(-1) < -0.8) & (y.amax(-1) <= 1) & ~(change >= 0).all(-1),
        "remainder": (change < -1).any(-1),
        "exponential": (y > 0).all(-1) & (y.amax(-1) > 2.5) & (change > 0).all(-1),
    }
    claims = torch.stack(list(kinds.values()))
    assert (claims.sum(0) == 1).float().mean() > 0.97
    for name, claimed in kinds.items():
        assert abs(claimed.float().mean() - 1 / 8) < 0.05, name
