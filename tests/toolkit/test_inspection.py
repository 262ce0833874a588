"""Inspection: every kind of damage becomes a line that names it, and the repaired copy inspects clean."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recipes import cli
from toolkit.base.errors import UserError
from toolkit.data.episode import ACTION, IMAGE, STATE, Episode
from toolkit.data.formats import lerobot_read
from toolkit.data.formats.lerobot_read import read_episodes
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.inspection.repair import repair_dataset
from toolkit.data.inspection.validate import inspect_dataset
from toolkit.reporting.report import write_report

MakeEpisode = Callable[..., Episode]
Damage = Callable[[Path], None]


@pytest.fixture
def copy(films: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(films, target)
    return target


def rows(change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> Damage:
    """Damage to the table of frames."""
    return lambda directory: edit(next(directory.glob("data/**/*.parquet")), change)


def table(change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> Damage:
    """Damage to the episode table."""
    return lambda directory: edit(next(directory.glob("meta/episodes/**/*.parquet")), change)


def edit(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    frame = pd.read_parquet(path)
    changed = change(frame)
    (frame if changed is None else changed).to_parquet(path)


def put(key: str, row: int, value: Any) -> Callable[[pd.DataFrame], None]:
    def change(frame: pd.DataFrame) -> None:
        frame.at[row, key] = value

    return change


def add(key: str, start: int, stop: int, value: float) -> Callable[[pd.DataFrame], None]:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[start : stop - 1, key] += np.float32(value)

    return change


def swap(first: int, second: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        order = np.arange(len(frame))
        order[[first, second]] = order[[second, first]]
        return frame.iloc[order].reset_index(drop=True)

    return change


def repeat(source: int, target: int, noise: float = 0.0) -> Callable[[pd.DataFrame], None]:
    """Rows of one episode (17 frames each) hold the values of another."""

    def change(frame: pd.DataFrame) -> None:
        for key in (STATE, ACTION, "task_index"):
            for i in range(17):
                frame.at[17 * target + i, key] = frame.at[17 * source + i, key] + (noise if key == STATE else 0)

    return change


def json_value(name: str, *keys: str, value: Any) -> Damage:
    def damage(directory: Path) -> None:
        content = json.loads((directory / name).read_text())
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (directory / name).write_text(json.dumps(content))

    return damage


def video(change: Callable[[Path], Any]) -> Damage:
    """Damage to the first video file."""
    return lambda directory: change(min(directory.glob("videos/**/*.mp4")))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(bytes(content))


def averaged_quantiles(directory: Path) -> None:
    """What LeRobot writes: the mean of the quantiles of the episodes."""
    path = directory / "meta/stats.json"
    saved = json.loads(path.read_text())
    episodes = [episode.actions for episode in read_episodes(directory)]
    for name, q in (("q01", 0.01), ("q99", 0.99)):
        saved[ACTION][name] = np.mean([np.quantile(part, q, axis=0) for part in episodes], axis=0).tolist()
    path.write_text(json.dumps(saved))


# damage, what is said, episodes (by seed) that the repaired copy holds
ALL = [0, 1, 2, 3]
DAMAGES: dict[str, tuple[Damage, str, list[int]]] = {
    "gap": (rows(add("timestamp", 20, 34, 0.1)), r"episode 1: time jumps by 0.15 s at frame 3, 0.05 s is", ALL),
    "late start": (rows(add("timestamp", 17, 34, 3)), r"episode 1: starts at 3 s instead of 0", ALL),
    "time goes back": (rows(put("timestamp", 40, 0.0)), r"episode 2: time does not increase at frame 6", ALL),
    "time is NaN": (rows(put("timestamp", 40, np.nan)), r"episode 2: frame 6 has the time stamp nan", ALL),
    "drift": (
        rows(lambda f: f.assign(timestamp=np.float32(f["timestamp"] * 1.0015))),
        r"episode 0: time stamps drift",
        ALL,
    ),
    "frame_index": (rows(put("frame_index", 19, 7)), r"frame_index: .*first in episode 1, frame 2 \(7 where 2", ALL),
    "index": (rows(put("index", 19, 7)), r"index: does not count in 1 of 68 rows, first in episode 1, frame 2", ALL),
    "episode_index": (rows(put("episode_index", 19, 3)), r"episode_index: .*episode 1, frame 2 \(3 where 1", ALL),
    "rows out of order": (rows(swap(20, 24)), r"frame_index: does not count in 2 of 68 rows", ALL),
    "NaN": (
        rows(put(ACTION, 20, np.array([0, np.nan], np.float32))),
        r"action: episode 1: 1 values are NaN.*first at frame 3, dimension 1 \(dx\)",
        [0, 2, 3],
    ),
    "infinity": (rows(put(STATE, 0, np.array([np.inf, 1], np.float32))), r"state: episode 0: .*infinite", [1, 2, 3]),
    "empty cell": (rows(put(ACTION, 20, None)), r"action: episode 1: 2 values .*no number", [0, 2, 3]),
    "short cell": (
        rows(lambda f: f.assign(action=[[0.0] if i == 20 else cell for i, cell in enumerate(f[ACTION])])),
        r"action: episode 1: 2 values",
        [0, 2, 3],
    ),
    "lost row": (
        rows(lambda f: f.drop(index=20)),
        r"episode 1: 17 video frames and 16 rows",
        [0, 2, 3],
    ),
    "lost episode": (rows(lambda f: f[f["episode_index"] != 2]), r"episode 2: no rows in the data", [0, 1, 3]),
    "length": (table(put("length", 1, 18)), r"episode 1: the episode table says 18 frames, the data holds 17", ALL),
    "dataset_from_index": (table(put("dataset_from_index", 2, 30)), r"dataset_from_index .*episode 2 \(30, .* 34", ALL),
    "dataset_to_index": (table(put("dataset_to_index", 2, 30)), r"dataset_to_index disagrees.*in 1 of 4", ALL),
    "unknown episode": (table(lambda f: f[f["episode_index"] != 3]), r"17 rows belong to no episode", [0, 1, 2]),
    "numbers of episodes": (
        table(lambda f: f.assign(episode_index=[0, 1, 5, 3])),
        r"episode_index is 5 where 2 is next",
        ALL,
    ),
    "total_episodes": (json_value("meta/info.json", "total_episodes", value=7), r"total_episodes is 7, .*hold 4", ALL),
    "total_frames": (json_value("meta/info.json", "total_frames", value=7), r"total_frames is 7, .*hold 68", ALL),
    "total_tasks": (json_value("meta/info.json", "total_tasks", value="x"), r"total_tasks is x, .*hold 2", ALL),
    "shape": (
        json_value("meta/info.json", "features", ACTION, "shape", value=[3]),
        r"rows hold 2 numbers.*says 3",
        ALL,
    ),
    "picture shape": (
        json_value("meta/info.json", "features", IMAGE, "shape", value=[48, 32, 3]),
        r"pictures are 32x32, info.json says 48x32",
        ALL,
    ),
    "unknown task": (rows(put("task_index", 17, 9)), r"episode 1: task index 9 is not in meta/tasks.parquet", ALL),
    "no tasks": (lambda d: (d / "meta/tasks.parquet").unlink(), r"tasks.parquet: missing", ALL),
    "other tasks": (table(lambda f: f.assign(tasks=[["dance"]] * 4)), r"episode 1: the episode table names other", ALL),
    "duplicate": (rows(repeat(0, 2)), r"episode 2: same states and actions as episode 0", [0, 1, 3]),
    "no video": (video(os.remove), r"file-000.mp4: video file is missing; leave out episodes? 0", []),
    "truncated video": (video(truncate), r"file-000.mp4: not readable as video", []),
    "garbled video": (video(garble), r"episode 0: \d+ of 17 video frames are missing or damaged", []),
    "video is text": (video(lambda p: p.write_text("hello")), r"file-000.mp4: not readable as video", []),
    "video frames": (
        table(put(f"videos/{IMAGE}/to_timestamp", 3, 0.0)),
        r"episode 3: (\d+ video frames and 17 rows|the episode table names no usable place)",
        [0, 1, 2],
    ),
    "no statistics": (lambda d: (d / "meta/stats.json").unlink(), r"stats.json: missing", ALL),
    "averaged quantiles": (
        averaged_quantiles,
        r"stats.json: action: q01, q99 disagree .*q01 of dimension 0 \(dy\)",
        ALL,
    ),
    "mean": (json_value("meta/stats.json", ACTION, "mean", value=[0.5, 0]), r"action: mean disagree", ALL),
    "count": (json_value("meta/stats.json", ACTION, "count", value=[67]), r"count is 67, the data say 68", ALL),
    "no std": (json_value("meta/stats.json", STATE, "std", value=None), r"state: std .*missing", ALL),
    "picture statistics": (
        json_value("meta/stats.json", IMAGE, "mean", value=[[[0.9]], [[0.3]], [[0.3]]]),
        r"observation.image: mean disagree .*dimension 0 \(red\) is 0.9",
        ALL,
    ),
}


def test_good_data_is_clean(dataset: Path, films: Path) -> None:
    assert len(list(films.glob("videos/**/*.mp4"))) > 1
    for path in (dataset, films):
        found = inspect_dataset(path)
        assert found.problems == []
        assert found.warnings == []
        assert (len(found.contents.episodes), len(found.contents.frames)) == (4, 68)
        assert [row["key"] for row in found.feature_table()][:3] == [IMAGE, STATE, ACTION]


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_repaired(name: str, copy: Path, tmp_path: Path, moving_square: MakeEpisode) -> None:
    damage, text, kept = DAMAGES[name]
    damage(copy)
    before = lerobot_read.dataset_id(copy)
    found = inspect_dataset(copy)
    assert any(re.search(text, line) for line in found.problems), found.problems
    done = repair_dataset(found, tmp_path / "repaired")
    assert done
    assert lerobot_read.dataset_id(copy) == before
    after = inspect_dataset(tmp_path / "repaired")
    assert after.problems == []
    episodes = list(read_episodes(tmp_path / "repaired"))
    if kept:
        assert [episode.metadata["seed"] for episode in episodes] == kept
    else:  # those in the other video files
        assert 0 < len(episodes) < 4
        assert episodes[-1].metadata["seed"] == 3
    for episode in episodes:
        wanted = moving_square(episode.metadata["seed"])
        assert np.array_equal(episode.actions, wanted.actions)
        assert np.array_equal(episode.states, wanted.states)
        assert episode.task == wanted.task
        error = np.square(episode.images.astype(float) - wanted.images).mean()
        assert 10 * np.log10(255**2 / error) > 45
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "repaired"}


@pytest.mark.parametrize("name", ["mean", "no statistics", "averaged quantiles", "picture statistics"])
def test_where_only_statistics_are_wrong_the_files_are_copied(name: str, copy: Path, tmp_path: Path) -> None:
    DAMAGES[name][0](copy)
    repair_dataset(inspect_dataset(copy), tmp_path / "repaired")
    for path in copy.rglob("*"):
        if path.is_file() and path.name != "stats.json":
            assert (tmp_path / "repaired" / path.relative_to(copy)).read_bytes() == path.read_bytes()
    saved = json.loads((tmp_path / "repaired/meta/stats.json").read_text())
    every = np.concatenate([episode.actions for episode in read_episodes(copy)])
    np.testing.assert_allclose(saved[ACTION]["q99"], np.quantile(every, 0.99, axis=0), rtol=1e-5)


def test_a_copy_of_a_dataset_that_may_only_be_read_can_be_changed(copy: Path, tmp_path: Path) -> None:
    DAMAGES["mean"][0](copy)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    repair_dataset(inspect_dataset(copy), tmp_path / "repaired")
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "repaired").rglob("*"))
    assert inspect_dataset(tmp_path / "repaired").problems == []


def test_of_episodes_that_are_the_same_one_is_kept(copy: Path, tmp_path: Path) -> None:
    """Also where the first of them is lost for another reason."""
    for target in (2, 3):
        rows(repeat(0, target))(copy)
    table(put(f"videos/{IMAGE}/to_timestamp", 0, 0.0))(copy)
    found = inspect_dataset(copy)
    for text in ("episode 0: the episode table names no usable", "episode 2: same states", "episode 3: same states"):
        assert any(text in line for line in found.problems)
    repair_dataset(found, tmp_path / "repaired")
    # The one that is kept has the rows of episode 0, so also what is noted of that.
    assert [episode.metadata["seed"] for episode in read_episodes(tmp_path / "repaired")] == [1, 0]
    assert inspect_dataset(tmp_path / "repaired").problems == []


def test_pictures_in_the_rows(copy: Path, tmp_path: Path) -> None:
    def encoded(picture: np.ndarray) -> dict[str, Any]:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    cells = [encoded(picture) for episode in read_episodes(copy) for picture in episode.images]
    rows(lambda frame: frame.assign(**{IMAGE: cells}))(copy)
    json_value("meta/info.json", "features", IMAGE, "dtype", value="image")(copy)
    shutil.rmtree(copy / "videos")
    assert inspect_dataset(copy).problems == []
    cells[20]["bytes"] = cells[20]["bytes"][:60]
    cells[40] = {"bytes": None, "path": "gone.png"}
    rows(lambda frame: frame.assign(**{IMAGE: cells}))(copy)
    found = inspect_dataset(copy)
    assert [line.split(";")[0] for line in found.problems] == [
        "observation.image: episode 1: 1 pictures are not readable, first at frame 3",
        "observation.image: episode 2: 1 pictures are not readable, first at frame 6",
    ]
    repair_dataset(found, tmp_path / "repaired")
    assert inspect_dataset(tmp_path / "repaired").problems == []
    assert [e.metadata["seed"] for e in read_episodes(tmp_path / "repaired")] == [0, 3]


def test_a_doubled_frame_is_named_and_left_out(
    copy: Path, tmp_path: Path, retime_video: Callable[[Path, dict[int, list[float]]], None]
) -> None:
    """Training would refuse the video, so inspection must not pass it."""
    for times in ([3, 3.2], [3, 3.4]):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        shutil.copytree(copy, tmp_path / "other")
        retime_video(min((tmp_path / "other").glob("videos/**/*.mp4")), {3: times})
        found = inspect_dataset(tmp_path / "other")
        assert any("holds 1 frames that belong to no episode" in line for line in found.problems)
        repaired = tmp_path / f"repaired {times[1]}"
        repair_dataset(found, repaired)
        assert inspect_dataset(repaired).problems == []
        for episode, wanted in zip(read_episodes(repaired), read_episodes(copy), strict=True):
            assert np.square(episode.images.astype(float) - wanted.images).mean() < 2


def test_one_broken_video_hides_nothing_else(copy: Path) -> None:
    for name in ("no video", "NaN", "gap", "mean"):
        DAMAGES[name][0](copy)
    problems = "\n".join(inspect_dataset(copy).problems)
    for text in ("video file is missing", "values are NaN", "time jumps", "action: mean"):
        # Statistics of data with NaN cannot be compared.
        assert (text in problems) == (text != "action: mean")


def test_warnings_are_no_problems(copy: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        for i in range(17):
            for key in (STATE, ACTION):
                frame.at[17 + i, key] = frame.at[i, key]

    rows(change)(copy)
    found = inspect_dataset(copy)
    others = [line for line in found.problems if "stats.json" not in line]
    assert len(others) == 0
    assert "episode 1: same states and actions as episode 0, with another instruction" in "\n".join(found.warnings)


def test_samples_of_a_scene_with_one_plan_are_no_problem(copy: Path) -> None:
    """`vag synthesize samples_per_scene=2` writes such, and what it writes must inspect clean."""
    rows(repeat(0, 2))(copy)
    table(lambda frame: frame.assign(source="synthetic"))(copy)
    found = inspect_dataset(copy)
    assert not [line for line in found.problems if "stats.json" not in line]
    assert "1 synthetic episodes have the states and actions of an earlier one" in "\n".join(found.warnings)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda d: (d / "meta/info.json").unlink(), "not a LeRobotDataset"),
        (lambda d: (d / "meta/info.json").write_text("{"), "info.json: not valid JSON"),
        (lambda d: (d / "meta/info.json").write_text("[1]"), "info.json: holds list; expected dict"),
        (json_value("meta/info.json", "codebase_version", value="v2.1"), "v2.1; expected v3"),
        (json_value("meta/info.json", "fps", value="fast"), "fps.? is 'fast'"),
        (json_value("meta/info.json", "features", value={}), "no features"),
        (json_value("meta/info.json", "features", ACTION, value=3), "'features' is|feature 'action' has no dtype"),
        (json_value("meta/info.json", "features", ACTION, "shape", value=[-1]), r"shape \[-1\]"),
        (lambda d: shutil.rmtree(d / "data"), "no Parquet file"),
        (lambda d: truncate(next(d.glob("data/**/*.parquet"))), "not readable as Parquet"),
        (rows(lambda f: f[:0]), "0 rows"),
    ],
)
def test_what_cannot_be_read_is_one_line(damage: Damage, text: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(UserError, match=text):
        inspect_dataset(copy)


@pytest.mark.parametrize(
    "damage",
    [
        json_value("meta/info.json", "video_path", value="{nothing}"),
        json_value("meta/info.json", "video_path", value="../{video_key}{chunk_index}{file_index}"),
        json_value("meta/info.json", "video_path", value=3),
        json_value("meta/info.json", "video_path", value="{chunk_index:4000000000d}"),
        json_value("meta/info.json", "video_path", value="{video_key:>4000000000}"),
        json_value("meta/stats.json", ACTION, value="none"),
        rows(lambda f: f.assign(episode_index="x")),
        rows(lambda f: f.assign(task_index=1.5)),
        rows(lambda f: f.drop(columns=[ACTION])),
        rows(lambda f: f.drop(columns=["timestamp", "index"])),
        table(lambda f: f.drop(columns=["length", "tasks"])),
        table(lambda f: f[["length"]]),
        table(put(f"videos/{IMAGE}/to_timestamp", 1, 1e300)),
        table(put("length", 1, -5)),
        lambda d: edit(d / "meta/tasks.parquet", lambda f: f.reset_index(drop=True)),
    ],
)
def test_odd_files_give_problems_and_no_traceback(damage: Damage, copy: Path, tmp_path: Path) -> None:
    damage(copy)
    code = cli.main(["inspect", str(copy), f"out={tmp_path / 'run'}"])
    assert code == 1
    problems = json.loads((tmp_path / "run/run.json").read_text())["result"]["problems"]
    assert problems
    assert all(line.isprintable() for line in problems)


def test_command_writes_pictures_report_and_copy(
    copy: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(dataset), f"out={tmp_path / 'good'}"]) == 0
    DAMAGES["NaN"][0](copy)
    assert cli.main(["inspect", str(copy), f"out={tmp_path / 'bad'}"]) == 1
    assert "problem: action: episode 1: 1 values are NaN" in capsys.readouterr().out
    assert cli.main(["inspect", str(copy), "fix=true", f"out={tmp_path / 'fixed'}"]) == 0
    result = json.loads((tmp_path / "fixed/run.json").read_text())["result"]
    assert result["problems"] == []
    assert "values are NaN" in result["found"][0]
    assert "left out episode 1" in result["fixed"]
    assert inspect_dataset(tmp_path / "fixed/dataset").problems == []
    for entry in result["media"]:
        assert (tmp_path / "fixed" / entry["path"]).read_bytes()[1:4] == b"PNG"
    assert len(result["media"]) == 3
    write_report([tmp_path / "fixed", tmp_path / "good"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for text in ("Problems before the repair", "left out episode 1", "first, middle and last frame of 4 episodes"):
        assert text in page


def test_names_may_hold_anything(copy: Path, tmp_path: Path) -> None:
    json_value("meta/info.json", "features", ACTION, "names", value=["\ud800\n$x$", "<b>"])(copy)
    edit(copy / "meta/tasks.parquet", lambda frame: frame.set_axis(["a\nb\x00", "$c$ <b>"]))
    table(lambda f: f.assign(tasks=[["a\nb\x00"], ["$c$ <b>"]] * 2))(copy)
    assert cli.main(["inspect", str(copy), f"out={tmp_path / 'run'}"]) == 0
    write_report([tmp_path / "run"], tmp_path / "page.html")


def test_every_camera_is_kept(tmp_path: Path, moving_square: MakeEpisode) -> None:
    wrist = "observation.images.wrist"
    with EpisodeWriter(tmp_path / "data", 20, ["y", "x"], ["dy", "dx"]) as writer:
        for seed in range(3):
            episode = moving_square(seed)
            writer.add(replace(episode, cameras={wrist: episode.images[:, ::-1, :16]}))
    assert inspect_dataset(tmp_path / "data").problems == []
    DAMAGES["NaN"][0](tmp_path / "data")
    repair_dataset(inspect_dataset(tmp_path / "data"), tmp_path / "repaired")
    assert inspect_dataset(tmp_path / "repaired").problems == []
    episodes = list(read_episodes(tmp_path / "repaired"))
    assert [episode.metadata["seed"] for episode in episodes] == [0, 2]
    for episode in episodes:
        wanted = moving_square(episode.metadata["seed"]).images
        for found, true in ((episode.images, wanted), (episode.cameras[wrist], wanted[:, ::-1, :16])):
            assert 10 * np.log10(255**2 / np.square(found.astype(float) - true).mean()) > 45


def test_nothing_left_to_repair_is_said(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "videos")
    with pytest.raises(UserError, match="no episode is whole"):
        repair_dataset(inspect_dataset(copy), tmp_path / "repaired")
    assert not (tmp_path / "repaired").exists()


def test_links_are_refused_before_anything_is_read_or_copied(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What lies outside must not come into a copy, or into a report."""
    found = inspect_dataset(copy)
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(copy / "meta/stats.json", outside / "secret.json")
    for name, target, text in (
        ("notes.txt", outside / "secret.json", "'notes.txt' leads out of the directory"),
        ("meta/stats.json", outside / "secret.json", "'meta/stats.json' leads out of the directory"),
        ("meta/seen_scenes.json", outside / "secret.json", "'meta/seen_scenes.json' leads out of the directory"),
        ("more", outside, "'more' leads out of the directory"),
        ("again", copy, "'again' is a link to a directory"),
        ("gone", Path("nowhere"), "'gone' is no file, or a link that leads nowhere"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            aside = tmp_path / "aside"
            if (copy / name).exists():
                (copy / name).rename(aside)
            (copy / name).symlink_to(target)
            patch.setattr(shutil, "copytree", lambda *_, **__: pytest.fail("copied"))
            with pytest.raises(UserError, match=text):
                inspect_dataset(copy)
            with pytest.raises(UserError, match=text):
                repair_dataset(found, tmp_path / "repaired")
            assert cli.main(["inspect", str(copy), "fix=true", f"out={tmp_path / 'run'}", "overwrite=true"]) == 2
            assert text in capsys.readouterr().err
        (copy / name).unlink()
        if aside.exists():
            aside.rename(copy / name)
    os.mkfifo(copy / "pipe")
    with pytest.raises(UserError, match="'pipe' is no file"):
        inspect_dataset(copy)
    assert not (tmp_path / "repaired").exists()


def test_a_copy_that_fails_is_one_line(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, target: str, **_: Any) -> None:
        raise OSError(5, "Input/output error", source)

    found = inspect_dataset(copy)
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(UserError, match=r"cannot be copied \(.*Input/output error"):
        repair_dataset(found, tmp_path / "repaired")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_output_inside_the_dataset_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(copy.rglob("*"))
    assert cli.main(["inspect", str(copy), f"out={copy / 'run'}"]) == 2
    assert "choose another out=" in capsys.readouterr().err
    assert [path for path in sorted(copy.rglob("*")) if "run" not in path.relative_to(copy).parts] == before
