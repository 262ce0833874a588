"""LoRA in a policy: small matrices beside those of its own targets (arXiv 2106.09685), merged into whole weights.

While training, only the adapters are weights that change, so checkpoints and averages hold them alone. A finished
checkpoint holds merged weights: every tool of LeRobot loads it, strictly, and without peft.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from lerobot.policies.pretrained import PreTrainedPolicy
from torch import nn

from toolkit.base.errors import UserError, first_line


def add_lora(policy: PreTrainedPolicy, rank: int) -> None:
    """Freeze a policy and put adapters of a rank, with alpha = rank, beside its matrices, in place.

    Where: as the type itself says (`_get_default_peft_targets`), else all linear layers. Raises
    UserError where peft is not installed, or none of the layers can have one.
    """
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"policy.lora_rank={rank}: the package peft is not installed; pip install 'lerobot[peft]'")
    from peft import LoraConfig, inject_adapter_in_model

    defaults: Any = policy._get_default_peft_targets()
    targets: Any = (defaults or {}).get("target_modules") or linear_layers(policy)
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), policy)
    except ValueError as error:
        raise UserError(f"policy.lora_rank={rank}: {policy.name}: {first_line(error)}") from error


def linear_layers(policy: nn.Module) -> list[str]:
    """Names of all linear layers, but for those whose weights another module uses without calling them."""
    attention = tuple(name for name, part in policy.named_modules() if isinstance(part, nn.MultiheadAttention))
    return [
        name
        for name, part in policy.named_modules()
        if isinstance(part, nn.Linear) and not any(name.startswith(f"{other}.") for other in attention)
    ]


def has_lora(policy: nn.Module) -> bool:
    """If a policy has adapters that are not merged."""
    return any(name.endswith(".base_layer.weight") for name, _ in policy.named_parameters())


def merge_lora(policy: nn.Module) -> None:
    """Put in the place of each layer with an adapter the plain layer with the sum of both, for good."""
    if not has_lora(policy):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, part) for name, part in policy.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, part in adapted:
        part.merge()
        parent, _, own = name.rpartition(".")
        setattr(policy.get_submodule(parent), own, part.get_base_layer())
    if hasattr(policy, "peft_config"):
        del policy.peft_config
