"""What the hand-written gradients of the plain torch forms share: their precision, and gradients of their own."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

from tsseq.array_typing import Tensor


def in_own_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` or `backward` of a Function without autocast, which would round a recurrence at every step."""

    @wraps(method)
    def run(ctx: Any, *tensors: Tensor) -> Any:
        with torch.autocast(tensors[0].device.type, enabled=False):
            return method(ctx, *tensors)

    return run


def differentiable_gradients(
    loop: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients of `loop(*inputs)` by autograd, which has gradients of them in turn.

    For a `backward` in which gradients are enabled: those of a loop that fills memory in place are lost, and
    `once_differentiable` raises only where they alone lead to what is differentiated.
    """
    # Views: an input that another one depends on takes what reaches it directly, and no more.
    views = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(loop(*views), views, gradients, create_graph=True)
