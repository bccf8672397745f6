"""The one legend of axes; every signature in tsseq speaks these words.

batch      independent series (or channels of them)
time       positions in a series, oldest first
width      features of one position inside the network
head       parallel memories of a mixer; key and value are the two axes of one memory
state      entries of a recurrent state
patch      positions after patching: `time / patch_length` of them
horizon    future positions
quantile   levels of a predictive distribution
channel    variates of one multivariate series

With jaxtyping installed (extra `dev`) the tests check shapes at run time; without it the annotations are
plain tensors.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Inexact, Int
else:
    try:
        from jaxtyping import Bool, Float, Inexact, Int
    except ModuleNotFoundError:

        class _Unchecked:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Inexact = Int = _Unchecked

State: TypeAlias = tuple[Tensor, ...]
"""What a recurrent layer remembers: an immutable tuple of float32 tensors, batch axis first."""

__all__ = ["Bool", "Float", "Inexact", "Int", "State", "Tensor"]
