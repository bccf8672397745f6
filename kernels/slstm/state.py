"""Two ways to write the cell's state: (c, n, m, h) as in the paper, and what of it h depends on.

Multiplying c and n by exp(s) while s is taken from m changes no later h: c / n and m + log n say all. In them the cell
is a gated average: with a = log sigmoid(f) + log n_{t-1} and k = sigmoid(a - i), c/n <- k c/n + (1 - k) tanh(z) and
log n <- log(exp(a) + exp(i)). Nothing overflows, and no maximum is needed.
"""

import torch

from tsseq.array_typing import Float, Tensor

SMALLEST_N = 1e-30
"""Keeps c / n defined where n is still zero; adds nothing to an n that a step has touched."""


def reduced(state: Float[Tensor, "batch four head key"]) -> Float[Tensor, "batch three head key"]:
    """c / n, m + log n, h."""
    c, n, m, h = state.unbind(1)
    n = n + SMALLEST_N
    return torch.stack([c / n, m + n.log(), h], dim=1)


def expanded(state: Float[Tensor, "batch three head key"]) -> Float[Tensor, "batch four head key"]:
    """c, n = 1, m, h."""
    average, log_n, h = state.unbind(1)
    return torch.stack([average, torch.ones_like(average), log_n, h], dim=1)
