"""Every registered op equals its reference: results, states, gradients, odd lengths, strided inputs."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tsseq.kernels import OPS, Op, block_scan, delta_rule
from tsseq.testing import check_op, uninitialised_memory_is_nan


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_fast_forms_equal_the_reference(op: Op) -> None:
    check_op(op)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_there_must_be_a_position(op: Op, generator: Generator) -> None:
    for inputs in op.example_inputs(generator, 2, 0).values():
        with pytest.raises(ValueError, match="time >= 1"):
            op.function(**inputs)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_a_vector_of_another_length_is_not_broadcast(op: Op, generator: Generator) -> None:
    for inputs in op.example_inputs(generator, 2, 3).values():
        for name, x in inputs.items():
            for wrong in (x[:1], x[1:], x[None]) if isinstance(x, Tensor) and x.ndim == 1 else ():
                with pytest.raises(ValueError, match=f"expected a {name} of shape"):
                    op.function(**inputs | {name: wrong})


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_gradients_have_the_gradients_of_the_reference(
    op: Op, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_scan.chunked, "LARGEST_DENSE_HADAMARD", 8)  # larger ones, here 64, are had in factors
    for inputs in op.example_inputs(generator, 2, 5).values():
        for stateless in (False, True):
            given = {name: wide(x) for name, x in inputs.items() if not (stateless and name == "initial_state")}
            fast, exact = (second_gradients(form, given) for form in (op.function, op.reference))
            torch.testing.assert_close(fast, exact, rtol=1e-9, atol=1e-9)


def wide(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(map(wide, x))
    if not isinstance(x, Tensor) or x.dtype == torch.bool:
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64).requires_grad_()


def leaves(x: Any) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else [leaf for part in x for leaf in leaves(part)]


def second_gradients(function: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """Of the squared norm of the gradient of a sum that is not linear in the results."""
    tensors = [x for value in inputs.values() if isinstance(value, Tensor | tuple) for x in leaves(value)]
    tensors = [x for x in tensors if x.requires_grad]
    loss = sum((x.abs().square() + x.abs().sin()).sum() for x in leaves(function(**inputs)))
    gradients = torch.autograd.grad(loss, tensors, create_graph=True)
    return list(torch.autograd.grad(sum(x.abs().square().sum() for x in gradients), tensors))


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
