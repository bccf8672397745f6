"""Linear recursions over time without a loop over time."""

import math
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from tsseq.array_typing import Float


def linear_scan(decay: Float[Tensor, "batch time"], drive: Float[Tensor, "batch time"]) -> Tensor:
    """h_t = decay_t h_{t-1} + drive_t with h_{-1} = 0; the first drive is therefore the initial state.

    Stable for |decay| <= 1 since nothing is divided. A GPU with Triton scans in one launch.
    """
    if drive.is_cuda and find_spec("triton"):
        from tsseq.synthetic import triton_loops

        return triton_loops.linear_scan(decay, drive)
    return odd_even_scan(decay, drive)


def exponential_filter(drive: Float[Tensor, "batch time"], memory: Float[Tensor, "batch 1"]) -> Tensor:
    """h_t = r h_{t-1} + (1 - r) drive_t with r = e^(-1 / memory), started at the mean of the drive."""
    root = torch.exp(-1 / memory)
    inflow = (1 - root) * drive
    inflow[:, :1] += root * drive.mean(-1, keepdim=True)
    return linear_scan(root.expand_as(drive), inflow)


def odd_even_scan(decay: Float[Tensor, "batch time"], drive: Float[Tensor, "batch time"]) -> Tensor:
    """`linear_scan` by odd-even reduction in plain torch: O(time) work in O(log time) calls."""
    length = decay.shape[-1]
    if length == 1:
        return drive
    even = length - length % 2
    decay_0, decay_1 = decay[..., 0:even:2], decay[..., 1:even:2]
    drive_0, drive_1 = drive[..., 0:even:2], drive[..., 1:even:2]
    odd = odd_even_scan(decay_0 * decay_1, torch.addcmul(drive_1, decay_1, drive_0))
    out = torch.empty_like(drive)
    out[..., 1:even:2] = odd
    out[..., 0] = drive[..., 0]
    if length > 2:
        out[..., 2::2] = torch.addcmul(drive[..., 2::2], decay[..., 2::2], odd[..., : (length - 1) // 2])
    return out


def seasonal_cumsum(x: Float[Tensor, "batch time"], period: Tensor) -> Float[Tensor, "batch time"]:
    """y_t = x_t + y_{t-m} with a whole period m of its own for every series (batch × 1, int64, m >= 2)."""
    length = x.shape[-1]
    time = torch.arange(length, device=x.device)
    shift, reach = period, 2
    while reach < 2 * length:
        source = time - shift
        x = x + torch.where(source >= 0, x.gather(-1, source.clamp(min=0)), 0.0)
        shift, reach = shift * 2, reach * 2
    return x


def delay(x: Float[Tensor, "*batch time"], steps: int = 1) -> Float[Tensor, "*batch time"]:
    """x shifted `steps` into the future, zeros before it."""
    return torch.nn.functional.pad(x, (steps, 0))[..., : x.shape[-1]]


def fft_length(length: int) -> int:
    """A size of at least 2 × length whose transform is fast: a power of two times 1, 3, 5, 9 or 15."""
    return min(m << max(math.ceil(math.log2(2 * length / m)), 1) for m in (1, 3, 5, 9, 15))


@lru_cache(maxsize=8)
def angular_frequencies(length: int, device: torch.device) -> Tensor:
    """Radians per step from 0 to pi, the grid on which `stationary` takes responses; shared, not to be changed."""
    return torch.linspace(0, torch.pi, fft_length(length) // 2 + 1, device=device)


@lru_cache(maxsize=8)
def backshift(length: int, device: torch.device) -> Tensor:
    """e^(-i omega), the response of a delay of one step, on the same grid; shared, not to be changed."""
    omega = angular_frequencies(length, device)
    return torch.polar(torch.ones_like(omega), -omega)


def stationary(
    shocks: Float[Tensor, "batch shock"], response: Float[Tensor, "batch frequency"], length: int
) -> Float[Tensor, "batch time"]:
    """`length` steps of the output of a causal filter that has been running for ever.

    There are fft_length(length) shocks; the response is complex, at `angular_frequencies`. The circular
    convolution starts in the stationary law, and what wraps round lies at least `length` steps away.
    """
    if not len(shocks):  # which MKL refuses
        return shocks[:, :length]
    whole: Tensor = torch.fft.irfft(torch.fft.rfft(shocks) * response, n=shocks.shape[-1])
    return whole[..., :length]
