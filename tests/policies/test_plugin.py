"""LeRobot's own tools find the policy without knowing this project."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policies.factory import PolicyObjective

SCRIPT = """
import sys
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.envs import EnvConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors, make_policy_config
from lerobot.processor import ProcessorStepRegistry
assert {"pi05_compact_instruction_tokenizer", "vag_instruction_embedding"} <= set(ProcessorStepRegistry.list())
assert "vag_metaworld" in EnvConfig.get_known_choices()
assert make_policy_config("pi05_compact", device="cpu").type == "pi05_compact"
for path in sys.argv[2:]:
    config = PreTrainedConfig.from_pretrained(path)
    policy = get_policy_class(config.type).from_pretrained(path)
    before, after = make_pre_post_processors(config, pretrained_path=path)
    torch.manual_seed(0)
    action = after(policy.select_action(before(torch.load(sys.argv[1], weights_only=True))))
    print(config.type, action.flatten().tolist())
"""


def test_discovery_in_a_fresh_process(
    tmp_path: Path, make_policy: Callable[..., PolicyObjective], batch: dict[str, Any]
) -> None:
    batch = {k: v for k, v in batch.items() if not k.startswith("action")}
    torch.save(batch, tmp_path / "observation.pt")
    expected = {}
    for kind in ("pi05_compact", "diffusion", "diffusion_compact"):
        objective = make_policy(kind)
        objective.save_pretrained(tmp_path / kind)
        torch.manual_seed(0)
        expected[kind] = objective.predict_action_chunk(batch)[:, 0].flatten().tolist()
    paths = [str(tmp_path / name) for name in ("observation.pt", *expected)]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths],
        cwd=tmp_path,  # so that the packages are found because they are installed
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line.split(" ", 1) for line in result.stdout.splitlines() if line.startswith(("pi05", "diff"))]
    assert [kind for kind, _ in lines] == list(expected)
    for kind, actions in lines:  # another number of threads adds up in another order
        assert json.loads(actions) == pytest.approx(expected[kind], abs=1e-4)
