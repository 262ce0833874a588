"""`vag mix`: the fraction holds, pictures come back bit for bit, LeRobot and vag read the result."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recipes import cli
from toolkit.base.files import write_json
from toolkit.base.record import read_record
from toolkit.data.episode import IMAGE, Episode
from toolkit.data.episode_notes import FILE, write_notes
from toolkit.data.formats.lerobot_read import read_episodes, read_table
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.formats.videos import Video
from toolkit.data.seen_scenes import write_scenes

WRIST = "observation.images.wrist"
LENGTHS = {"recorded": [20, 30, 25, 35, 40, 22, 28, 30], "generated": [24, 24, 30, 18, 26, 28]}


def episode(seed: int, length: int, notes: dict[str, Any]) -> Episode:
    """Moving noise from two cameras of different sizes; the instruction alternates."""
    rng = np.random.default_rng(seed)
    pictures = {
        key: np.clip(rng.integers(0, 200, (1, *size, 3)) + np.arange(length)[:, None, None, None], 0, 255).astype(
            np.uint8
        )
        for key, size in ((IMAGE, (48, 64)), (WRIST, (32, 32)))
    }
    numbers = rng.normal(size=(2, length, 3)).astype(np.float32)
    task = ("push the cup", "pull the cup")[seed % 2]
    return Episode(None, numbers[0], numbers[1], task, {"task_name": task[:4], "seed": seed, **notes}, pictures)


def write(path: Path, kind: str, **options: Any) -> Path:
    first, own = (0, {}) if kind == "recorded" else (100, {"source": "synthetic", "generator_id": "beef"})
    with EpisodeWriter(path, 10, list("abc"), list("xyz"), **options) as writer:
        for k, length in enumerate(LENGTHS[kind]):
            writer.add(episode(first + k, length, {**own, **({"score_cycle_error": k / 10} if own else {})}))
        if own:
            write_scenes(writer.temporary / "meta", {"push": [0, 2]})
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("real") / "dataset", "recorded")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another codec than the recorded ones."""
    return write(tmp_path_factory.mktemp("synthetic") / "dataset", "generated", codec="av1", crf=20)


def mix(out: Path, *words: object) -> Path:
    assert cli.main(["mix", *map(str, words), f"out={out}"]) == 0
    return out / "dataset"


def origins(dataset: Path) -> Any:
    """The columns of the episode table that say where each episode comes from."""
    return pd.concat(map(pd.read_parquet, sorted(dataset.glob("meta/episodes/**/*.parquet"))))


def check_contents(dataset: Path, sources: dict[str, Path]) -> None:
    """Every episode is that of its source, bit for bit: pictures, states, actions, instruction."""
    kept = {kind: list(read_episodes(path)) for kind, path in sources.items()}
    table = origins(dataset)
    for made, kind, number in zip(
        read_episodes(dataset), table["source"], table["source_dataset_episode"], strict=True
    ):
        source = kept[kind][int(number)]
        assert made.task == source.task
        np.testing.assert_array_equal(made.states, source.states)
        np.testing.assert_array_equal(made.actions, source.actions)
        assert made.pictures.keys() == source.pictures.keys()
        for camera, pictures in source.pictures.items():
            np.testing.assert_array_equal(made.pictures[camera], pictures)


def test_the_fraction_is_met_and_every_picture_is_that_of_its_source(
    real: Path, synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = mix(tmp_path / "mixed", f"real=[{real}]", f"synthetic=[{synthetic}]", "synthetic_fraction=0.6")
    result = read_record(tmp_path / "mixed")["result"]
    assert abs(result["synthetic_fraction"] - 0.6) < 0.5 * 40 * 0.6 / result["frames"]
    parts = {part["source"]: part for part in result["parts"]}
    assert parts["synthetic"]["taken"] == 6
    assert parts["recorded"]["taken"] < 8
    assert f"{parts['recorded']['left_out']} frames" in capsys.readouterr().out
    check_contents(dataset, {"recorded": real, "synthetic": synthetic})
    table = origins(dataset)
    assert set(table["generator_id"].dropna()) == {"beef"}
    assert set(table["source_dataset_id"]) == {entry["id"] for entry in read_record(tmp_path / "mixed")["data"]}
    assert json.loads((dataset / "meta/seen_scenes.json").read_text()) == {"push": [0, 2]}
    assert cli.main(["inspect", str(dataset), f"out={tmp_path / 'inspected'}"]) == 0
    videos = sorted(dataset.glob("videos/**/*.mp4"))
    copied = [path.read_bytes() for path in synthetic.glob("videos/**/*.mp4")]
    assert sum(path.read_bytes() in copied for path in videos) == len(copied)  # all its episodes take part


def test_lerobot_opens_it_and_its_statistics_are_those_of_all_rows(real: Path, synthetic: Path, tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = mix(tmp_path / "mixed", f"real=[{real}]", f"synthetic=[{synthetic}]", "synthetic_fraction=0.3")
    opened = LeRobotDataset(
        "local/mixed", root=dataset, video_backend="pyav", delta_timestamps={"action": [0.0, 0.1], IMAGE: [-0.1, 0.0]}
    )
    made = list(read_episodes(dataset))
    assert opened.num_episodes == len(made)
    assert len(opened) == sum(map(len, made))
    for number in (0, len(made) // 2, len(made) - 1):
        frame = opened.meta.episodes[number]["dataset_from_index"] + 7
        item = opened[frame]
        np.testing.assert_allclose(item["action"].numpy(), made[number].actions[7:9])
        pictures = item[IMAGE].permute(0, 2, 3, 1).numpy() * 255
        np.testing.assert_allclose(pictures, made[number].pictures[IMAGE][6:8], atol=1.01)
        assert item["task"] == made[number].task
    actions = np.concatenate([one.actions for one in made]).astype(np.float64)
    stats = opened.meta.stats["action"]
    for name, value in (("mean", actions.mean(0)), ("std", actions.std(0)), ("q01", np.quantile(actions, 0.01, 0))):
        np.testing.assert_allclose(stats[name], value, rtol=1e-9)
    shown = np.concatenate([one.pictures[IMAGE].reshape(-1, 3) for one in made]) / 255
    np.testing.assert_allclose(opened.meta.stats[IMAGE]["mean"].ravel(), shown.mean(0), atol=0.01)
    np.testing.assert_allclose(opened.meta.stats[IMAGE]["q50"].ravel(), np.quantile(shown, 0.5, 0), atol=0.02)
    synthetic_only = LeRobotDataset("local/mixed", root=dataset, episodes=[len(made) - 1], video_backend="pyav")
    assert len(synthetic_only) == len(made[-1])


def test_the_short_side_is_repeated_and_nothing_is_left_out(real: Path, synthetic: Path, tmp_path: Path) -> None:
    few = "synthetic_per_task=1"
    dataset = mix(
        tmp_path / "mixed", f"real=[{real}]", f"synthetic=[{synthetic}]", "synthetic_fraction=0.5", "repeat=true", few
    )
    result = read_record(tmp_path / "mixed")["result"]
    parts = {part["source"]: part for part in result["parts"]}
    assert (parts["recorded"]["written"], parts["recorded"]["left_out"]) == (8, 0)
    assert (parts["synthetic"]["taken"], parts["synthetic"]["written"]) == (2, 10)  # 230 frames of 48
    assert abs(result["synthetic_fraction"] - 0.5) < 0.03
    check_contents(dataset, {"recorded": real, "synthetic": synthetic})
    assert origins(dataset)["repetition"].max() == 4
    assert cli.main(["inspect", str(dataset), f"out={tmp_path / 'inspected'}"]) == 0


def test_pretraining_on_it_counts_synthetic_episodes_as_such(
    real: Path, synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = mix(tmp_path / "mixed", f"real=[{real}]", f"synthetic=[{synthetic}]", "synthetic_fraction=0.6")
    words = ["image_size=32", "optim.steps=2", "optim.batch_size=4", "runtime.threads=1", f"cameras=[{IMAGE}]"]
    out = tmp_path / "policy"
    assert cli.main(["pretrain", f"real=[{dataset}]", *words, f"out={out}"]) == 0
    assert "6 of 9 episodes are synthetic, and count as such" in "".join(capsys.readouterr())
    assert read_record(out)["result"]["episodes"] == [3, 6]
    seen = json.loads((out / "pretrained_model/seen_scenes.json").read_text())
    assert {0, 2} <= set(seen["push"])


def test_scores_choose_and_the_best_are_taken_first(real: Path, synthetic: Path, tmp_path: Path) -> None:
    table = read_table(synthetic)
    write_notes(tmp_path / "score" / FILE, table.ids, [{"score_nearest": float(k)} for k in range(len(table.ids))])
    words = [f"real=[{real}]", "episodes_per_task=1", f"synthetic=[{synthetic}]", "synthetic_fraction=0.5"]
    chosen = origins(mix(tmp_path / "best", *words, f"notes=[{tmp_path / 'score'}]", "weight_by=score_nearest"))
    assert set(chosen.query("source == 'synthetic'")["source_dataset_episode"]) == {4, 5}  # the farthest of each task
    rule = "select=['score_cycle_error<=0.3']"
    chosen = origins(mix(tmp_path / "rule", f"real=[{real}]", f"synthetic=[{synthetic}]", rule))
    assert list(chosen.query("source == 'synthetic'")["source_dataset_episode"]) == [0, 1, 2, 3]


def test_the_control_has_the_actions_that_pretraining_would_have(real: Path, synthetic: Path, tmp_path: Path) -> None:
    from toolkit.data.cache import open_clips
    from toolkit.data.selection import with_shuffled_actions

    dataset = mix(tmp_path / "control", f"real=[{real}]", f"synthetic=[{synthetic}]", "shuffle_actions=true", "seed=3")
    made, number = read_table(dataset), len(LENGTHS["recorded"])
    shuffled = with_shuffled_actions(open_clips(synthetic, (48, 64), [IMAGE], workers=1), 3)
    np.testing.assert_array_equal(made.actions[sum(LENGTHS["recorded"]) :], shuffled.actions)
    table = origins(dataset)[number:]
    assert (table["actions_of_episode"] != table["source_dataset_episode"]).all()


def test_a_mixture_can_be_mixed_again(real: Path, synthetic: Path, tmp_path: Path) -> None:
    first = mix(tmp_path / "first", f"real=[{real}]", f"synthetic=[{synthetic}]", "synthetic_fraction=0.5")
    again = mix(tmp_path / "again", f"real=[{first}]", "synthetic_fraction=0.25")
    assert read_record(tmp_path / "again")["result"]["synthetic_fraction"] == pytest.approx(0.25, abs=0.03)
    check_contents(again, {"recorded": first, "synthetic": first})


def damaged(dataset: Path, target: Path, change: Any) -> Path:
    shutil.copytree(dataset, target)
    info = json.loads((target / "meta/info.json").read_text())
    change(info)
    write_json(target / "meta/info.json", info)
    return target


def set_rate(info: dict[str, Any]) -> None:
    info["fps"] = 20


def set_size(info: dict[str, Any]) -> None:
    info["features"][WRIST]["shape"] = [64, 64, 3]


def set_names(info: dict[str, Any]) -> None:
    info["features"]["action"]["names"] = list("xyg")


def drop_camera(info: dict[str, Any]) -> None:
    del info["features"][WRIST]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_rate, "resample_fps=10 lowers the rate"),
        (set_size, "image_size=[32,32] writes them at that size"),
        (set_names, "give both the same names"),
        (drop_camera, f"cameras=[{IMAGE}] keeps those that both have"),
    ],
)
def test_what_cannot_be_one_dataset_is_one_line(
    real: Path, synthetic: Path, tmp_path: Path, change: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = damaged(synthetic, tmp_path / "other", change)
    assert cli.main(["mix", f"real=[{real}]", f"synthetic=[{other}]", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(other) in error
    assert said in error
    assert not (tmp_path / "out/dataset").exists()


def test_one_camera_of_several_is_kept(real: Path, synthetic: Path, tmp_path: Path) -> None:
    other = damaged(synthetic, tmp_path / "other", drop_camera)
    dataset = mix(tmp_path / "out", f"real=[{real}]", f"synthetic=[{other}]", f"cameras=[{IMAGE}]")
    assert [one.pictures.keys() for one in read_episodes(dataset)] == [{IMAGE}] * 14


def test_the_same_as_v21_is_read_by_what_reads_that(real: Path, synthetic: Path, tmp_path: Path) -> None:
    words = [f"real=[{real}]", "episodes_per_task=1", f"synthetic=[{synthetic}]", "synthetic_per_task=1", "v21=true"]
    made = list(read_episodes(mix(tmp_path / "mixed", *words)))
    older = tmp_path / "mixed/dataset_v21"
    assert json.loads((older / "meta/info.json").read_text())["codebase_version"] == "v2.1"
    assert cli.main(["import", str(older), f"out={tmp_path / 'imported'}"]) == 0
    for first, second in zip(made, read_episodes(tmp_path / "imported/dataset"), strict=True):
        assert first.task == second.task
        assert second.metadata["source"] == first.metadata["source"]
        np.testing.assert_array_equal(first.states, second.states)
        np.testing.assert_array_equal(first.actions, second.actions)
    for number, one in enumerate(made):
        for camera, pictures in one.pictures.items():
            video = Video(older / f"videos/chunk-000/{camera}/episode_{number:06d}.mp4")
            assert video.times[0] == 0
            np.testing.assert_array_equal(video.read(range(len(one))), pictures)
    assert json.loads((older / "meta/seen_scenes.json").read_text()) == {"push": [0, 2]}


def test_lerobots_own_converter_reads_the_v21_form(real: Path, tmp_path: Path) -> None:
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    mixed = list(read_episodes(mix(tmp_path / "mixed", f"real=[{real}]", "episodes_per_task=2", "v21=true")))
    copy = Path(shutil.copytree(tmp_path / "mixed/dataset_v21", tmp_path / "copy"))
    convert_dataset("local/copy", root=copy, push_to_hub=False)
    for first, second in zip(mixed, read_episodes(copy), strict=True):
        assert first.task == second.task
        np.testing.assert_array_equal(first.actions, second.actions)
        for camera, pictures in first.pictures.items():
            np.testing.assert_array_equal(pictures, second.pictures[camera])


@pytest.mark.long
@pytest.mark.slow
def test_lerobot_train_learns_from_it(real: Path, synthetic: Path, tmp_path: Path) -> None:
    """The documented command, of two steps with a small network."""
    dataset = mix(tmp_path / "mixed", f"real=[{real}]", f"synthetic=[{synthetic}]", "synthetic_fraction=0.5")
    words = ["--policy.type=act", "--policy.push_to_hub=false", "--policy.device=cpu", "--dataset.video_backend=pyav"]
    words += ["--policy.pretrained_backbone_weights=null", "--policy.dim_model=64", "--policy.n_heads=2"]
    words += ["--batch_size=4", "--steps=2", "--num_workers=0", "--wandb.enable=false"]
    where = [f"--dataset.root={dataset}", "--dataset.repo_id=local/mixed", f"--output_dir={tmp_path / 'out'}"]
    command = [str(Path(sys.executable).with_name("lerobot-train")), *where, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "out/checkpoints").glob("*/pretrained_model/model.safetensors"))
