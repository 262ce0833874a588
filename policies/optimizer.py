"""How a policy asks to be optimised, by LeRobot's two methods: `get_optimizer_preset` and `get_optim_params`."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from lerobot.policies.pretrained import PreTrainedPolicy

from toolkit.base.errors import UserError


def own_groups(policy: PreTrainedPolicy) -> tuple[list[dict[str, Any]], float]:
    """Parameter groups and the largest norm of a gradient.

    A group has params, betas, eps, weight_decay, and lr_scale: its rate as a multiple of the preset's. They are those
    of the optimiser that the policy would be trained with in LeRobot. Raises UserError for one that is neither Adam nor
    AdamW.
    """
    config: Any = policy.config
    preset = config.get_optimizer_preset()
    built = preset.build(policy.get_optim_params())
    if not isinstance(built, torch.optim.Adam | torch.optim.AdamW):
        raise UserError(f"{config.type}: asks for the optimiser '{preset.type}'; expected adam or adamw")
    groups = [
        {
            "params": list(group["params"]),
            "betas": tuple(group["betas"]),
            "eps": float(group["eps"]),
            "weight_decay": float(group["weight_decay"]),
            "lr_scale": float(group["lr"]) / preset.lr if preset.lr else 1.0,
        }
        for group in cast(Any, built).param_groups
    ]
    return groups, float(preset.grad_clip_norm) or math.inf  # LeRobot's 0: gradients are left as they are
