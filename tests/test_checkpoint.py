"""One file, whole or not at all, never unpickled."""

import json
import pickle
import struct

import pytest
import torch
from safetensors import safe_open

from tsseq.backbone import BackboneConfig
from tsseq.checkpoint import load, read_config, write
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.mixers import MIXERS

CONFIG = ForecasterConfig(
    patch_length=8,
    hidden_width=16,
    max_context=64,
    backbone=BackboneConfig(
        mixers=("gated_delta_product", "lru"),
        width=16,
        layers=2,
        mlp_width=16,
        options={"gated_delta_product": {"heads": 2}},
    ),
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Forecaster(CONFIG).eval()


def test_round_trip(model, tmp_path):
    series = torch.randn(2, 30)
    expected = model.forecast(series, 9).quantiles
    file = model.save_pretrained(tmp_path / "one.safetensors")
    folder = model.save_pretrained(tmp_path / "folder")
    assert folder == tmp_path / "folder" / "model.safetensors"
    for path in (file, str(file), tmp_path / "folder"):
        again = Forecaster.from_pretrained(path)
        assert again.config == CONFIG
        assert torch.equal(again.forecast(series, 9).quantiles, expected)


def test_header_holds_the_configuration(model, tmp_path):
    file = model.save_pretrained(tmp_path / "m.safetensors")
    assert read_config(file) == CONFIG
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["format"] == "tsseq-forecaster-1"


def test_nothing_is_left_behind(model, tmp_path):
    model.save_pretrained(tmp_path / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    "path", ["no/such/folder/m.safetensors", "file/m.safetensors", "file/folder", "folder.safetensors"]
)
def test_where_nothing_can_be_written(path, model, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="cannot (write|make the folder) .*"):
        model.save_pretrained(tmp_path / path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["nonsense", "./nowhere.safetensors", "/nowhere/at/all", "nowhere.safetensors"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="no checkpoint"):
        load(name)


def test_truncated_file(model, tmp_path):
    file = model.save_pretrained(tmp_path / "m.safetensors")
    whole = file.read_bytes()
    for length in (0, 5, 200, len(whole) - 10):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="m.safetensors"):
            load(file)


def test_foreign_files(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a tsseq forecaster"):
        load(tmp_path / "other.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load(tmp_path / "pickle.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{",
        '"text"',
        '{"surprise": 1}',
        '{"patch_length": "many"}',
        '{"levels": 3}',
        '{"backbone": 3}',
        '{"backbone": {"mixers": ["nonsense"]}}',
        '{"backbone": {"options": {"lru": {"nonsense": 1}}}}',
        '{"patch_length": 4.0}',
        '{"levels": ["0.5"]}',
        '{"backbone": {"width": 16.0}}',
        '{"backbone": {"layers": true}}',
        '{"backbone": {"weave": "yes"}}',
        '{"backbone": {"options": {"lru": 1}}}',
        "[" * 200_000,
    ],
)
def test_headers_without_a_configuration(config, model, tmp_path):
    from safetensors.torch import save_file

    metadata = {"format": "tsseq-forecaster-1", **({} if config is None else {"config": config})}
    save_file({"w": torch.zeros(3)}, tmp_path / "m.safetensors", metadata)
    with pytest.raises(ValueError, match="m.safetensors holds no configuration of a forecaster") as caught:
        load(tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)


def test_a_header_of_brackets(tmp_path):
    header = b"[" * 200_000
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="m.safetensors is not a whole safetensors file"):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"width": 64}, "do not fit the network: .*size mismatch"),
        ({"width": 10**6}, "do not fit the network: .* are too few for 2 layers of"),
        ({"width": 10**9}, "do not fit the network: .* are too few for 2 layers of"),
        ({"layers": 10**7}, "do not fit the network: .* are too few for 10000000 layers"),
        (
            {"options": {"gated_delta_product": {"heads": 10**9}}},
            "do not fit the network: .* or for an option of 10{9}$",
        ),
        ({"options": {"lru": {"state_width": "x"}}}, "describes no network"),
        (
            {"options": {"gated_delta_product": {"heads": 2, "rotary": "yes"}}},
            "describes no network: expected rotary of type bool",
        ),
        ({"options": {"gated_delta_product": {"heads": 3}}}, "describes no network: width must be"),
    ],
)
def test_networks_other_than_the_weights(change, message, model, tmp_path):
    """Found out before any network is built: what a header asks for need not fit in memory."""
    values = CONFIG.to_dict()
    config = json.dumps(values | {"backbone": values["backbone"] | change})
    metadata = {"format": "tsseq-forecaster-1", "config": config}
    file = write(tmp_path / "m.safetensors", model.state_dict(), metadata)
    with pytest.raises(ValueError, match=f"m.safetensors {message}") as caught:
        load(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_comes_back(mixer, tmp_path):
    backbone = BackboneConfig(mixers=(mixer,), width=32, layers=1, mlp_width=0)
    model = Forecaster(ForecasterConfig(patch_length=8, hidden_width=16, max_context=64, backbone=backbone))
    again = load(model.save_pretrained(tmp_path)).state_dict()
    assert all(torch.equal(again.pop(name), weight) for name, weight in model.state_dict().items()) and not again


def test_equal_models_are_equal_files(model, tmp_path):
    """With as many rights as other files have."""
    files = [model.save_pretrained(tmp_path / f"{i}.safetensors") for i in range(10)]
    assert len({file.read_bytes() for file in files}) == 1
    (tmp_path / "other").write_text("")
    assert files[0].stat().st_mode == (tmp_path / "other").stat().st_mode


def test_weights_that_do_not_fit(model, tmp_path):
    from safetensors.torch import load_file, save_file

    file = model.save_pretrained(tmp_path / "m.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    weights.pop(next(iter(weights)))
    save_file(weights, file, metadata)
    with pytest.raises(ValueError, match="do not fit") as caught:
        load(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
