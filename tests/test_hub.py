"""Checkpoints on the Hugging Face hub: fetched by name alone, never for a path, and one line where that fails."""

import sys
import types

import pytest
import torch

import tsseq
from tsseq.cli.__main__ import main


@pytest.fixture
def hub(monkeypatch, checkpoint):
    """A hub that holds one repository; `calls` are the requests."""
    calls = []

    def hf_hub_download(repository, filename, **settings):
        calls.append((repository, filename))
        if repository != "someone/small":
            raise RuntimeError(f"404 Client Error.\nRepository not found for {repository}, and a page more")
        return checkpoint

    module = types.SimpleNamespace(hf_hub_download=hf_hub_download, calls=calls)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_a_repository_is_fetched_by_its_name(hub, checkpoint):
    model, same = tsseq.load("someone/small"), tsseq.load(checkpoint)
    assert hub.calls == [("someone/small", "model.safetensors")]
    for name, weight in same.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


def test_the_command_and_the_table_take_the_name(hub, tmp_path):
    out = tmp_path / "f.csv"
    assert main(f"forecast airline --horizon 3 --checkpoint someone/small --out {out}".split()) == 0
    assert out.exists() and len(hub.calls) == 1


def test_a_path_or_a_bundled_name_never_asks_the_hub(hub, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tsseq.load(checkpoint).save_pretrained(tmp_path / "runs" / "mine")
    for path in ("runs/mine", tmp_path / "runs" / "mine", "runs/mine/model.safetensors", checkpoint, "base"):
        tsseq.load(path)
    for absent in ("runs/other", "./someone/small", "someone/small.safetensors", "/someone/small", "absent", "a/b/c"):
        with pytest.raises(ValueError, match="no checkpoint"):
            tsseq.load(absent)
    assert hub.calls == []


def test_what_the_hub_refuses_is_one_line(hub, capsys):
    assert main("forecast airline --horizon 3 --checkpoint someone/other".split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'someone/other' could not be fetched from the Hugging Face hub: 404" in said


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"install tsseq\[hub\]"):
        tsseq.load("someone/small")


def test_offline_the_real_client_is_one_line(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="could not be fetched from the Hugging Face hub: .+") as error:
        tsseq.load("someone/small")
    assert "\n" not in str(error.value)
