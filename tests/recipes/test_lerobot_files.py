"""LeRobot's own parsers and factories read what `vag pretrain` writes, for every type of policy."""

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from lerobot.configs import parser
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.envs.utils import preprocess_observation
from lerobot.optim.factory import make_optimizer_and_scheduler
from lerobot.policies.factory import make_policy, make_pre_post_processors

from policies.factory import CONFIGS, PolicyObjective
from recipes import cli
from recipes.lerobot_files import plain
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_write import EpisodeWriter

WORDS = ["image_size=64", "optim.steps=1", "optim.batch_size=2", "seed=3", "runtime.threads=1"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes as of Meta-World, the second one of a scene that nobody names."""
    path = tmp_path_factory.mktemp("recorded") / "some|<b>data"
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, 80, list("xyzg"), list("abcd")) as writer:
        for scene in ({"task_name": "push", "seed": 7}, {}):
            numbers = rng.normal(size=(2, 20, 4)).astype(np.float32)
            pictures = rng.integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
            writer.add(Episode(pictures, numbers[0], numbers[1], "push the puck", {"source": "real", **scene}))
    return path


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def checkpoint(request: pytest.FixtureRequest, recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / request.param
    assert cli.main(["pretrain", f"policy={request.param}", f"real=['{recorded}']", *WORDS, f"out={out}"]) == 0
    return out / "pretrained_model"


def test_lerobot_train_reads_the_settings(
    checkpoint: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As `lerobot-train --config_path=...` does, up to the policy, its optimiser and a batch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["lerobot-train", f"--config_path={checkpoint / 'train_config.json'}", "--steps=5"]
    )

    @parser.wrap()
    def read(cfg: TrainPipelineConfig) -> TrainPipelineConfig:
        cfg.validate()
        return cfg

    cfg = read()  # type: ignore[call-arg]
    assert (cfg.steps, cfg.batch_size, cfg.seed, cfg.dataset.root) == (5, 2, 3, str(recorded))
    assert cfg.policy is not None
    trained = PolicyObjective.from_pretrained(checkpoint)
    assert cfg.policy.type == trained.policy_type
    policy = make_policy(cfg.policy, ds_meta=LeRobotDatasetMetadata(cfg.dataset.repo_id, root=cfg.dataset.root))
    optimizer, scheduler = make_optimizer_and_scheduler(cfg, policy)
    assert scheduler is not None
    group = optimizer.param_groups[0]
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.9, 0.95), 0.01)
    assert group["initial_lr"] == 5e-4
    own, theirs = trained.config, cfg.policy
    assert own.n_action_steps == theirs.n_action_steps  # type: ignore[attr-defined]
    assert theirs.input_features["observation.image"].shape == (3, 64, 64)  # type: ignore[index]


def test_lerobot_eval_loads_the_policy(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The documented command, up to the action for one observation as LeRobot's Meta-World gives it."""
    monkeypatch.chdir(tmp_path)
    words = [f"--policy.path={checkpoint}", "--env.type=metaworld", "--env.task=push-v3", "--eval.n_episodes=1"]
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *words])

    @parser.wrap()
    def read(cfg: EvalPipelineConfig) -> EvalPipelineConfig:
        return cfg

    cfg = read()  # type: ignore[call-arg]
    assert cfg.policy is not None
    policy = make_policy(cfg.policy, env_cfg=cfg.env).eval()
    overrides = {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}}
    before, after = make_pre_post_processors(
        cfg.policy, pretrained_path=str(cfg.policy.pretrained_path), preprocessor_overrides=overrides
    )
    seen: dict[str, Any] = {"pixels": np.zeros((1, 480, 480, 3), np.uint8), "agent_pos": np.zeros((1, 4), np.float32)}
    observation = {**preprocess_observation(seen), "task": ["push the puck"]}
    with torch.no_grad():
        action = after(policy.select_action(before(observation)))
    assert action.shape == (1, 4)
    assert torch.isfinite(action).all()


def test_the_card_says_what_was_trained_and_is_read_by_the_hub(checkpoint: Path) -> None:
    card = huggingface_hub.ModelCard.load(checkpoint / "README.md")
    kind = json.loads((checkpoint / "config.json").read_text())["type"]
    assert (card.data.library_name, card.data.model_name) == ("lerobot", kind)
    assert {"vag", "robotics", kind} <= set(card.data.tags)
    for line in (
        "- push: 1 (seeds 7 to 7)",
        "- others, without a task and seed of a simulator, as recordings of a robot",
        "| steps | 1 |",
        "| seed | 3 |",
        "| observation.image | VISUAL | \\[3, 64, 64\\] |",
        "    lerobot-eval --policy.path=DIR --env.type=metaworld --env.task=push-v3 --eval.n_episodes=10",
        "    lerobot-train --config_path=DIR/train_config.json",
    ):
        assert line in card.text.splitlines()
    (data,) = [line for line in card.text.splitlines() if "data | real" in line]
    assert data.endswith("some\\|\\<b\\>data | real | 2 | 80 | 1.000 |")


def test_fine_tuning_writes_them_too_and_knows_what_was_seen_before(
    originals: Path, recorded: Path, tmp_path: Path
) -> None:
    assert cli.main(["finetune", f"checkpoint={originals}", f"real=['{recorded}']", *WORDS, f"out={tmp_path}"]) == 0
    made = tmp_path / "pretrained_model"
    assert "- push: 1 (seeds 7 to 7)" in (made / "README.md").read_text()
    assert json.loads((made / "train_config.json").read_text())["optimizer"]["lr"] == 1e-4
    PolicyObjective.from_pretrained(made).save_pretrained(made)  # as a checkpoint it may be replaced


@pytest.fixture(scope="module")
def originals(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    assert cli.main(["pretrain", f"real=['{recorded}']", *WORDS, f"out={out}"]) == 0
    return out / "pretrained_model"


def test_texts_of_others_begin_nothing() -> None:
    assert plain("a|b\n# <i>[x](y)`") == "a\\|b # \\<i\\>\\[x\\](y)\\`"
    assert plain(0.00005) == "5e-05"
