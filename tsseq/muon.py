"""NorMuon for the matrices of a network and AdamW for everything else, as one optimiser."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class NorMuon(torch.optim.Optimizer):
    """Matrix updates with orthogonalised momentum whose rows are then normalised; AdamW for groups without
    `matrix=True`.

    The update of an m × n matrix has root mean square 0.2, as AdamW's typically has, so one learning rate
    serves both. Matrices of one shape are orthogonalised together, in bf16 on a GPU.

    Papers: Jordan et al., "Muon", 2024; Li et al., "NorMuon", arXiv 2510.05491; Loshchilov and Hutter,
    "Decoupled weight decay regularization", arXiv 1711.05101.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 2e-3,
        *,
        momentum: float = 0.95,
        row_decay: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0:
            raise ValueError(f"learning rate must not be negative, got {lr}")
        defaults = dict(
            lr=lr,
            momentum=momentum,
            row_decay=row_decay,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            matrix=False,
        )
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["matrix"]:
                by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
                for p in params:
                    by_shape[p.shape].append(p)
                for same in by_shape.values():
                    self._step_matrices(same, group)
            elif params:
                self._step_adam(params, group)
        return loss

    def _step_matrices(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
                self.state[p]["row_square"] = torch.zeros_like(p[:, :1])
        momenta = [self.state[p]["momentum"] for p in params]
        squares = [self.state[p]["row_square"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
        update = orthogonalise(torch.stack(ahead))
        square = torch.stack(squares).lerp_(update.square().mean(-1, keepdim=True), 1 - group["row_decay"])
        torch._foreach_copy_(squares, list(square.unbind()))
        update = update / (square.sqrt() + 1e-10)
        rms = update.square().mean((-2, -1), keepdim=True).sqrt()
        update = update * (0.2 / (rms + 1e-10))
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list(update.unbind()), alpha=-group["lr"])

    def _step_adam(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["mean"] = torch.zeros_like(p)
                self.state[p]["square"] = torch.zeros_like(p)
        group["steps"] = group.get("steps", 0) + 1
        beta1, beta2 = group["betas"]
        means = [self.state[p]["mean"] for p in params]
        squares = [self.state[p]["square"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        scale = torch._foreach_div(squares, 1 - beta2 ** group["steps"])
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(params, means, scale, -group["lr"] / (1 - beta1 ** group["steps"]))


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximately U Vᵀ of each matrix U Σ Vᵀ (batch × m × n), by a quintic Newton–Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result.to(matrices.dtype)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of linear layers inside residual blocks go to NorMuon; all else to AdamW, without decay."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        inside = name.startswith("backbone.blocks.") and name.endswith(".weight") and p.ndim == 2
        (matrices if inside else others).append(p)
    groups = [
        {"params": matrices, "matrix": True, "weight_decay": weight_decay},
        {"params": others, "matrix": False},
    ]
    return [group for group in groups if group["params"]]
