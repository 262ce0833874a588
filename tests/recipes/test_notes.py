"""Scores from the command line: a dataset that nobody may write into, LeRobot's edit tools, then training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from recipes import cli
from toolkit.base.manifest import MANIFEST
from toolkit.data.episode import Episode
from toolkit.data.episode_notes import FILE
from toolkit.data.formats.lerobot_read import OWN_NOTES
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.seen_scenes import UNKNOWN, write_scenes
from vag_core import Generator
from vag_core.config import GeneratorConfig

SMALL = ["image_size=32", "optim.steps=1", "optim.batch_size=2", "policy.options.width=32", "runtime.device=cpu"]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory, moving_square: Callable[..., Episode]) -> Path:
    """A dataset as synthesize writes it, of a generator that has seen a scene; nobody may write into it."""
    path = tmp_path_factory.mktemp("synthetic") / "dataset"
    with EpisodeWriter(path, 20, ["y", "x"], ["dy", "dx"]) as writer:
        for seed in range(10, 14):
            episode = moving_square(seed)
            episode.metadata["source"] = "synthetic"
            writer.add(episode)
        write_scenes(writer.temporary / "meta", {"push": [99]})
    for inside in (path, *path.rglob("*")):
        inside.chmod(0o555 if inside.is_dir() else 0o444)
    return path


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(list(words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vag: error: ")]
    assert len(lines) == 1
    return lines[0]


def seen(run: Path) -> dict[str, list[int]]:
    return json.loads((run / "pretrained_model/seen_scenes.json").read_text())


@pytest.mark.slow
def test_scores_and_seen_scenes_outlive_lerobots_edit_tools(
    synthetic: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lerobot.datasets.dataset_tools import delete_episodes
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    before = content(synthetic)
    score = ["score", f"dataset={synthetic}", f"real=[{dataset}]", "image_size=32"]
    assert cli.main([*score, f"out={tmp_path / 'score'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "score").iterdir()) == [MANIFEST, "run.json", FILE]
    scores = pd.read_parquet(tmp_path / "score" / FILE)["score_nearest"]
    assert cli.main([*score, f"out={tmp_path / 'score'}", "overwrite=true"]) == 0
    first = int(scores.argmin())
    delete_episodes(LeRobotDataset("local/dataset", root=synthetic), [first], output_dir=tmp_path / "fewer")
    left = {seed: score for seed, score in enumerate(scores, 10) if seed != 10 + first}
    best = [min((seed for seed in left if seed % 2 == task), key=left.__getitem__) for task in (0, 1)]
    words = ["pretrain", f"synthetic=[{tmp_path / 'fewer'}]", 'select=["score_nearest<=40%"]', *SMALL]
    told = complaint(capsys, *words, f"out={tmp_path / 'lost'}")
    assert "fewer: episode 0 has no number 'score_nearest'" in told
    assert "give those, notes=[RUN]" in told
    noted = f"notes=[{tmp_path / 'score'},{synthetic}]"
    assert cli.main([*words, noted, f"out={tmp_path / 'kept'}"]) == 0
    record = json.loads((tmp_path / "kept/run.json").read_text())
    assert record["result"]["episodes"] == [2]
    assert {Path(entry["path"]).name for entry in record["data"]} == {"fewer", FILE, "dataset"}
    assert seen(tmp_path / "kept") == {"push": [best[0], 99], "pull": [best[1]]}
    assert cli.main([*words, f"notes=[{tmp_path / 'score'}]", f"out={tmp_path / 'unknown'}"]) == 0
    assert seen(tmp_path / "unknown") == {UNKNOWN: []}
    Generator(GeneratorConfig(image_size=[32, 32], num_frames=17, state_dim=2, action_dim=2)).save_pretrained(
        tmp_path / "g"
    )
    write_scenes(tmp_path / "g", {"push": [best[0]]})
    words = [
        "evaluate-generator",
        f"checkpoint={tmp_path / 'g'}",
        f"dataset={tmp_path / 'fewer'}",
        f"notes=[{synthetic}]",
    ]
    assert f"was trained on 1 of these scenes (seeds: push {best[0]})" in complaint(capsys, *words)
    assert content(synthetic) == before


def test_notes_of_others_are_refused_before_training(
    synthetic: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", f"real=[{dataset}]", *SMALL, f"out={tmp_path / 'run'}"]
    assert "is about none of the episodes" in complaint(capsys, *words, f"notes=[{synthetic}]")
    assert f"no '{FILE}'; expected the run directory" in complaint(capsys, *words, f"notes=[{tmp_path}]")
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    (copy / OWN_NOTES).write_bytes(b"PAR1")
    assert f"{FILE}: not readable as Parquet" in complaint(capsys, *words, f"notes=[{copy}]")
    assert not (tmp_path / "run").exists()
