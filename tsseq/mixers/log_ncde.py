"""Log-NCDE: a neural controlled differential equation, solved along log-signatures with Lie brackets."""

from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.mixers.base import SequenceMixer, at_least_float32, wide_linear
from tsseq.mixers.log_signature import log_signature_width, over_windows


class LogNCDE(SequenceMixer):
    """dh = f(h) dω, over each window dh/ds = Σ_a λ_a f_a(h) + Σ_{a<b} λ_ab [f_a, f_b](h);  h_0 = W x_0 + b,  y = W_o h.

    The control ω is (time, x), and λ its log-signature over a `window` of positions, of `depth` 1 or 2. The columns f_a
    of the vector field are a perceptron with SiLU inside and tanh at its end; the Lie bracket
    [f_a, f_b] = J_b f_a − J_a f_b says in which direction moving along a and then b differs from b and then a. One step
    of `solver` ("heun" or "euler") per window, or `solver_steps`. The output holds between ends of windows.

    Non-linear and sequential, like an RNN over windows: it tracks what an RNN tracks, and is by far the slowest here.
    `penalty` is the Lip(2) bound of the paper. Cost per window grows with width × states × `hidden`: `control_width`
    projects x to fewer channels first.

    State: h (batch × states), whether the sequence has begun (batch × 1), the last point (batch × control), and with
    windows the log-signature of the open one and its length (batch × signature, batch × 1).

    Paper: Walker, McLeod, Qin, Cheng, Li and Lyons, "Log neural controlled differential equations: the Lie brackets
    make a difference", arXiv 2402.18512.
    """

    def __init__(
        self,
        width: int,
        *,
        states: int | None = None,
        control_width: int | None = None,
        hidden: int = 32,
        layers: int = 2,
        window: int = 2,
        depth: int = 2,
        solver: str = "heun",
        solver_steps: int = 1,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__(width)
        if solver not in ("heun", "euler") or solver_steps < 1:
            raise ValueError(
                f"expected solver heun or euler and solver_steps of at least 1, got {solver!r} and {solver_steps}"
            )
        if depth not in (1, 2) or window < depth:
            raise ValueError(f"expected depth 1 or 2 and a window of at least depth, got {depth} and {window}")
        if hidden < 1 or layers < 1:
            raise ValueError(f"hidden and layers must be at least 1, got {hidden} and {layers}")
        self.states = width if states is None else states
        self.window, self.depth, self.heun, self.solver_steps = window, depth, solver == "heun", solver_steps
        self.time_scale = time_scale
        self.project_control = None if control_width is None else nn.Linear(width, control_width, bias=False)
        self.control = width if control_width is None else control_width
        self.field = VectorField(self.control + 1, self.states, hidden, layers)
        self.project_initial = nn.Linear(self.control, self.states)
        self.project_out = nn.Linear(self.states, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        widths = [self.states, 1, self.control]
        if self.window > 1:
            widths += [log_signature_width(self.control + 1, self.depth), 1]
        return tuple(self.zeros(batch_size, width) for width in widths)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        h, begun, point, *open_window = self.init_state(x.shape[0]) if state is None else state
        # A solver adds many small steps, which bf16 would lose.
        with torch.autocast(x.device.type, enabled=False):
            u = at_least_float32(x)
            u = u if self.project_control is None else wide_linear(self.project_control, u)
            h = h + (1 - begun) * wide_linear(self.project_initial, u[:, 0])
            moves = u - torch.cat([point[:, None], u[:, :-1]], dim=1)
            moves = F.pad(moves, (1, 0), value=self.time_scale)
            # The path begins at the first position: nothing has moved yet.
            moves = torch.cat([begun[:, None] * moves[:, :1], moves[:, 1:]], dim=1)
            after: tuple[Tensor, ...] = (torch.ones_like(begun), u[:, -1])
            if self.window == 1:
                states, h = self._advance(moves, h)
            else:
                states, h, *carry = over_windows(
                    self._advance, moves, h, open_window[0], open_window[1], self.window, self.depth
                )
                after += tuple(carry)
            y = wide_linear(self.project_out, states)
        return y.to(x.dtype), (h, *after)

    def _advance(self, signatures: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        states = []
        for signature in (signatures / self.solver_steps).unbind(1):
            for _ in range(self.solver_steps):
                slope = self.field(h, signature)
                if self.heun:
                    slope = (slope + self.field(h + slope, signature)) / 2
                h = h + slope
            states.append(h)
        return torch.stack(states, dim=1), h

    def weave(self, state: State, below: State) -> State:
        return state[0] + below[0], *state[1:]

    def penalty(self) -> Tensor:
        """Sum over the layers of the vector field of the mean norm of the rows of W plus the norm of b."""
        return self.field.penalty()


class VectorField(nn.Module):
    """f: states -> channels × states, and its directions along a log-signature."""

    def __init__(self, channels: int, states: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.channels, self.states = channels, states
        widths = [states] + layers * [hidden]
        self.inner = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.outer = nn.Linear(hidden, channels * states)
        for parameter in self.parameters():
            parameter.data /= 1000  # small brackets at the start

    def forward(
        self, h: Float[Tensor, "batch state"], signature: Float[Tensor, "batch signature"]
    ) -> Float[Tensor, "batch state"]:
        """Σ_a λ_a f_a(h), and if the signature has areas, + Σ_{a<b} λ_ab [f_a, f_b](h)."""
        slopes, x = [], h
        for layer in self.inner:
            x = wide_linear(cast(nn.Linear, layer), x)
            gate = torch.sigmoid(x)
            slopes.append(gate * (1 + x * (1 - gate)))  # the derivative of SiLU
            x = gate * x
        columns = torch.tanh(wide_linear(self.outer, x)).unflatten(-1, (self.channels, self.states))
        level1, level2 = signature[:, : self.channels], signature[:, self.channels :]
        direction = torch.einsum("ba,bas->bs", level1, columns)
        if not level2.shape[-1]:
            return direction
        return direction + self._brackets(columns, slopes, level2)

    def _brackets(self, columns: Tensor, slopes: list[Tensor], level2: Tensor) -> Tensor:
        """Σ_{a<b} λ_ab (J_b f_a − J_a f_b) = Σ_b J_b g_b with g_b = Σ_a Λ_ab f_a and Λ antisymmetric.

        That is one Jacobian-vector product per column: the tangents g pass the layers beside the values.
        """
        first, second = torch.triu_indices(self.channels, self.channels, offset=1, device=level2.device)
        areas = level2.new_zeros(level2.shape[0], self.channels, self.channels)
        areas[:, first, second], areas[:, second, first] = level2, -level2
        tangents = areas.mT @ columns
        for layer, slope in zip(self.inner, slopes, strict=True):
            tangents = slope[:, None] * (tangents @ at_least_float32(cast(Tensor, layer.weight)).mT)
        weight = at_least_float32(self.outer.weight).view(self.channels, self.states, -1)
        tangents = (1 - columns.square()) * torch.einsum("bch,csh->bcs", tangents, weight)
        return tangents.sum(1)

    def penalty(self) -> Tensor:
        rows = [torch.linalg.vector_norm(layer.weight, dim=1).mean() for layer in (*self.inner, self.outer)]
        biases = [torch.linalg.vector_norm(layer.bias) for layer in (*self.inner, self.outer)]
        return torch.stack(rows + biases).sum()
