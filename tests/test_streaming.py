"""A stream's promise: read once, forecast like the whole history; its memory is a value of constant size."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tsseq
from tsseq.backbone import BackboneConfig
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.scaler import RunningSums, causal_scale, continued_scale
from tsseq.streaming import Stream

PATCH = 8


def network(*mixers: str, **options) -> Forecaster:
    torch.manual_seed(0)
    backbone = BackboneConfig(mixers=mixers or ("gated_delta_product",), width=16, layers=2, mlp_width=16)
    config = dict(patch_length=PATCH, hidden_width=16, max_context=400, scaler="causal", backbone=backbone)
    return Forecaster(ForecasterConfig(**{**config, **options})).eval()


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture
def walks(generator):
    walks = torch.randn(2, 300, generator=generator, dtype=torch.float64).cumsum(1)
    walks[0, 40:90] = torch.nan
    walks[1, ::3] = torch.nan
    return walks


def assert_same(stream, model, values, horizon=20):
    found, expected = stream.forecast(horizon), model.forecast(values, horizon)
    size = expected.quantiles.nan_to_num().abs().max()
    torch.testing.assert_close(found.quantiles, expected.quantiles, rtol=0, atol=1e-5 * size, equal_nan=True)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-5 * size, equal_nan=True)


def size_of(stream):
    return stream.tail.nbytes + sum(x.nbytes for reading in stream.readings for x in reading.leaves())


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(1, 60), min_size=1, max_size=5), horizon=st.integers(1, 40))
def test_forecasts_like_the_whole_history(cuts, horizon):
    model = network()
    values = torch.randn(1, sum(cuts), generator=torch.Generator().manual_seed(sum(cuts)), dtype=torch.float64)
    values[0, 1::7] = torch.nan
    first, *rest = values.split(cuts, 1)
    stream = model.stream(first)
    for piece in rest:
        stream = stream.update(piece)
    assert_same(stream, model, values, horizon)


@pytest.mark.parametrize(
    "mixers", [("lru",), ("mlstm", "slstm"), ("slice",), ("local_attention",), ("mamba",)], ids=str
)
def test_any_mixer(walks, mixers):
    model = network(*mixers)
    stream = model.stream(walks[:, :101]).update(walks[:, 101:102]).update(walks[:, 102:])
    assert_same(stream, model, walks)


def test_one_value_at_a_time(model, walks):
    stream = model.stream(walks[:, :1])
    for t in range(1, 60):
        stream = stream.update(walks[:, t : t + 1])
        assert_same(stream, model, walks[:, : t + 1], 9)


def test_the_shipped_checkpoint_streams(walks):
    model = tsseq.load("base")
    assert_same(model.stream(walks[:, :150]).update(walks[:, 150:]), model, walks, 96)


def test_series_of_unequal_lengths_that_end_together(model, walks):
    rows = [walks[0, :200], walks[1, 150:200]]
    stream = model.stream(rows).update(walks[:, 200:230])
    assert_same(stream, model, [torch.cat([row, more]) for row, more in zip(rows, walks[:, 200:230], strict=True)])


def test_long_pieces_are_read_in_parts(model, walks, monkeypatch):
    monkeypatch.setattr("tsseq.streaming.POSITIONS", 3)
    assert_same(model.stream(walks[:, :7]).update(walks[:, 7:]), model, walks)


def test_memory_does_not_grow_and_reaches_beyond_the_longest_context(model, walks):
    stream = model.stream(walks[:, :1])
    size = size_of(stream)
    for _ in range(4):
        stream = stream.update(walks)
    assert size_of(stream) == size
    assert stream.count == 1201 > model.config.max_context
    assert stream.forecast(5).quantiles.isfinite().all()


def test_a_stream_is_a_value(model, walks):
    stream = model.stream(walks[:, :100])
    before = stream.forecast(5).quantiles
    one, other = stream.update(walks[:, 100:150]), stream.update(-walks[:, 100:130])
    assert torch.equal(stream.forecast(5).quantiles, before)
    assert_same(one, model, walks[:, :150])
    assert_same(other, model, torch.cat([walks[:, :100], -walks[:, 100:130]], 1))


@pytest.mark.parametrize("every", [2, PATCH])
def test_fewer_moments_take_less_memory(model, walks, every):
    stream = model.stream(walks[:, :101], every=every)
    assert len(stream.readings) == PATCH // every
    with pytest.raises(ValueError, match=f"multiple of every = {every} values, got 101"):
        stream.forecast(3)
    assert_same(stream.update(walks[:, 101:208]), model, walks[:, :208])


def test_survives_its_process(model, walks, tmp_path):
    stream = model.stream(walks[:, :100], every=4)
    again = model.resume(stream.save(tmp_path / "stream.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["stream.safetensors"]
    later = [s.update(walks[:, 100:148]).forecast(20, (0.05, 0.5)).quantiles for s in (stream, again)]
    assert torch.equal(*later)


def test_files_that_are_no_stream_of_this_network(model, walks, tmp_path):
    path = model.stream(walks).save(tmp_path / "stream.safetensors")
    with pytest.raises(ValueError, match="that of another network"):
        network("lru").resume(path)
    with pytest.raises(ValueError, match="is not a stream: expected format tsseq-stream-1, got tsseq-forecaster-1"):
        model.resume(model.save_pretrained(tmp_path / "model.safetensors"))
    (tmp_path / "text").write_text("no")
    for name in ("text", "absent"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            model.resume(tmp_path / name)
    with pytest.raises(ValueError, match="cannot write"):
        model.stream(walks).save(tmp_path / "absent" / "stream.safetensors")


def test_nothing_seen_yet_is_forecast_as_missing(model):
    stream = model.stream([[1.0, 2.0], [torch.nan, torch.nan]])
    quantiles = stream.forecast(3).quantiles
    assert quantiles[0].isfinite().all() and quantiles[1].isnan().all()
    assert stream.update([torch.tensor([torch.nan]), [5.0]]).forecast(3).quantiles.isfinite().all()


def test_wrong_calls(model, walks):
    stream = model.stream(walks)
    for wrong, message in (
        (walks[:1], r"shape \(2, time\), got \(1, 300\)"),
        (walks[:, :0], "shape"),
        (walks[None], "shape"),
        (walks + torch.inf, "infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.update(wrong)
    for horizon, levels, message in ((0, None, "horizon must be a whole number"), (3, (1.5,), "1.5")):
        with pytest.raises(ValueError, match=message):
            stream.forecast(horizon, levels)
    with pytest.raises(ValueError, match="at least one series"):
        model.stream([])
    with pytest.raises(ValueError, match="every to divide the patch length of 8, got 3"):
        model.stream(walks, every=3)
    with pytest.raises(ValueError, match="scaler 'context'"):
        network(scaler="context").stream(walks)
    with pytest.raises(ValueError, match="weave True"):
        network(backbone=dataclasses.replace(model.config.backbone, weave=True)).stream(walks)
    with pytest.raises(ValueError, match="not enough memory"):
        Stream.empty(model, 10**9)


def test_a_scale_continues(walks):
    whole = causal_scale(walks, ~walks.isnan(), 10)
    past, found = RunningSums.empty(2, walks), []
    for piece in walks.split([50, 10, 240], 1):
        scale, past = continued_scale(piece, ~piece.isnan(), 10, past)
        found.append(scale)
    torch.testing.assert_close(torch.cat([s.loc for s in found], 1), whole.loc)
    torch.testing.assert_close(torch.cat([s.scale for s in found], 1), whole.scale)
    torch.testing.assert_close(past.scale().scale, whole.last().scale)
    torch.testing.assert_close(past.scale().loc, whole.last().loc)
