"""The whole story at smoke scale, and a kill in the middle that changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from recipes import cli


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, start: Callable[..., BaseProcess]) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    process = start(["demo", "experiment=smoke", f"out={out}"], out.with_name("complaint"))
    process.join()
    assert process.exitcode == 0, out.with_name("complaint").read_text()[-3000:]
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
    assert not list(demo.rglob("*.vag-partial"))


@pytest.mark.slow
def test_synthetic_episodes_carry_their_provenance(demo: Path) -> None:
    from toolkit.data.formats.lerobot_read import noted_episodes, read_actions

    episodes = read_actions(demo / "synthesize/dataset")
    assert len(episodes) == 2
    for metadata, actions in episodes:
        assert actions.shape == (59, 4)  # as long as recordings of 60 steps
        assert metadata["source"] == "synthetic"
        assert metadata["seed"] >= 100_000
        assert len(metadata["generator_id"]) == 16
        assert metadata["sampler"] == "euler-10-guidance-1.0-actions_first"
        assert metadata["score_flow_loss"] > 0
    replayed = noted_episodes(demo / "synthesize_held_out/dataset", [demo / "replay_generated"])
    assert all(isinstance(metadata["replay_success"], bool) for metadata in replayed)


@pytest.mark.slow
def test_scenes_that_were_trained_on_are_refused(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A policy has seen the scenes of its episodes, real or generated, and those of the generator behind them."""
    finetuned = f"checkpoint={demo / 'finetune_pi05_compact/pretrained_model'}"
    words = ("evaluate", finetuned, "tasks=[plate-slide]", "max_steps=1", "episodes_per_task=1")
    for seed in (0, 100_001):  # collect, synthesize
        assert cli.main([*words, f"first_seed={seed}", f"out={tmp_path / str(seed)}"]) == 2
        assert f"trained on 1 of these scenes (seeds: plate-slide {seed})" in capsys.readouterr().err
    assert cli.main([*words, "first_seed=0", "allow_seen=true", f"out={tmp_path / 'seen'}"]) == 0
    assert json.loads((tmp_path / "seen/run.json").read_text())["result"]["seen_scenes"] == 1
    record = json.loads((demo / "evaluate_pi05_compact_pretrain_finetune/run.json").read_text())
    assert record["result"]["seen_scenes"] == 0
    words = ("synthesize", f"checkpoint={demo / 'train_generator/generator'}", "tasks=[plate-slide]")
    assert cli.main([*words, "first_seed=0", f"out={tmp_path / 'synthetic'}"]) == 2
    pretrained = json.loads((demo / "pretrain_diffusion/pretrained_model/seen_scenes.json").read_text())
    assert {0, 100_000} <= set(pretrained["plate-slide"])


@pytest.mark.slow
def test_recorded_actions_replay_to_success(demo: Path) -> None:
    """Collected episodes succeeded; open loop from the same scene they must again."""
    summary = json.loads((demo / "summary.json").read_text())
    recorded = next(s for s in summary["generator"]["systems"] if s["system"] == "recorded")
    assert recorded["replay_success"]["rate"] == 1.0


@pytest.mark.slow
def test_scores_choose_the_synthetic_episodes_that_a_policy_trains_on(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from toolkit.data.formats.lerobot_read import dataset_id, noted_episodes

    dataset = demo / "synthesize/dataset"
    before = dataset_id(dataset)
    generator, real = demo / "train_generator/generator", demo / "collect/dataset"
    words = ["score", f"dataset={dataset}", f"checkpoint={generator}", f"real=[{real}]", f"out={tmp_path / 'score'}"]
    assert cli.main(words) == 0
    episodes = noted_episodes(dataset, [tmp_path / "score"])
    for name in ("score_cycle_error", "score_limit_excess", "score_nearest"):
        assert all(metadata[name] >= 0 for metadata in episodes)
    assert episodes[0]["score_cycle_error"] != episodes[1]["score_cycle_error"] > 0
    assert dataset_id(dataset) == before
    better = min(metadata["score_cycle_error"] for metadata in episodes)
    words = ["pretrain", f"synthetic=[{dataset}]", "optim.steps=1", "optim.batch_size=2"]
    kept = [f'select=["score_cycle_error<={better}"]', "weight_by=score_nearest", "augment=true"]
    assert cli.main([*words, *kept, f"out={tmp_path / 'lost'}"]) == 2
    assert "episode 0 has no number 'score_cycle_error'" in (told := capsys.readouterr().err)
    assert "give those, notes=[RUN]" in told
    noted = f"notes=[{tmp_path / 'score'}]"
    kept.append(noted)
    assert cli.main([*words, *kept, f"out={tmp_path / 'kept'}"]) == 0
    assert json.loads((tmp_path / "kept/run.json").read_text())["result"]["episodes"] == [1]
    words = ["train-generator", f"dataset={real}", f"synthetic=[{dataset}]", f"tokenizer_from={generator}"]
    words += ["optim.steps=1", "optim.batch_size=2"]
    assert cli.main([*words, kept[0], noted, f"out={tmp_path / 'round'}"]) == 0
    seen = json.loads((tmp_path / "round/generator/seen_scenes.json").read_text())["plate-slide"]
    best = next(metadata["seed"] for metadata in episodes if metadata["score_cycle_error"] == better)
    assert [seed for seed in seen if seed >= 100_000] == [best]
    words = ["pretrain", f"synthetic=[{dataset}]", noted, "optim.steps=1"]
    assert cli.main([*words, 'select=["score_cycle<=1"]', f"out={tmp_path / 'unknown'}"]) == 2
    assert "no number 'score_cycle'. Did you mean 'score_cycle_error'?" in capsys.readouterr().err
    assert cli.main(["score", f"dataset={dataset}", f"out={tmp_path / 'nothing'}"]) == 2
    assert "give checkpoint=GENERATOR" in capsys.readouterr().err


@pytest.mark.slow
def test_policies_are_ranked_on_the_same_scenes(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, tuned = (demo / f"{name}_pi05_compact/pretrained_model" for name in ("real_few", "finetune"))
    other = demo / "real_few_diffusion/pretrained_model"
    words = ["benchmark", "policies", f"checkpoints={{ours:[{few},{tuned}],diffusion:{other}}}", "tasks=[plate-slide]"]
    words += [
        "suites=[unseen,visual,task]",
        "new_tasks=[button-press-topdown]",
        "episodes_per_task=2",
        "evaluate=['max_steps=4']",
        "lanes=0",
        f"out={tmp_path / 'board'}",
    ]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "diffusion" in printed
    assert "not distinguishable from ours" in printed  # nobody solves it in four steps
    record = json.loads((tmp_path / "board/record.json").read_text())
    rows = {(row["system"], row["suite"]): (row["value"], row["n"], row["seeds"]) for row in record["rows"]}
    for suite in ("unseen", "visual", "task"):
        assert rows["ours", suite] == (0, 4, 2)
        assert rows["diffusion", suite] == (0, 2, 1)
    assert {(c["a"], c["b"]) for c in record["comparisons"]} == {("ours", "diffusion")}
    new = json.loads((tmp_path / "board/ours_0/run.json").read_text())["result"]["suites"]["task"]["outcomes"]
    assert {task for task, _, _ in new} == {"button-press-topdown"}
    assert {row["system"] for row in record["leaderboards"]["task"]} == {"ours", "diffusion"}
    before = (tmp_path / "board/ours_0/run.json").read_bytes()
    joining = f"tuned:{demo / 'finetune_diffusion/pretrained_model'},diffusion:"
    assert cli.main([*(word.replace("diffusion:", joining) for word in words), "resume=true"]) == 0
    assert (tmp_path / "board/ours_0/run.json").read_bytes() == before
    board = json.loads((tmp_path / "board/record.json").read_text())["leaderboards"]["visual"]
    assert {row["system"] for row in board} == {"ours", "tuned", "diffusion"}
    assert cli.main([*words[:2], f"checkpoints={{a:{few},b:{few}}}", f"out={tmp_path / 'twice'}"]) == 2
    assert "is given twice" in capsys.readouterr().err


@pytest.mark.slow
def test_policy_checkpoints_have_lerobots_layout(demo: Path) -> None:
    for name in ("finetune_pi05_compact", "finetune_diffusion"):
        files = {path.name for path in (demo / name / "pretrained_model").iterdir()}
        assert {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"} <= files


@pytest.mark.long  # README's commands run on the same clips, in test_readme
@pytest.mark.slow
@pytest.mark.skipif(
    "VAG_BRIDGE_HDF5" not in os.environ, reason="$VAG_BRIDGE_HDF5 names no file with BridgeData V2 clips"
)
def test_the_story_on_real_teleoperation(tmp_path: Path) -> None:
    out = tmp_path / "run"
    source = os.environ["VAG_BRIDGE_HDF5"]
    assert cli.main(["demo", "experiment=bridge", f"source={source}", f"out={out}"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [row["arm"] for row in summary["policies"]] == ["real_all", "pretrain_finetune"]
    for row in summary["policies"]:
        assert row["n"] == 5  # the held-out clips
        assert 0 < row["low"] <= row["action_distance"] <= row["high"]
        assert row["mean"] > 0
    assert summary["generator"]["systems"][0]["action_distance"] > 0
    imported = json.loads((out / "import/run.json").read_text())
    assert (imported["result"]["layout"], imported["result"]["episodes"]) == ("bridge", 20)
    assert (out / "report.html").stat().st_size > 50_000


def wait_until(ready: Callable[[], Any], process: BaseProcess) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        assert process.is_alive(), "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "begun", "artefact"),
    [
        ("collect episodes_per_task=50", ".spool.vag-partial/*.npz", "dataset"),
        ("train-generator dataset={demo}/collect/dataset optim.steps=900", "tokenizer/tensorboard/*", "generator"),
        ("synthesize checkpoint={demo}/train_generator/generator tasks=[push]", ".dataset.vag-partial/*", "dataset"),
    ],
)
def test_an_interrupt_is_one_line_and_leaves_nothing_half_written(
    command: str, begun: str, artefact: str, demo: Path, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    out = tmp_path / "run"
    process = start([*command.format(demo=demo).split(), f"out={out}"], tmp_path / "complaint")
    wait_until(lambda: list(out.glob(begun)), process)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    process.join(60)
    assert process.exitcode == 130
    complaint = (tmp_path / "complaint").read_text()
    assert complaint.strip().splitlines()[-1].startswith("vag: error: interrupted")
    assert "Traceback" not in complaint
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    assert not (out / artefact).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "artefact"),
    [
        ("collect episodes_per_task=9 tasks=[plate-slide]", "dataset"),
        ("import {demo}/collect/dataset image_size=512", "dataset"),
        ("train-generator dataset={demo}/collect/dataset tokenizer_optim.steps=2 optim.steps=2", "generator"),
    ],
)
def test_a_full_disk_is_one_line(
    command: str, artefact: str, demo: Path, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        process = start([*command.format(demo=demo).split(), f"out={small / 'run'}"], tmp_path / "complaint")
        process.join(120)
        complaint = (tmp_path / "complaint").read_text()
        assert process.exitcode == 2, complaint[-2000:]
        assert complaint.strip().splitlines()[-1].startswith("vag: error: disk full")
        assert "Traceback" not in complaint
        assert not (small / "run" / artefact).exists()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


@pytest.mark.long
def test_a_killed_demo_takes_its_processes_along(demo: Path, tmp_path: Path, start: Callable[..., BaseProcess]) -> None:
    out = tmp_path / "run"
    shutil.copytree(demo, out)
    for name in ("evaluate_diffusion_real_few", "evaluate_pi05_compact_real_few"):
        shutil.rmtree(out / name)
    (out / "summary.json").unlink()
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "status": "running"}))
    words = ("demo", "experiment=smoke", f"out={out}", "resume=true")
    process = start([*words])
    wait_until(lambda: list(out.glob("evaluate_*_real_few/run.json")), process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    assert len(children) >= 2
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert not (out / "summary.json").exists()


TRAIN = [
    "image_size=32",
    "generator.num_frames=17",
    "generator.tokenizer.temporal_stride=4",
    "generator.tokenizer.width=32",
    "generator.video.width=32",
    "generator.video.depth=1",
    "tokenizer_optim.steps=30",
    "tokenizer_optim.batch_size=2",
    "tokenizer_optim.checkpoint_every=5",
    "optim.steps=60",
    "optim.batch_size=2",
    "optim.checkpoint_every=5",
    "runtime.device=cpu",
    "runtime.threads=1",
]


@pytest.mark.long  # tests of kills and of several processes kill trainings too
@pytest.mark.slow
def test_killed_training_resumes_bit_for_bit(dataset: Path, tmp_path: Path, start: Callable[..., BaseProcess]) -> None:
    """SIGKILL in the middle of each stage, then resume=true: the same weights as an undisturbed run."""
    command = ["train-generator", f"dataset={dataset}", *TRAIN]
    assert cli.main([*command, f"out={tmp_path / 'whole'}"]) == 0

    for stage in ("tokenizer", "streams"):
        killed = start([*command, f"out={tmp_path / 'cut'}", "resume=true"])
        wait_until(lambda stage=stage: list((tmp_path / "cut" / stage / "checkpoints").glob("step_*")), killed)
        killed.kill()
        killed.join()
        assert not (tmp_path / "cut/generator").exists()
        assert json.loads((tmp_path / "cut/run.json").read_text())["status"] == "running"

    assert cli.main([*command, f"out={tmp_path / 'cut'}", "resume=true"]) == 0
    whole, resumed = (load_file(tmp_path / name / "generator/model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert tensor.equal(resumed[name]), name
    assert not list((tmp_path / "cut").rglob("*.vag-partial"))
