"""The optimizer, its schedule, and the average of the weights that is evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgekd.values.job import DistillationSection

_MOMENTUM = 0.9
_WARM_UP_SHARE = 0.05  # of all steps
_FINAL_SHARE = 0.001  # of the learning rate, at the last step


def make_optimizer(modules: Iterable[nn.Module], recipe: DistillationSection) -> torch.optim.Optimizer:
    """Make SGD with Nesterov momentum or AdamW; biases and norms (one dimension) do not decay."""
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=_MOMENTUM, nesterov=True, fused=True)


def rate_share(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: a linear warm-up, then a half cosine (SGDR)."""
    warm_ups = max(1, round(_WARM_UP_SHARE * steps))
    if step < warm_ups:
        return (step + 1) / (warm_ups + 1)
    done = (step - warm_ups) / max(1, steps - warm_ups)
    return max(_FINAL_SHARE, 0.5 * (1 + math.cos(math.pi * done)))


class Average:
    """An exponential moving average of all floating-point state: weights and the norms' statistics."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        live = module.state_dict()
        self.tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in live.items()}
        moving = [name for name, tensor in live.items() if tensor.is_floating_point()]
        self._averages = [self.tensors[name] for name in moving]
        self._live = [live[name] for name in moving]  # shares memory with the module: updates show here

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after a step; early steps count more, so that short runs forget the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._live, 1 - decay)  # as swa_utils does
