"""Adapters in the policies of this project: what is frozen stays so, and what is trained without a base is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.adapters import merge_lora
from policies.factory import PolicyObjective, Wanted, build_policy, plan_policy
from policies.policy_types import traits_of
from toolkit.base.errors import UserError

TOP, WRIST = "observation.images.top", "observation.images.wrist"


def statistics() -> dict[str, dict[str, np.ndarray]]:
    def of(*shape: int) -> dict[str, np.ndarray]:
        values = {"mean": 0.5, "std": 0.3, "min": 0, "max": 1, "q01": 0, "q99": 1}
        return {name: np.full(shape, value, np.float32) for name, value in values.items()}

    return {"observation.state": of(4), "action": of(3), **{camera: of(3, 1, 1) for camera in (TOP, WRIST)}}


def adapted(kind: str, **wanted: Any) -> PolicyObjective:
    torch.manual_seed(0)
    return build_policy(
        kind,
        cameras={TOP: (3, 64, 64), WRIST: (3, 64, 64)},
        state_dim=4,
        action_dim=3,
        stats=statistics(),
        options={},
        wanted=Wanted(kind, lora_rank=2, **wanted),
    )


def seeing(kind: str, policy: Any) -> list[torch.nn.Parameter]:
    """What a step may change of the part that turns pictures into features."""
    names = tuple(f"{name}." for name in traits_of(kind).vision)
    return [weight for name, weight in policy.named_parameters() if name.startswith(names) and weight.requires_grad]


@pytest.mark.parametrize("kind", ["pi05_compact", "diffusion_compact"])
def test_an_encoder_that_is_kept_gets_no_adapters_that_learn(kind: str) -> None:
    objective = adapted(kind, freeze_vision_encoder=True)
    assert not seeing(kind, objective.policy)
    assert any(weight.requires_grad for weight in objective.policy.parameters())
    before = {name: value.clone() for name, value in objective.policy.state_dict().items() if "lora_" not in name}
    merge_lora(objective.policy)
    after = objective.policy.state_dict()
    assert all(torch.equal(value, after[name.replace(".base_layer", "")]) for name, value in before.items())
    sizes = {TOP: (64, 64), WRIST: (64, 64)}
    planned = plan_policy(Wanted(kind, lora_rank=2, freeze_vision_encoder=True), sizes, 4, 3)
    assert not seeing(kind, planned)
    assert seeing(kind, adapted(kind).policy)


def test_adapters_beside_random_weights_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    adapted("pi05_compact")
    assert "policy.lora_rank=2 without policy.path" in capsys.readouterr().err


def test_data_of_another_robot_than_the_checkpoints_are_named(tmp_path: Path) -> None:
    """The shapes of weights alone would look like a damaged file."""
    first = adapted("diffusion_compact")
    first.save_pretrained(tmp_path / "first")
    stats = {**statistics(), "action": {name: np.repeat(v[:1], 5) for name, v in statistics()["action"].items()}}
    with pytest.raises(UserError, match="of another shape.*; action has 3 numbers in the checkpoint, 5 in the data$"):
        build_policy(
            "diffusion_compact",
            cameras={TOP: (3, 64, 64), WRIST: (3, 64, 64)},
            state_dim=4,
            action_dim=5,
            stats=stats,
            options={},
            wanted=Wanted("diffusion_compact", path=tmp_path / "first"),
        )
