"""AdamW parameter groups, warmup-cosine schedule and the moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from toolkit.training.config import OptimConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms and other vectors do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def adamw(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """The optimiser of every training."""
    groups = parameter_groups(module, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def warmup_cosine(step: int, steps: int, warmup_steps: int, floor: float = 0.05) -> float:
    """Factor on the learning rate: linear to 1 over `warmup_steps`, then cosine down to `floor` at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class ExponentialMovingAverage:
    """Shadow copy of a state dict: shadow <- decay * shadow + (1 - decay) * weights.

    The decay grows as (1 + step) / (10 + step) up to its value, so that early averages forget the start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        floating: list[Tensor] = []
        current: list[Tensor] = []
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                floating.append(self.shadow[name])
                current.append(tensor)
            else:
                self.shadow[name].copy_(tensor)
        torch._foreach_lerp_(floating, current, 1 - decay)
