"""Every prior and mixture against `tsseq.testing.check_prior`, and against the forecaster's scaler."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from tsseq.scaler import fit_scale
from tsseq.synthetic import PRIORS
from tsseq.synthetic.mixture import PRESETS, preset
from tsseq.testing import check_prior, draw

PRIORS_AND_MIXTURES = {**PRIORS, **{f"mixture {name}": make for name, make in PRESETS.items()}}


@pytest.fixture(scope="module")
def other_process():
    """A fresh interpreter with another hash seed, shared by the tests of this file to save its start."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "1234"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        executor.submit(os.getpid).result()
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before
        yield executor


@pytest.mark.parametrize("name", PRIORS_AND_MIXTURES)
def test_contract(name, other_process):
    check_prior(PRIORS_AND_MIXTURES[name](), elsewhere=other_process)


@pytest.mark.parametrize("name", PRIORS_AND_MIXTURES)
def test_no_collapse_under_the_scaler(name):
    """At most one series in a thousand is constant, values are moderate, and hardly any lies at the far end of
    arcsinh, be the scale that of the whole series or of its first half."""
    prior = PRIORS_AND_MIXTURES[name]()
    series = draw(prior, 5, 384 if prior.sequential else 1024, 384)
    assert series.abs().max() < 2e6
    constant = series.amax(-1) == series.amin(-1)
    assert constant.float().mean() < 0.001
    for seen in (384, 192):
        observed = (torch.arange(384) < seen).expand_as(series)
        assert (fit_scale(series, observed).apply(series).abs() > 6).float().mean() < 0.01


def test_unknown_mixture():
    with pytest.raises(ValueError, match="tsseq, tempopfn"):
        preset("nonsense")
