"""Mixtures deliver what they declare; augmentations do what they say; diagnostics find what is there."""

import math
import re
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tsseq.cli.sample import sample
from tsseq.datasets.tasks import masked_spans
from tsseq.plotting import _report_page, plot_prior_report
from tsseq.synthetic import PRIORS, augment
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import standardise
from tsseq.synthetic.diagnostics import autocorrelation, periodogram, seasonal_naive_mase, seasonality
from tsseq.synthetic.draws import host_generator
from tsseq.synthetic.mixture import COARSER, COARSER_WEIGHTS, ONLINE, PRESETS, TEMPOPFN, TSSEQ, Mixture, preset


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Ramp(Prior):
    """offset + t / length: the offset tells the family even from sums of up to 48 steps."""

    offset: float = 0.0

    def sample(self, generator, batch_size, length):
        return (self.offset + torch.arange(length) / length).repeat(batch_size, 1)


OFFSETS = (-10.0, 0.0, 100.0)


def ramps(**options) -> Mixture:
    weights = {"a": 0.5, "b": 0.495, "rare": 0.005}
    return Mixture(weights, {name: Ramp(offset) for name, offset in zip(weights, OFFSETS, strict=True)}, **options)


@pytest.mark.parametrize("coarser", (0.0, 0.5))
def test_delivered_shares_are_the_declared_ones(coarser):
    """A family of half a per cent gets its share of batches of twenty, where rounding down would give it nothing."""
    mixture = ramps(coarser=coarser)
    for seed in range(600):
        x, labels = mixture.sample_labelled(seeded(seed), 20, 64)
        assert x.shape == (20, 64)
        assert torch.equal((x[:, 0] >= 0).long() + (x[:, 0] > 90), labels)
    assert sum(mixture.delivered.values()) == 12_000
    shares = mixture.shares()
    assert abs(shares["rare"] - 0.005) < 0.0025
    assert abs(shares["a"] - 0.5) < (0.005 if coarser == 0 else 0.02)


def test_counts_are_stratified():
    mixture = ramps()
    for seed in range(50):
        counts = mixture.counts(seeded(seed), 37)
        assert sum(counts) == 37
        assert all(abs(c - 37 * w) < 1 for c, w in zip(counts, mixture.weights.values(), strict=True))


def test_families_are_interleaved():
    _, labels = ramps().sample_labelled(seeded(0), 200, 8)
    assert 60 < (labels.diff() != 0).sum() < 140


def test_edits_reach_their_share_of_rows():
    def mark(generator, x, probability):
        return x + 1000.0

    mixture = ramps(edits=((mark, 0.1), (mark, 0.3)))
    marks = torch.cat([(mixture.sample(seeded(seed), 24, 4)[:, 0] / 1000).round() for seed in range(400)])
    for count, share in ((0, 0.63), (1, 0.34), (2, 0.03)):
        assert abs((marks == count).float().mean() - share) < 0.015


def test_mixture_rejects_what_it_cannot_mix():
    with pytest.raises(ValueError, match="positive sum"):
        Mixture({}, {})
    with pytest.raises(ValueError, match="one prior per weight"):
        Mixture({"a": 1.0}, {"b": Ramp()})


def test_presets_name_registered_families():
    for weights in (TSSEQ, TEMPOPFN):
        assert set(weights) <= set(PRIORS)
    assert abs(sum(TSSEQ.values()) - 1) < 1e-9
    assert set(preset("everything").weights) == set(PRIORS)


def test_host_generator_follows_the_state():
    first, second = seeded(4), seeded(4)
    a, b = host_generator(first), host_generator(second)
    assert a.initial_seed() == b.initial_seed() != host_generator(first).initial_seed()


@pytest.mark.parametrize("edit", [edit for edit, _ in ONLINE])
def test_edits_change_some_rows_and_leave_the_others(edit):
    x = PRIORS["sde"]().sample(seeded(0), 400, 300)
    y = edit(seeded(1), x, 0.3)
    assert y.shape == x.shape and y.isfinite().all()
    same = (y - x).abs().amax(-1) <= 1e-5 * x.abs().amax(-1)
    assert 0.6 < same.float().mean() < 0.99
    assert edit(seeded(2), x[:, :1], 1.0).shape == (400, 1)


def test_rates_and_factors_are_all_drawn(monkeypatch):
    """A share coarser / factor of the rows is drawn `factor` times longer, and brought back in any of four ways."""
    calls = []
    decimate = augment.decimate

    def counted(x, factor, how):
        calls.append((factor, how, len(x)))
        return decimate(x, factor, how)

    monkeypatch.setattr(augment, "decimate", counted)
    mixture = ramps(coarser=0.5)
    for seed in range(800):
        mixture.sample(seeded(seed), 60, 4)
    factors = np.array([factor for factor, _, _ in calls])
    assert set(factors) == set(COARSER) and {how for _, how, _ in calls} == set(augment.RATES)
    drawn = 800 * np.array(COARSER_WEIGHTS) / sum(COARSER_WEIGHTS)
    for factor, times in zip(COARSER[:3], drawn[:3], strict=True):
        rows = sum(count for drawn_factor, _, count in calls if drawn_factor == factor)
        assert abs(rows / times / (0.5 * 60 / factor) - 1) < 5 / math.sqrt(times)


def test_half_of_the_training_series_start_late():
    """Left truncation: what lies before is hidden, at a log-uniform distance from the end."""
    task = masked_spans(seeded(0), torch.zeros(4000, 32 * 64), 32)
    start = task.visible.byte().argmax(-1)
    late = start > 0
    assert abs(late.float().mean() - 0.5) < 0.04
    shortest, middle = (32 * 64 - start[late]).float().quantile(torch.tensor([0.02, 0.5])).tolist()
    assert shortest < 64 and 64 < middle < 512


def test_edits_do_what_they_say():
    x = PRIORS["gaussian_process"]().sample(seeded(0), 200, 400)
    mean, spread = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    assert torch.allclose(augment.flip(seeded(0), x, 1.0), 2 * mean - x, atol=1e-4)
    censored = augment.censor(seeded(0), x, 1.0)
    assert (censored.abs() <= x.abs().amax(-1, keepdim=True) + 1e-6).all()
    assert ((censored == censored.amax(-1, keepdim=True)).sum(-1) > 1).float().mean() > 0.4
    steps = augment.quantise(seeded(0), x, 1.0)
    assert ((steps - x).abs() <= 0.41 * spread).all()
    assert np.mean([len(row.unique()) for row in steps]) < 200
    held = augment.hold(seeded(0), x, 1.0)
    assert ((held.diff(dim=-1) == 0).float().mean(-1) > 0.4).all()
    ramp = torch.arange(300.0).repeat(50, 1)
    warped = augment.warp(seeded(0), ramp, 1.0)
    assert (warped.diff(dim=-1) >= -1e-3).all() and not torch.allclose(warped, ramp, atol=5.0)


def test_modulation_scales_by_a_smooth_positive_path():
    x = PRIORS["gaussian_process"]().sample(seeded(0), 200, 400)
    centred = x - x.mean(-1, keepdim=True)
    factor = (augment.modulate(seeded(1), x, 1.0) - x.mean(-1, keepdim=True)) / centred
    factor[centred.abs() < 0.1 * x.std(-1, keepdim=True)] = torch.nan
    assert not (factor <= 0).any()
    assert factor.log().diff(dim=-1).nan_to_num().abs().max() < 0.15  # knots are 64 steps apart at least
    assert 0.05 < factor.log().nan_to_num().std(-1).median() < 1.0


def test_bending_keeps_the_order_of_values():
    x = PRIORS["gaussian_process"]().sample(seeded(0), 400, 300)
    y = augment.bend(seeded(1), x, 1.0)
    rising = y.gather(-1, x.argsort(-1)).diff(dim=-1)
    assert (rising >= -1e-5 * y.abs().amax(-1, keepdim=True)).all()
    floored = (y == 0).float().mean(-1) > 0.1
    assert abs(floored.float().mean() - 0.25) < 0.1 and (y >= 0).all(-1).float().mean() > 0.6


def test_spikes_are_rare_large_and_of_one_sign():
    x = torch.randn((500, 400), generator=seeded(0))
    added = (augment.spike(seeded(1), x, 1.0) - x) / x.std(-1, keepdim=True)
    hit = added.abs() > 1e-4
    assert 0.001 < hit.float().mean() < 0.02 and hit.float().mean(-1).max() < 0.06
    assert added[hit].abs().min() > 0.55 and added[hit].abs().max() < 10.1
    assert not ((added > 1e-4).any(-1) & (added < -1e-4).any(-1)).any()
    assert abs((added > 1e-4).any(-1).sum() / hit.any(-1).sum() - 0.7) < 0.12


def test_measurement_noise_is_white_and_of_its_size():
    x = torch.randn((400, 500), generator=seeded(0)).cumsum(-1)
    noise = (augment.observe(seeded(1), x, 1.0) - x) / x.std(-1, keepdim=True)
    assert noise.std(-1).min() > 0.008 and noise.std(-1).max() < 0.34
    assert autocorrelation(noise)[:, 1:20].mean(0).abs().max() < 0.02


def test_outages_are_runs_at_the_lowest_value_or_the_mean():
    x = torch.randn((400, 1000), generator=seeded(0))
    y = augment.outage(seeded(1), x, 1.0)
    out = y != x
    low = ((y == x.amin(-1, keepdim=True)) | ~out).all(-1)
    mean = ((y - x.mean(-1, keepdim=True)).abs() < 1e-5).logical_or(~out).all(-1)
    assert (low | mean).all() and 0.6 < (low & out.any(-1)).sum() / out.any(-1).sum() < 0.95
    assert 0.01 < out.float().mean() < 0.4 and (out[:, 1:] & out[:, :-1]).sum() > 0.5 * out.sum()


def test_a_splice_goes_on_as_another_series_of_the_batch():
    """Up to the cut nothing changes; from there on the changes are those of one other series, in units of its size."""
    x = PRIORS["gaussian_process"]().sample(seeded(0), 60, 400)
    y = augment.splice(seeded(1), x, 1.0)
    z = standardise(x)
    for row in range(60):
        moved = ((y[row] - x[row]).abs() > 1e-5 * x[row].abs().max()).nonzero()[:, 0]
        if not len(moved) or moved[0] > 380:
            continue
        cut = int(moved[0])
        change = y[row, cut:].diff() / x[row].std(correction=0)
        distance = (z[:, cut:].diff(dim=-1) - change).abs().amax(-1)
        assert distance.min() < 1e-2 and distance.argmin() != row


def test_filters_and_running_sums_keep_level_and_size():
    x = 5 + PRIORS["gaussian_process"]().sample(seeded(0), 300, 400)
    for edit in (augment.convolve, augment.integrate):
        y = edit(seeded(1), x, 1.0)
        assert torch.allclose(y.mean(-1), x.mean(-1), atol=1e-3 * float(x.std()))
        assert torch.allclose(y.std(-1), x.std(-1), rtol=1e-3)
    walk = torch.randn((200, 400), generator=seeded(2)).cumsum(-1)
    changed = standardise(augment.integrate(seeded(3), walk, 1.0))
    change = standardise(torch.nn.functional.pad(walk.diff(dim=-1), (1, 0)))
    differenced = (changed - change).abs().amax(-1) < 1e-3
    assert abs(differenced.float().mean() - 0.4) < 0.12


def test_filters_are_linear_and_reach_fifteen_steps():
    """The answer to one shock, up to level and size, is the filter: nothing moves further than 15 steps away."""
    shock = torch.zeros(200, 301)
    shock[:, 150] = 1.0
    answer = augment.convolve(seeded(0), shock, 1.0)
    moved = (answer - answer[:, :1]).abs() > 1e-4 * answer.std(-1, keepdim=True)
    assert moved.any(-1).all() and not moved[:, :135].any() and not moved[:, 166:].any()


def test_the_calendar_scales_weekends_feasts_and_months():
    """On a flat series over zero every value is a factor; days of five and two make runs of two a week apart."""
    x = torch.ones(2000, 730)
    x[:, 0] = 0.0  # the lowest value, from which heights are measured
    y = augment.calendar(seeded(0), x, 1.0)
    assert (y >= 0).all() and y.max() < 8
    days = y[:, 1:] * 30.436875
    whole = ((days - days.round()).abs() < 1e-3).all(-1) & (days < 28.5).any(-1)
    lengths = days[whole].round()
    assert abs(len(lengths) / 2000 - 1 / 6) < 0.05
    assert abs((lengths == 31).float().mean() - 7 / 12) < 0.01
    weekly = autocorrelation(y[:, 1:])[:, 7]
    assert (weekly > 0.5).float().mean() > 0.1


def test_mixing_keeps_level_and_size_of_the_first():
    x = 50 + 3 * PRIORS["sine_waves"]().sample(seeded(0), 300, 500)
    y = augment.mix(seeded(1), x, 1.0)
    assert torch.allclose(y.mean(-1), x.mean(-1), rtol=1e-3)
    assert (y.std(-1) <= 1.01 * x.std(-1)).all()


def test_missing_returns_nan_in_a_share_of_rows():
    x = torch.ones(1000, 200)
    lost = augment.missing(seeded(0), x, 0.3).isnan()
    assert abs(lost.any(-1).float().mean() - 0.25) < 0.07
    assert not lost.all(-1).any()


@pytest.mark.parametrize("how, reduce", (("mean", np.mean), ("sum", np.sum), ("max", np.max)))
def test_decimation_aggregates_blocks_that_end_with_the_series(how, reduce):
    x = torch.randn((3, 50), generator=seeded(0))
    expected = reduce(x[:, 2:].numpy().reshape(3, 4, 12), axis=-1)
    assert np.allclose(augment.decimate(x, 12, how), expected, atol=1e-5)
    assert torch.equal(augment.decimate(x, 12, "last"), x[:, [13, 25, 37, 49]])
    with pytest.raises(ValueError, match="mean, sum, max, last"):
        augment.decimate(x, 2, "median")


def test_diagnostics_find_a_season():
    time = torch.arange(480.0)
    generator = seeded(0)
    waves = torch.stack([torch.sin(2 * torch.pi * time / m) for m in (12, 24, 52)])
    series = waves + 0.2 * torch.randn((3, 480), generator=generator) + 0.01 * time
    assert (seasonality(series) - torch.tensor([12, 24, 52])).abs().tolist() <= [0, 0, 1]
    assert seasonality(torch.randn((200, 480), generator=generator)).float().mean() < 5
    assert periodogram(waves).argmax(-1).add(1).tolist() == [40, 20, 9]
    assert torch.allclose(autocorrelation(waves)[:, 0], torch.ones(3))
    ratio = seasonal_naive_mase(series, 48)
    assert (ratio > 0.6).all() and (ratio < 1.8).all()
    assert seasonal_naive_mase(torch.ones(1, 100), 10).isnan().all()


def test_sample_writes_table_picture_and_report(tmp_path, capsys):
    table, picture, report = (tmp_path / f"x.{suffix}" for suffix in ("parquet", "png", "pdf"))
    sample("tempopfn", n=20, length=96, seed=3, out=table, plot=picture)
    sample("sde", n=20, length=96, report=report)
    written = pq.read_table(table)
    assert written.schema.metadata == {b"prior": b"tempopfn", b"seed": b"3"}
    frame = written.to_pandas()
    assert list(frame) == ["item_id", "start", "freq", "target", "family"]
    assert len(frame) == 20 and set(frame["family"]) <= set(TEMPOPFN) and frame["item_id"].is_unique
    drawn = np.stack(frame["target"])
    assert drawn.dtype == np.float32
    assert np.array_equal(drawn, preset("tempopfn").sample(seeded(3), 20, 96).numpy())
    assert picture.stat().st_size > 5000 and report.stat().st_size > 5000
    assert "tempopfn" not in capsys.readouterr().err


def test_a_report_has_a_page_for_every_family(tmp_path):
    """With examples, spectrum, autocorrelation, difficulty, and the shares in words."""
    series = torch.randn((4, 64), generator=seeded(0))
    out = plot_prior_report(series, ["b", "a", "b", "b"], tmp_path / "x.pdf")
    assert len(re.findall(rb"/Type\s*/Page\b", out.read_bytes())) == 2
    constant = torch.ones(4, 64)
    constant[0, 10] = 2.0
    page = _report_page(constant, "some_family")
    titles = {axis.get_title() for axis in page.axes}
    assert titles >= {"spectrum", "autocorrelation", "Seasonal Naive"}
    assert page.get_supxlabel().startswith("4 series, 75.00% constant")


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"prior": "arma"}, "unknown prior 'arma': expected a mixture"),
        ({"n": 0}, "at least 1"),
        ({"length": -3}, "at least 1"),
        ({"length": 10, "report": "x.pdf"}, "at least 64"),
        ({"out": "x.csv"}, "parquet"),
    ),
)
def test_sample_refuses_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as refusal:
        sample(**arguments)
    assert "\n" not in str(refusal.value)


def test_every_preset_is_a_mixture():
    for name in PRESETS:
        assert isinstance(preset(name), Mixture)
