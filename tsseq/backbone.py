"""The stack of residual blocks that every forecaster and classifier shares."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.mixers import MIXERS
from tsseq.mixers.base import SequenceMixer


@dataclass(frozen=True)
class BackboneConfig:
    """`layers` residual blocks of `width` features.

    `mixers` names the sequence mixers, cycled over the layers: ("mlstm", "mlstm", "mlstm", "slstm") is an
    xLSTM[3:1]. `options` holds keyword arguments for each mixer by name. `weave` adds the final state of each
    layer to the initial state of the next, so that a causal stack sees the whole sequence; it gives up
    streaming.
    """

    mixers: tuple[str, ...] = ("gated_delta_product",)
    width: int = 256
    layers: int = 8
    mlp_width: int = 640
    weave: bool = False
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in (*self.mixers, *self.options) if name not in MIXERS]
        if unknown or not self.mixers:
            raise ValueError(f"expected mixers among {', '.join(MIXERS)}; got {', '.join(unknown) or 'none'}")
        if self.width < 1 or self.layers < 1 or self.mlp_width < 0:
            raise ValueError(
                f"expected positive width and layers and mlp_width of at least 0, "
                f"got {self.width}, {self.layers} and {self.mlp_width}"
            )
        for name, options in self.options.items():
            known = list(inspect.signature(MIXERS[name]).parameters)[1:]
            if not set(options) <= set(known):
                raise ValueError(f"expected options of {name} among {', '.join(known)}; got {', '.join(options)}")


class SwiGLU(nn.Module):
    """W₃ (SiLU(W₁ x) ∘ W₂ x) (Shazeer, "GLU variants improve Transformer", arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, 2 * hidden, bias=False)
        self.project_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        gate, value = self.project_in(x).chunk(2, dim=-1)
        y: Tensor = self.project_out(F.silu(gate) * value)
        return y


class Block(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)); an `mlp_width` of 0 leaves the second half out."""

    def __init__(self, config: BackboneConfig, layer: int) -> None:
        super().__init__()
        name = config.mixers[layer % len(config.mixers)]
        self.norm_mixer = nn.RMSNorm(config.width, eps=1e-6)
        self.mixer: SequenceMixer = MIXERS[name](config.width, **config.options.get(name, {}))
        self.norm_mlp = nn.RMSNorm(config.width, eps=1e-6) if config.mlp_width else None
        self.mlp = SwiGLU(config.width, config.mlp_width) if config.mlp_width else None

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        y, last = self.mixer(self.norm_mixer(x), state)
        return self._mlp(x + y), last

    def step(self, x_t: Float[Tensor, "batch width"], state: State) -> tuple[Float[Tensor, "batch width"], State]:
        y, state = self.mixer.step(self.norm_mixer(x_t), state)
        return self._mlp(x_t + y), state

    def _mlp(self, x: Tensor) -> Tensor:
        if self.mlp is None or self.norm_mlp is None:
            return x
        y: Tensor = x + self.mlp(self.norm_mlp(x))
        return y


class Backbone(nn.Module):
    """Blocks in a row, threading one state each; `forward` and `step` are equal."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        scale = (2 * config.layers) ** -0.5
        for block in self.layers:
            for name, weight in block.named_parameters():
                if name.endswith("project_out.weight"):
                    weight.data.mul_(scale)  # the residual sum then starts at unit scale whatever the depth

    @property
    def layers(self) -> tuple[Block, ...]:
        return cast(tuple[Block, ...], tuple(self.blocks))

    def init_state(self, batch_size: int) -> tuple[State, ...]:
        return tuple(block.mixer.init_state(batch_size) for block in self.layers)

    def forward(
        self, x: Float[Tensor, "batch time width"], states: tuple[State, ...] | None = None
    ) -> tuple[Float[Tensor, "batch time width"], tuple[State, ...]]:
        if states is None and self.config.weave:
            states = self.init_state(x.shape[0])
        last: list[State] = []
        for layer, block in enumerate(self.layers):
            state = None if states is None else states[layer]
            if state is not None and self.config.weave and last:
                state = block.mixer.weave(state, last[-1])
            x, state = block(x, state)
            last.append(state)
        return self.norm(x), tuple(last)

    def step(
        self, x_t: Float[Tensor, "batch width"], states: tuple[State, ...]
    ) -> tuple[Float[Tensor, "batch width"], tuple[State, ...]]:
        if self.config.weave:
            raise ValueError("a woven backbone reads the whole sequence at once; it has no step")
        last: list[State] = []
        for block, state in zip(self.layers, states, strict=True):
            x_t, state = block.step(x_t, state)
            last.append(state)
        return self.norm(x_t), tuple(last)


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
