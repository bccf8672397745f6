"""Memory layout the GPU kernels share: tokens at one stride, whatever else surrounds them."""

from torch import Tensor


def token_rows(x: Tensor) -> Tensor:
    """`x` [batch, time, ...] such that token `b * time + t` starts at that multiple of `x.stride(1)`.

    Each token's own axes are dense. A slice of a wider projection passes as it is; anything else is copied.
    """
    batch, time = x.shape[:2]
    dense = x[:1, :1].is_contiguous() and x.stride(1) >= x[0, 0].numel()
    return x if dense and (batch == 1 or x.stride(0) == time * x.stride(1)) else x.contiguous()
