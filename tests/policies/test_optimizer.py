"""What policies ask of their optimiser, at the settings that ship, and what of it a training takes."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.optim import AdamWConfig, SGDConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from omegaconf import OmegaConf

from policies.factory import PolicyObjective
from policies.optimizer import own_groups
from recipes.compose import checked_config, compose_config
from toolkit.base.errors import UserError
from toolkit.training.optim import make_optimizer

Make = Callable[..., PolicyObjective]


def composed(command: str, *words: str) -> Any:
    return OmegaConf.to_object(checked_config(command, [*words]))


def trained(make: Make, kind: str, *words: str, **options: Any) -> dict[str, Any]:
    """How `vag pretrain` optimises a policy, with these words of the user."""
    config = composed("pretrain", f"policy={kind}", *words)
    objective = make(kind, **config.policy.options, **options)
    optimizer, settled = make_optimizer(objective, config.optim)
    decayed, plain = optimizer.param_groups
    assert {id(p) for group in (decayed, plain) for p in group["params"]} == {id(p) for p in objective.parameters()}
    assert (decayed["lr_scale"], plain["weight_decay"]) == (1.0, 0.0)
    assert decayed["eps"] == plain["eps"] == settled.epsilon
    return {"betas": decayed["betas"], "decay": decayed["weight_decay"], "clip": settled.gradient_clip}


OURS = {"betas": (0.9, 0.95), "decay": 0.01, "clip": 1.0}  # of all trainings before policies were asked


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("pi05_compact", OURS), ("diffusion_compact", OURS), ("diffusion", {**OURS, "clip": 10.0})],
)
def test_the_preset_of_the_policy_is_taken_at_the_shipped_settings(
    kind: str, expected: dict[str, Any], shipped: Make
) -> None:
    assert trained(shipped, kind) == expected


def test_the_users_words_win_over_the_policys_options_and_these_over_its_defaults(shipped: Make) -> None:
    options: dict[str, Any] = {"optimizer_betas": (0.5, 0.6), "optimizer_weight_decay": 0.2}
    assert trained(shipped, "pi05_compact", **options, optimizer_grad_clip_norm=3.0) == {
        "betas": (0.5, 0.6),
        "decay": 0.2,
        "clip": 3.0,
    }
    words = ["optim.betas=[0.7,0.8]", "optim.weight_decay=0", "optim.gradient_clip=2"]
    assert trained(shipped, "diffusion", *words, **options) == {"betas": (0.7, 0.8), "decay": 0, "clip": 2}


@pytest.mark.parametrize("command", ["ablate", "demo"])
def test_the_shipped_study_and_demo_say_how_long_a_gradient_may_be(command: str, shipped: Make) -> None:
    config: Any = compose_config(command, [])
    lists = [config.train, config.finetune] if command == "ablate" else [config.real_only, config.pretrain]
    for words in [*lists, config.finetune]:
        assert trained(shipped, "diffusion", *[word for word in words if word.startswith("optim.")]) == OURS


def act(**options: Any) -> ACTPolicy:
    torch.manual_seed(0)
    features = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
    }
    output = {"action": PolicyFeature(FeatureType.ACTION, (3,))}
    small: dict[str, Any] = {"chunk_size": 4, "n_action_steps": 4, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32}
    settings: dict[str, Any] = {"device": "cpu", "push_to_hub": False, "pretrained_backbone_weights": None, **small}
    return ACTPolicy(ACTConfig(**settings, **options, input_features=features, output_features=output))


def test_a_backbone_has_the_lower_rate_that_its_policy_asks_for() -> None:
    """ACT, as LeRobot ships it but for the sizes: its backbone is a group, and its presets are its own."""
    policy = act(optimizer_lr=1e-5, optimizer_lr_backbone=1e-6)
    objective = PolicyObjective(policy, cast(Any, None), cast(Any, None))
    config = composed("pretrain")
    optimizer, settled = make_optimizer(objective, config.optim)
    scales = {
        name: group["lr_scale"]
        for name, parameter in policy.named_parameters()
        for group in optimizer.param_groups
        if any(parameter is one for one in group["params"])
    }
    assert len(scales) == len(list(policy.parameters()))
    assert {name.startswith("model.backbone") for name in scales} == {True, False}
    for name, scale in scales.items():
        assert scale == pytest.approx(0.1 if name.startswith("model.backbone") else 1), name
    preset = AdamWConfig(lr=1e-5, weight_decay=policy.config.optimizer_weight_decay)  # what ACT makes of it
    assert settled.gradient_clip == preset.grad_clip_norm == 10
    assert settled.betas == list(preset.betas)
    assert settled.weight_decay == 1e-4


def test_no_clipping_and_other_optimisers(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = act()
    preset = AdamWConfig(lr=0.0, grad_clip_norm=0.0)
    monkeypatch.setattr(ACTConfig, "get_optimizer_preset", lambda self: preset)
    groups, clip = own_groups(policy)
    assert clip == float("inf")
    assert groups[0]["lr_scale"] == 1
    monkeypatch.setattr(ACTConfig, "get_optimizer_preset", lambda self: SGDConfig(lr=1e-3))
    with pytest.raises(UserError, match="act: asks for the optimiser 'sgd'; expected adam or adamw"):
        own_groups(policy)
