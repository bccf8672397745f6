"""Every mixer, the scaler and the forecaster against the contracts of `tsseq.testing`."""

import pytest
import torch

from tsseq.backbone import BackboneConfig
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.mixers import MIXERS
from tsseq.scaler import fit_scale
from tsseq.testing import check_forecaster, check_mixer, check_scaler

VARIANTS = {
    "delta_net": ("gated_delta_product", {"gated": False, "negative_eigenvalues": False}),
    "gated_delta_product with everything": (
        "gated_delta_product",
        {"steps": 3, "rotary": True, "kernel": 8, "learn_initial_state": True},
    ),
    "lru narrow ring": ("lru", {"state_width": 12, "r_min": 0.9, "r_max": 0.999}),
}


@pytest.mark.parametrize("name", MIXERS)
def test_mixer_by_name_alone(name):
    torch.manual_seed(0)
    check_mixer(lambda: MIXERS[name](32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_mixer_variants(variant):
    name, options = VARIANTS[variant]
    torch.manual_seed(0)
    check_mixer(lambda: MIXERS[name](32, **options))


@pytest.mark.parametrize("name", MIXERS)
def test_mixer_rejects_bad_width(name):
    with pytest.raises(ValueError, match="width"):
        MIXERS[name](0)


def test_scaler():
    check_scaler(fit_scale)


@pytest.mark.parametrize("name", MIXERS)
def test_forecaster_on_every_mixer(name):
    torch.manual_seed(0)
    config = ForecasterConfig(
        patch_length=16,
        hidden_width=32,
        backbone=BackboneConfig(mixers=(name,), width=32, layers=2, mlp_width=32),
    )
    check_forecaster(Forecaster(config).eval())
