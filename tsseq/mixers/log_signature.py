"""Log-signatures of windows of a path, up to depth two, as the log-ODE method reads them."""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from tsseq.array_typing import Float, Tensor


def log_signature_width(width: int, depth: int) -> int:
    """Entries of a log-signature: the increments, and for depth 2 the area of every pair of channels."""
    return width + (width * (width - 1) // 2 if depth == 2 else 0)


def over_windows(
    advance: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    increments: Float[Tensor, "batch time width"],
    h: Float[Tensor, "batch state"],
    opened: Float[Tensor, "batch signature"],
    filled: Float[Tensor, "batch 1"],
    window: int,
    depth: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Carry a state through the windows of a path; between ends of windows it holds.

    `advance` maps log-signatures (batch × window × signature) and the state before them to the states after each and
    the last one. Returns the state at every position (batch × time × state), the last one, and the log-signature of the
    window left open and its length, to be passed on as `opened` and `filled`.

    Raises ValueError if the rows of the batch stand at different places in their windows.
    """
    if bool((filled != filled[:1]).any()):
        raise ValueError(f"expected sequences at one place in their windows, got {filled.flatten().tolist()}")
    count = int(filled[:1].sum())  # none in a batch of none
    signatures, opened, left = window_log_signatures(increments, opened, count, window, depth)
    ends = h[:, None]
    if signatures.shape[1]:
        states, h = advance(signatures, h)
        ends = torch.cat([ends, states], dim=1)
    position = torch.arange(1, increments.shape[1] + 1, device=h.device)
    return ends[:, (count + position) // window], h, opened, torch.full_like(filled, left)


def window_log_signatures(
    increments: Float[Tensor, "batch time width"],
    opened: Float[Tensor, "batch signature"],
    filled: int,
    window: int,
    depth: int,
) -> tuple[Float[Tensor, "batch window signature"], Float[Tensor, "batch signature"], int]:
    """Log-signatures of the windows that `increments` complete, that of the one they leave open, and its length.

    `opened` is the log-signature of the `filled` increments already in the open window (zero if there are none).
    Level 1 is the sum of the increments; level 2, for channels a < b, the signed area
    ½ Σ_{k<l} (δ_k^a δ_l^b − δ_k^b δ_l^a) (Walker et al., arXiv 2402.18512).
    """
    total = filled + increments.shape[1]
    windows = math.ceil(total / window)
    # Increments of zero, before and after, change neither level.
    padded = F.pad(increments, (0, 0, filled, windows * window - total)).unflatten(1, (windows, window))
    signatures = padded.sum(2)
    if depth == 2:
        before = padded.cumsum(2) - padded
        signatures = torch.cat([signatures, _areas(before.mT @ padded)], dim=-1)
    first = _concatenate(opened, signatures[:, 0], increments.shape[-1])
    signatures = torch.cat([first[:, None], signatures[:, 1:]], dim=1)
    if total % window:
        return signatures[:, :-1], signatures[:, -1], total % window
    return signatures, torch.zeros_like(opened), 0


def _concatenate(left: Tensor, right: Tensor, width: int) -> Tensor:
    """The log-signature of one path followed by another (Baker, Campbell and Hausdorff, to depth 2)."""
    both = left + right
    if left.shape[-1] == width:
        return both
    area = _areas(left[..., :width, None] * right[..., None, :width])
    return torch.cat([both[..., :width], both[..., width:] + area], dim=-1)


def _areas(products: Tensor) -> Tensor:
    """½ (M − Mᵀ) above the diagonal, row by row."""
    first, second = torch.triu_indices(products.shape[-1], products.shape[-1], offset=1, device=products.device)
    return 0.5 * (products - products.mT)[..., first, second]
