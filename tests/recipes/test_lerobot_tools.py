"""LeRobot's console scripts, each in a process of its own and offline, on our checkpoints and datasets."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from policies.factory import CONFIGS, PolicyObjective
from recipes import cli
from toolkit.data.formats.lerobot_read import noted_episodes, read_actions
from vag_core import Generator
from vag_core.config import GeneratorConfig

TASK, FIRST = "plate-slide", 500_000
COLLECT = ["collect", f"tasks=[{TASK}]", "episodes_per_task=3", "num_steps=60", "workers=1"]
ORIGINS = ("collect", "import", "synthesize")
SOME = [ORIGINS[0], *(pytest.param(origin, marks=pytest.mark.long) for origin in ORIGINS[1:])]
SOME_TYPES = ["diffusion", *(pytest.param(kind, marks=pytest.mark.long) for kind in CONFIGS if kind != "diffusion")]


def tool(name: str, *options: str) -> str:
    """Run a console script of LeRobot to its end; what it printed."""
    done = subprocess.run(
        [Path(sys.executable).with_name(name), *options],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def dataset_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """dataset_of(command) -> three episodes that it wrote, made once."""
    folder = tmp_path_factory.mktemp("datasets")

    def make(command: str) -> Path:
        out = folder / command
        if out.exists():
            return out / "dataset"
        if command == "collect":
            words = COLLECT
        elif command == "import":
            source = make("collect")
            assert cli.main(["export", f"dataset={source}", f"out={folder / 'export'}"]) == 0
            words = ["import", f"source={folder / 'export/dataset.hdf5'}", "task='slide the plate'"]
        else:
            torch.manual_seed(0)
            config = GeneratorConfig(image_size=[32, 32], num_frames=9, state_dim=4, action_dim=4)
            generator = Generator(config)
            for weight in generator.parameters():  # so that no two scenes have one plan: notes are joined by it
                if not weight.any():
                    torch.nn.init.normal_(weight, std=0.05)
            generator.save_pretrained(folder / "generator")
            words = ["synthesize", f"checkpoint={folder / 'generator'}", f"tasks=[{TASK}]", "episodes_per_task=3"]
            words += ["sampler.num_inference_steps=1", "workers=1"]
        assert cli.main([*words, f"out={out}"]) == 0
        return out / "dataset"

    return make


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory, dataset_of: Callable[[str], Path]) -> Callable[[str], Path]:
    """checkpoint_of(policy type) -> one that `vag pretrain` wrote."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(kind: str) -> Path:
        if not (folder / kind).exists():
            words = ["pretrain", f"policy={kind}", f"real=[{dataset_of('collect')}]", "optim.steps=1"]
            assert cli.main([*words, "optim.batch_size=2", f"out={folder / kind}"]) == 0
        return folder / kind / "pretrained_model"

    return make


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOME_TYPES)
def test_lerobot_eval_on_vag_metaworld(kind: str, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Two scenes of two tasks in a suite, with a video of each whose pictures have the size that was asked for."""
    said = tool(
        "lerobot-eval",
        *(f"--policy.path={checkpoint_of(kind)}", "--env.type=vag_metaworld", f"--env.task={TASK},push"),
        *("--env.suite=position", f"--env.first_seed={FIRST}", f"--seed={FIRST}", "--env.episode_length=9"),
        *("--eval.n_episodes=2", "--eval.batch_size=2", f"--output_dir={tmp_path}"),
        f"--eval.use_async_envs={'true' if kind == 'pi05_compact' else 'false'}",  # processes, or side by side in one
    )
    assert "End of eval" in said
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert [(row["task_group"], row["task_id"]) for row in info["per_task"]] == [("position", 0), ("position", 1)]
    assert info["overall"]["n_episodes"] == 4
    import av

    for path in info["overall"]["video_paths"]:
        with av.open(path) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 9
        assert frames[0].shape == (64, 64, 3)
        assert frames[0].std() > 10


@pytest.mark.long
@pytest.mark.timeout(3600)  # a failed episode has 500 steps of two pictures of 480x480
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_lerobot_eval_on_its_own_metaworld(kind: str, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    tool(
        "lerobot-eval",
        *(f"--policy.path={checkpoint_of(kind)}", "--env.type=metaworld", f"--env.task={TASK}-v3"),
        *("--eval.n_episodes=1", "--eval.batch_size=1", f"--output_dir={tmp_path}"),
    )
    assert json.loads((tmp_path / "eval_info.json").read_text())["overall"]["n_episodes"] == 1


@pytest.mark.slow
def test_lerobot_train_goes_on_and_evaluates_on_vag_metaworld(
    dataset_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Two steps with a rollout after them, then `--resume` to the third; the end is one of our checkpoints."""
    run = tmp_path / "run"
    said = tool(
        "lerobot-train",
        *(f"--dataset.root={dataset_of('collect')}", "--dataset.repo_id=local/dataset", f"--output_dir={run}"),
        *("--policy.type=pi05_compact", "--policy.push_to_hub=false", "--policy.device=cpu", "--steps=2"),
        *("--batch_size=2", "--num_workers=0", "--save_freq=2", "--env.type=vag_metaworld", f"--env.task={TASK}"),
        *("--env.episode_length=2", "--env_eval_freq=2", "--eval.n_episodes=1", "--eval.batch_size=1"),
    )
    assert "Eval policy at step 2" in said
    settings = run / "checkpoints/last/pretrained_model/train_config.json"
    words = (f"--config_path={settings}", "--resume=true", "--steps=3", "--save_freq=3", "--env_eval_freq=0")
    assert "Resuming data order" in tool("lerobot-train", *words)
    assert (run / "checkpoints/last").resolve().name.lstrip("0") == "3"
    objective = PolicyObjective.from_pretrained(run / "checkpoints/last/pretrained_model")
    assert (objective.policy_type, objective.state_dim, objective.action_dim) == ("pi05_compact", 4, 4)


@pytest.mark.parametrize("origin", ORIGINS)
def test_lerobot_dataset_opens_what_we_write(origin: str, dataset_of: Callable[[str], Path]) -> None:
    dataset = LeRobotDataset(f"local/{origin}", root=dataset_of(origin))
    assert dataset.num_episodes == 3
    row = dataset[len(dataset) - 1]
    (picture,) = (row[key] for key in dataset.meta.camera_keys)
    assert picture.shape[0] == 3
    assert 0 <= picture.min() < picture.max() <= 1
    assert row["observation.state"].shape == row["action"].shape == (4,)


@pytest.mark.slow
@pytest.mark.parametrize("origin", SOME)
def test_lerobot_dataset_viz_writes_a_recording(origin: str, dataset_of: Callable[[str], Path], tmp_path: Path) -> None:
    words = (f"--repo-id=local/{origin}", f"--root={dataset_of(origin)}", "--episode-index=1", "--num-workers=0")
    tool("lerobot-dataset-viz", *words, "--save=1", f"--output-dir={tmp_path}")
    (recording,) = tmp_path.rglob("*.rrd")
    assert recording.stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.long  # starts LeRobot three times
@pytest.mark.parametrize("origin", ORIGINS)
def test_lerobot_edit_dataset_keeps_what_we_need(
    origin: str, dataset_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delete, split, merge: rows stay; what we note of episodes is left out, and can be given."""
    source = dataset_of(origin)
    before, notes = read_actions(source), noted_episodes(source, [])
    assert any(notes)
    named = (f"--repo_id=local/{origin}", f"--root={source}")
    less, parts, merged = tmp_path / "less", tmp_path / "parts", tmp_path / "merged"
    words = ("--operation.type=delete_episodes", "--operation.episode_indices=[0]")
    tool("lerobot-edit-dataset", *named, "--new_repo_id=local/less", f"--new_root={less}", *words)
    words = ("--operation.type=split", '--operation.splits={"a": [0, 2], "b": [1]}')
    tool("lerobot-edit-dataset", *named, f"--new_root={parts}", *words)
    words = ("--operation.repo_ids=['local/a', 'local/b']", f"--operation.roots=['{parts}/a', '{parts}/b']")
    tool(
        *("lerobot-edit-dataset", "--new_repo_id=local/merged", f"--new_root={merged}", "--operation.type=merge"),
        *words,
    )
    for made, kept in ((less, [1, 2]), (parts / "a", [0, 2]), (merged, [0, 2, 1])):
        assert not list(made.rglob("vag_episodes.parquet"))
        assert not any(noted_episodes(made, []))
        assert noted_episodes(made, [source]) == [notes[episode] for episode in kept]
        for (_, actions), episode in zip(read_actions(made), kept, strict=True):
            assert (actions == before[episode][1]).all()
        assert LeRobotDataset("local/made", root=made).num_episodes == len(kept)
