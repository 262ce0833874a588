"""`vag trial`: an instruction of which a policy reads a part alone is said before the robot is touched."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from policies.factory import build_policy
from recipes.trial_policies import load_arms
from recipes.trial_robot import Features
from recipes.trial_schema import TrialConfig
from toolkit.training.config import RuntimeConfig

FRONT = "observation.images.front"
LONG = " ".join(f"word{k}" for k in range(17))


def saved(path: Path, seed: int) -> str:
    def of(*shape: int) -> dict[str, np.ndarray]:
        values = {"mean": 0, "std": 1, "min": -1, "max": 1, "q01": -1, "q99": 1}
        return {name: np.full(shape, value, np.float32) for name, value in values.items()}

    torch.manual_seed(seed)
    stats = {"observation.state": of(2), "action": of(2), FRONT: of(3, 1, 1)}
    small: dict[str, Any] = {"depth": 1, "width": 32, "mlp_width": 32, "expert_width": 32, "expert_mlp_width": 32}
    policy = build_policy(
        "pi05_compact", cameras={FRONT: (3, 32, 32)}, state_dim=2, action_dim=2, stats=stats, options=small
    )
    policy.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(("task", "said"), [(LONG, True), ("push the cup", False)])
def test_words_that_no_policy_reads_are_said(
    task: str, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = Features(["x.pos", "y.pos"], ["x.pos", "y.pos"], {FRONT: (32, 32)})
    given = {name: saved(tmp_path / name, seed) for seed, name in enumerate("ab")}
    config = TrialConfig(policies=given, task=task, runtime=RuntimeConfig(device="cpu"))
    run: Any = SimpleNamespace(add_data=lambda path, identity: None)
    load_arms(config, features, run)
    assert ("the policy reads the first 16" in capsys.readouterr().err) == said
