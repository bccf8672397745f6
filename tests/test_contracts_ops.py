"""Every registered op equals its reference: results, states, gradients, odd lengths, strided inputs."""

import pytest
import torch

from tsseq.kernels import OPS, Op, delta_rule
from tsseq.testing import check_op, uninitialised_memory_is_nan


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_fast_forms_equal_the_reference(op: Op) -> None:
    check_op(op)


def test_a_wrong_gradient_is_found() -> None:
    def with_lost_state_gradient(initial_state=None, **inputs):
        state = None if initial_state is None else 0 * initial_state + initial_state.detach()
        return delta_rule.chunked(**inputs, initial_state=state)

    wrong = Op(with_lost_state_gradient, delta_rule.reference, delta_rule.chunked, delta_rule.example_inputs)
    with pytest.raises(AssertionError, match="gradient of initial_state"):
        check_op(wrong, lengths=(7,))


def test_uninitialised_memory_is_filled() -> None:
    with uninitialised_memory_is_nan():
        assert torch.empty(5).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
