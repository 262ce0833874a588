"""`action_representation=`: learned as differences, and everything that comes out is in the source's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from policies.factory import PolicyObjective
from recipes import cli
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.formats.lerobot_write import EpisodeWriter
from vag_core import Generator

NAMES = ["y", "x", "gripper"]
NETWORK = [
    "generator.video.width=32",
    "generator.video.depth=1",
    "generator.video.heads=2",
    "generator.tokenizer.width=16",
    "generator.tokenizer.depth=1",
    "generator.action.width=32",
    "generator.action.depth=1",
    "generator.num_frames=9",
    "image_size=32",
    "tokenizer_optim.steps=1",
    "optim.batch_size=4",
]


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, moving_square: Callable[..., Episode]) -> Path:
    """Targets that lead by one step, far from zero and in another place for every episode, and a gripper."""
    path = tmp_path_factory.mktemp("targets") / "recorded"
    with EpisodeWriter(path, 10, NAMES, NAMES) as writer:
        for seed in range(4):
            episode = moving_square(seed)
            places = 1000 * seed + np.cumsum(np.full((18, 2), 0.5, np.float32), axis=0)
            open_ = np.float32(np.arange(18) > 8)[:, None]
            states, targets = (np.hstack([places, open_])[rows] for rows in (slice(None, -1), slice(1, None)))
            writer.add(replace(episode, states=states, actions=targets))
    return path


@pytest.mark.parametrize("kind", ["delta", "relative_to_first"])
def test_a_generator_learns_differences_and_writes_targets(recorded: Path, kind: str, tmp_path: Path) -> None:
    """Targets of 0 to 3,000 differ from the state by 0.5 a step: a sample is nowhere farther off than windows are."""
    out = tmp_path / "generator"
    run("train-generator", str(recorded), *NETWORK, "optim.steps=2", f"action_representation={kind}", f"out={out}")
    generator = Generator.from_pretrained(out / "generator")
    assert json.loads((out / "generator/config.json").read_text())["action_representation"] == kind
    assert generator.trajectory.reference.tolist() == [0, 1, -1]
    mean = 0.5 if kind == "delta" else 0.5 * np.mean(np.arange(1, 9))
    np.testing.assert_allclose(generator.trajectory.mean[:2], mean, atol=0.02)
    assert 0 < generator.trajectory.mean[2] < 1  # of the gripper, as recorded
    assert generator.trajectory.high[:2].tolist() == [3009, 3009]  # limits are those of targets
    run("synthesize", f"checkpoint={out / 'generator'}", f"scenes_from={recorded}", f"out={tmp_path / 'synthetic'}")
    made, before = read_table(tmp_path / "synthetic/dataset"), read_table(recorded)
    firsts = np.repeat(before.states[::17, :2], 8, axis=0)
    assert np.abs(made.actions[:, :2] - firsts).max() < 60  # a planner that learned targets is off by a thousand


@pytest.mark.parametrize("policy", ["pi05_compact", "diffusion_compact"])
def test_a_policy_learns_differences_and_says_targets(recorded: Path, policy: str, tmp_path: Path) -> None:
    run(
        *("pretrain", f"real=[{recorded}]", f"policy={policy}", "action_representation=relative_to_first"),
        *("optim.steps=2", "optim.batch_size=4", "image_size=32", f"out={tmp_path / 'policy'}"),
    )
    checkpoint = tmp_path / "policy/pretrained_model"
    objective = PolicyObjective.from_pretrained(checkpoint)
    assert objective.representation == ("relative_to_first", [0, 1, -1])
    (statistics,) = checkpoint.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
    found = load_file(statistics)
    torch.testing.assert_close(found["action.max"][:2], torch.tensor([8.0, 8.0]), rtol=0, atol=1e-3)
    assert found["observation.state.max"][0] > 3000
    run(
        *("finetune", f"checkpoint={checkpoint}", f"real=[{recorded}]", "refit_statistics=true"),
        *("optim.steps=1", "optim.batch_size=4", f"out={tmp_path / 'finetuned'}"),
    )
    tuned = tmp_path / "finetuned/pretrained_model"
    assert PolicyObjective.from_pretrained(tuned).representation == objective.representation
    run("evaluate", f"checkpoint={tuned}", f"dataset={recorded}", f"out={tmp_path / 'evaluation'}")
    error = json.loads((tmp_path / "evaluation/run.json").read_text())["result"]["open_loop"]
    assert error["action_distance"] < 20 < 500 < error["mean"]  # in units of targets, not of differences


def test_what_moves_states_apart_from_actions_is_refused(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", f"real=[{recorded}]", "policy=pi05_compact", "action_representation=delta"]
    assert cli.main([*words, "pad_widths=true", f"out={tmp_path / 'policy'}"]) == 2
    assert "pad_widths=true: the policy learns actions as delta" in capsys.readouterr().err
