"""The whole story at smoke scale, and a kill in the middle that changes nothing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recipes import cli


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", "demo", "experiment=smoke", f"out={out}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_demo_leaves_what_it_promises(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    assert set(summary) == {"stages", "generator", "policies"}
    assert all(stage["seconds"] > 0 for stage in summary["stages"])
    assert {row["system"] for row in summary["generator"]["systems"]} == {"vag", "recorded"}
    arms = {(row["policy"], row["arm"]) for row in summary["policies"]}
    assert arms == {(p, a) for p in ("pi05_compact", "diffusion") for a in ("real_few", "pretrain_finetune")}
    for row in [*summary["policies"], *(s["replay_success"] for s in summary["generator"]["systems"])]:
        assert 0 <= row["low"] <= row["rate"] <= row["high"] <= 1
        assert 0 <= row["successes"] <= row["n"]
    assert (demo / "report.html").stat().st_size > 50_000
    assert not list(demo.rglob("*.partial"))


@pytest.mark.slow
def test_synthetic_episodes_carry_their_provenance(demo: Path) -> None:
    from toolkit.data.lerobot_io import read_actions

    episodes = read_actions(demo / "synthesize/dataset")
    assert len(episodes) == 2
    for metadata, actions in episodes:
        assert actions.shape == (80, 4)
        assert metadata["source"] == "synthetic"
        assert metadata["seed"] >= 100_000
        assert len(metadata["generator_id"]) == 16
        assert metadata["sampler"] == "euler-10-guidance-1.0"
        assert metadata["score_flow_loss"] > 0
    replayed = read_actions(demo / "synthesize_held_out/dataset")
    assert all(isinstance(metadata["replay_success"], bool) for metadata, _ in replayed)


@pytest.mark.slow
def test_recorded_actions_replay_to_success(demo: Path) -> None:
    """Collected episodes succeeded; open loop from the same scene they must again."""
    summary = json.loads((demo / "summary.json").read_text())
    recorded = next(s for s in summary["generator"]["systems"] if s["system"] == "recorded")
    assert recorded["replay_success"]["rate"] == 1.0


@pytest.mark.slow
def test_policy_checkpoints_have_lerobots_layout(demo: Path) -> None:
    for name in ("finetune_pi05_compact", "finetune_diffusion"):
        files = {path.name for path in (demo / name / "pretrained_model").iterdir()}
        assert {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"} <= files


TRAIN = [
    "generator.image_size=32",
    "generator.num_frames=17",
    "generator.tokenizer.temporal_stride=4",
    "generator.tokenizer.width=32",
    "generator.video.width=32",
    "generator.video.depth=1",
    "generator.action.channels=[32,64]",
    "tokenizer_optim.steps=30",
    "tokenizer_optim.batch_size=2",
    "tokenizer_optim.checkpoint_every=5",
    "optim.steps=60",
    "optim.batch_size=2",
    "optim.checkpoint_every=5",
    "runtime.device=cpu",
    "runtime.threads=1",
]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer", "streams"])
def test_killed_training_resumes_bit_for_bit(stage: str, dataset: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a stage, then resume=true: the same weights as an undisturbed run."""
    command = [sys.executable, "-m", "recipes.cli", "train-generator", f"dataset={dataset}", *TRAIN]
    assert cli.main([*command[3:], f"out={tmp_path / 'whole'}"]) == 0

    killed = subprocess.Popen([*command, f"out={tmp_path / 'cut'}"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut" / stage / "checkpoints").glob("step_*")):
        assert killed.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "cut/generator").exists()
    assert json.loads((tmp_path / "cut/run.json").read_text())["status"] == "running"

    assert cli.main([*command[3:], f"out={tmp_path / 'cut'}", "resume=true"]) == 0
    whole, resumed = (load_file(tmp_path / name / "generator/model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert tensor.equal(resumed[name]), name
    assert not list((tmp_path / "cut").rglob("*.partial"))
