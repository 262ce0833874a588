"""AdamW parameter groups, warmup-cosine schedule and the moving average of the weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from toolkit.base.errors import UserError, warn
from toolkit.training.config import OptimConfig
from toolkit.training.fsdp import is_sharded, local

# Of an objective that asks for nothing.
DEFAULTS: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01, "lr_scale": 1.0}
GRADIENT_CLIP = 1.0
LOWEST_RATE = 0.05  # at the end, of the highest


@runtime_checkable
class OwnOptimizer(Protocol):
    """An objective that says how it is to be optimised, as policies do."""

    def optimizer_groups(self) -> tuple[list[dict[str, Any]], float]:
        """Parameter groups and the largest norm of a gradient.

        A group has params, betas, eps, weight_decay, and lr_scale, of which `optim.learning_rate` is a multiple.
        """


def make_optimizer(objective: nn.Module, config: OptimConfig) -> tuple[torch.optim.AdamW, OptimConfig]:
    """AdamW on the parameters of a training, and the options with none left open.

    What the options leave open (null) is the objective's own, or that of DEFAULTS. What it does not want trained is
    frozen. Raises UserError for betas that are not two.
    """
    if config.betas is not None and len(config.betas) != 2:
        raise UserError(f"optim.betas={list(config.betas)}: expected two numbers")
    if isinstance(objective, OwnOptimizer):
        own, gradient_clip = objective.optimizer_groups()
    else:
        own, gradient_clip = [{"params": list(objective.parameters()), **DEFAULTS}], GRADIENT_CLIP
    wanted = {id(parameter) for group in own for parameter in group["params"]}
    left = [p for p in objective.parameters() if p.requires_grad and id(p) not in wanted]
    if left:
        warn(f"{sum(p.numel() for p in left)} weights stay as they are, as the policy asks of its optimiser")
    for parameter in left:
        parameter.requires_grad_(False)
    for group in own:
        if config.betas is not None:
            group["betas"] = tuple(config.betas)
        group["eps"] = group["eps"] if config.epsilon is None else config.epsilon
        group["weight_decay"] = group["weight_decay"] if config.weight_decay is None else config.weight_decay
    groups = [part for group in own for part in split_group(group)]
    settled = replace(
        config,
        betas=list(own[0]["betas"]),
        epsilon=own[0]["eps"],
        weight_decay=own[0]["weight_decay"],
        gradient_clip=gradient_clip if config.gradient_clip is None else config.gradient_clip,
    )
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True), settled


def split_group(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Matrices, which decay, and biases, norms and other vectors, which do not; what is frozen is left out.

    Matrices that are divided among processes are a group of their own: one step of AdamW has one kind of tensors.
    """
    trained = [p for p in group["params"] if p.requires_grad]
    divided = [p for p in trained if is_sharded(p)]
    return [
        {**group, "params": [p for p in trained if p.ndim > 1 and not is_sharded(p)]},
        {**group, "params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        *([{**group, "params": divided}] if divided else []),
    ]


def warmup_cosine(step: int, steps: int, warmup_steps: int, floor: float = LOWEST_RATE) -> float:
    """Factor on the learning rate: linear to 1 over `warmup_steps`, then cosine down to `floor` at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module but for frozen parameters, which stay what they are: what averages and checkpoints
    hold. Of what is divided among processes, the part of this one."""
    return {name: local(tensor.detach()) for name, tensor in _trained(module).items()}


def undivided_state(module: nn.Module) -> dict[str, Tensor]:
    """The same without what is divided among processes."""
    return {name: tensor.detach() for name, tensor in _trained(module).items() if not is_sharded(tensor)}


def _trained(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict(keep_vars=True)
    return {n: tensor for n, tensor in state.items() if tensor.requires_grad or not isinstance(tensor, nn.Parameter)}


def load_trained_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Inverse of `trained_state`. Raises ValueError that names a weight that is missing or unexpected."""
    own = trained_state(module)
    for fault, names in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys())):
        if names:
            raise ValueError(f"{fault} weight '{min(names)[:100]}'")
    whole = undivided_state(module).keys()
    for name in own.keys() - whole:
        if own[name].shape != state[name].shape:
            raise ValueError(f"weight '{name[:100]}' is divided otherwise")
        own[name].copy_(state[name])
    module.load_state_dict({name: state[name] for name in state if name in whole}, strict=False)


class ExponentialMovingAverage:
    """Shadow copy of a trained state: shadow <- decay * shadow + (1 - decay) * weights.

    The decay grows as (1 + step) / (10 + step) up to its value, so that early averages forget the start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: tensor.clone() for name, tensor in trained_state(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        floating: list[Tensor] = []
        current: list[Tensor] = []
        for name, tensor in trained_state(module).items():
            if tensor.is_floating_point():
                floating.append(self.shadow[name])
                current.append(tensor)
            else:
                self.shadow[name].copy_(tensor)
        torch._foreach_lerp_(floating, current, 1 - decay)
