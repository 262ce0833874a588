"""Recordings of all kinds of tools come in as they are: what is guessed is said, what is left out is named."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pandas as pd
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image

from recipes import cli
from toolkit.base.errors import UserError
from toolkit.data.episode import ACTION, STATE, Episode
from toolkit.data.formats import lerobot_read
from toolkit.data.formats.importers import open_source
from toolkit.data.formats.recording import ImportOptions, Recording

TOP = "observation.images.top"
rng = np.random.default_rng(0)
Capture = pytest.CaptureFixture[str]


def first(episode: Episode) -> np.ndarray:
    """The pictures of the only camera, or of the first one."""
    return next(iter(episode.pictures.values()))


def opened(path: Path, **options: Any) -> Recording:
    return open_source(path, "auto", ImportOptions(**options), path.parent / "workspace")


def pictures(length: int, height: int = 24, width: int = 32) -> np.ndarray:
    return rng.integers(0, 256, (length, height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "JPEG") -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return np.frombuffer(file.getvalue(), np.uint8)


def robomimic(path: Path, lengths: dict[int, int], change: Callable[[h5py.Group, int], None] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        for number, length in lengths.items():
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = rng.normal(size=(length, 7))
            demo["obs/robot0_eef_pos"] = rng.normal(size=(length, 3))
            demo["obs/agentview_image"] = pictures(length)
            if change is not None:
                change(demo, number)
    return path


def mp4(path: Path, levels: Any, rate: int, size: tuple[int, int] = (64, 48)) -> None:
    """Pictures of one red level each, with a white bar that moves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"g": "2", "crf": "10"}
        for number, level in enumerate(levels):
            image = np.full((size[1], size[0], 3), (level, 40, 90), np.uint8)
            image[-8:, number % 40 : number % 40 + 8] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


def levels(images: np.ndarray) -> np.ndarray:
    return images[:, 0, 0, 0].astype(int)


# ------------------------------------------------------------------------------------------------------------- HDF5


def test_red_and_blue_can_be_swapped_back(tmp_path: Path, capsys: Capture) -> None:
    red = np.full((6, 24, 32, 3), (230, 20, 10), np.uint8)
    with h5py.File(tmp_path / "episode_0.hdf5", "w") as file:
        file["action"], file["observations/qpos"] = rng.normal(size=(6, 14)), rng.normal(size=(6, 14))
        rows = [encoded(image[..., ::-1]) for image in red]  # as cv2.imencode does with RGB
        file["observations/images/cam_high"] = np.stack([np.pad(row, (0, 2000 - len(row))) for row in rows])
    (found,) = opened(tmp_path / "episode_0.hdf5", task="x", fps=10)
    assert first(found)[0, 0, 0, 2] > 200
    said = capsys.readouterr().err
    assert "do not tell the order of their colours; taken as rgb; files of the layout aloha often hold them" in said
    (found,) = opened(tmp_path / "episode_0.hdf5", task="x", fps=10, colour_order="bgr")
    assert first(found)[0, 0, 0, 0] > 200
    assert "order of their colours" not in capsys.readouterr().err


def test_no_action_and_no_truth_of_the_simulator_is_a_state(tmp_path: Path, capsys: Capture) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"sim_args": {"dt": 0.01, "decimation": 5}})
        for k in range(2):
            demo = file.create_group(f"data/demo_{k}")
            widths = {"actions": 7, "joint_pos": 9, "joint_vel": 9, "object": 39, "cube_positions": 9, "eef_pos": 3}
            for name, width in widths.items():
                demo[f"obs/{name}"] = rng.normal(size=(12, width))
            demo["actions"], demo["processed_actions"] = demo["obs/actions"][()], demo["obs/actions"][()]
            demo["obs/table_cam"] = pictures(12)
    source = opened(tmp_path / "x.hdf5", task="stack")
    assert (source.layout, source.fps) == ("isaaclab", 20)
    assert source.state_keys == ["obs/joint_pos", "obs/eef_pos"]
    left = " ".join(source.left_out)
    assert all(part in left for part in ("obs/actions 12x7", "obs/object 12x39", "obs/joint_vel 12x9"))
    with h5py.File(tmp_path / "x.hdf5", "r+") as file:  # of no known layout
        for k in range(2):
            del file[f"data/demo_{k}/processed_actions"]
    assert opened(tmp_path / "x.hdf5", task="stack").state_keys == ["obs/eef_pos", "obs/joint_pos"]
    assert "obs/eef_pos, obs/joint_pos chosen by name. Give state_keys= if that is wrong" in capsys.readouterr().err


def test_instructions_are_found_where_people_put_them(tmp_path: Path, capsys: Capture) -> None:
    def places(demo: h5py.Group, number: int) -> None:
        demo.attrs["ep_meta"] = json.dumps({"layout": 3, "lang": f"open drawer {number}"})

    path = robomimic(tmp_path / "x.hdf5", {0: 5, 1: 5}, places)
    assert [episode.task for episode in opened(path)] == ["open drawer 0", "open drawer 1"]
    assert [e.task for e in opened(path, task="never")] == ["open drawer 0", "open drawer 1"]

    def dataset(demo: h5py.Group, number: int) -> None:
        demo["language_raw"] = np.array([f"close {number}".encode()])
        demo.attrs["comment"] = "good one"

    path = robomimic(tmp_path / "y.hdf5", {0: 5, 1: 5}, dataset)
    assert [episode.task for episode in opened(path)] == ["close 0", "close 1"]
    assert "instructions are taken from 'language_raw', as 'close 0'; give task_key=" in capsys.readouterr().err
    assert [episode.task for episode in opened(path, task_key="comment")] == ["good one"] * 2

    def nothing(demo: h5py.Group, number: int) -> None:
        demo.attrs["comment"] = "good one"

    path = robomimic(tmp_path / "z.hdf5", {0: 5}, nothing)
    with pytest.raises(UserError, match="task_key=...; texts seen: comment = 'good one', env_args.env_name = 'Lift'"):
        list(opened(path))


def test_any_keys_and_any_pictures(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    rgb = pictures(6)
    with h5py.File(path, "w") as file:
        for k in range(3):
            group = file.create_group(f"ep{k}")
            group["cmd"], group["prop/q"] = rng.normal(size=(6, 4)), rng.normal(size=(6, 5))
            group["prop/arms/left"], group["prop/arms/right"] = rng.normal(size=(6, 2)), rng.normal(size=6)
            group["pix/chw"] = np.moveaxis(rgb, -1, 1)
            group["pix/unit"], group["pix/large"] = (rgb / 255).astype(np.float32), rgb.astype(np.float64)
            group["pix/grey"], group["pix/grey_one"] = rgb[..., 0], rgb[..., :1]
            group["pix/rgba"] = np.concatenate([rgb, rgb[..., :1]], axis=-1)
            group["pix/depth"], group["pix/sixteen"] = np.ones((6, 24, 32)), rgb.astype(np.uint16)
            rows = [encoded(image, "PNG").tobytes() for image in rgb]
            group["pix/rows"] = np.array(rows, dtype=f"S{max(map(len, rows))}")
            group.attrs["notes"] = json.dumps({"what": {"goal_text": "stack it"}})
    with pytest.raises(UserError, match="no known layout; .* action_key=...; found: cmd 6x4 float64, pix/chw 6x3x24"):
        opened(path)
    with pytest.raises(UserError, match=r"'ep0/pix/grey' is .* expected numbers \(T, D\)"):
        opened(path, action_key="pix/grey")
    options: dict[str, Any] = {"action_key": "cmd", "state_keys": ("q", "prop/arms"), "task_key": "goal_text", "fps": 7}
    source = opened(path, **options, colour_order="rgb")
    assert source.num_episodes == 3
    assert source.state_keys == ["prop/q", "prop/arms/left", "prop/arms/right"]
    assert source.left_out == ["pix/depth 6x24x32 float64", "pix/sixteen 6x24x32x3 uint16"]
    episode = next(iter(source))
    assert (episode.task, episode.states.shape) == ("stack it", (6, 8))
    images = {source.cameras[key]: value for key, value in episode.pictures.items()}
    for name in ("chw", "unit", "large", "rgba", "rows"):
        assert np.array_equal(images[name], rgb), name
    for name in ("grey", "grey_one"):
        assert np.array_equal(images[name], np.repeat(rgb[..., :1], 3, axis=-1))


def test_videos_beside_a_file(tmp_path: Path, capsys: Capture) -> None:
    """As DROID has them, of which one has more pictures a second than there are rows."""
    for k in range(2):
        folder = tmp_path / f"droid/success/day {k}"
        folder.mkdir(parents=True)
        with h5py.File(folder / "trajectory.h5", "w") as file:
            for name, width in (("joint_position", 7), ("cartesian_position", 6), ("gripper_position", 1)):
                file[f"action/{name}"] = rng.normal(size=(12, width))
            file["observation/robot_state/joint_positions"] = rng.normal(size=(12, 7))
            file["observation/robot_state/gripper_position"] = rng.normal(size=12)
            file["observation/timestamp/control/step_start"] = (1.7e12 + 66.7 * np.arange(12)).astype(np.int64)
        mp4(folder / "recordings/MP4/123.mp4", 20 + 10 * np.arange(12), 15)
        mp4(folder / "recordings/MP4/456.mp4", np.repeat(20 + 10 * np.arange(12), 2), 30)
        mp4(folder / "recordings/MP4/123-stereo.mp4", range(12), 15)
        (folder / "metadata_x.json").write_text(json.dumps({"current_task": f"move {k}"}))
    source = opened(tmp_path / "droid")
    assert (source.layout, source.fps, source.action_key) == (
        "droid",
        15,
        "action/joint_position,action/gripper_position",
    )
    assert source.cameras == {"observation.images.123": "123", "observation.images.456": "456"}
    assert "action/cartesian_position 12x6 float64" in source.left_out
    for k, episode in enumerate(source):
        assert episode.task == f"move {k}"
        for images in (first(episode), episode.cameras["observation.images.456"]):
            assert np.abs(levels(images) - (20 + 10 * np.arange(12))).max() < 6
    mp4(folder / "recordings/MP4/123.mp4", range(9), 15)
    with pytest.raises(UserError, match=r"123.mp4: 9 pictures, 15 a second, for 12 rows at 15 a second"):
        list(opened(tmp_path / "droid"))


def test_time_stamps_tell_the_rate(tmp_path: Path, capsys: Capture) -> None:
    def stamps(demo: h5py.Group, number: int) -> None:
        demo["timestamps"] = 1.7e9 + np.arange(8) / 4

    path = robomimic(tmp_path / "x.hdf5", {0: 8}, stamps)
    assert opened(path, task="x").fps == 20
    assert (
        "time stamps 'timestamps' say 4 steps a second, env_args env_kwargs: control_freq 20" in capsys.readouterr().err
    )
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env_args"]
    assert opened(path, task="x").fps == 4
    assert "rate" not in capsys.readouterr().err


def test_masks_choose_and_are_kept(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "x.hdf5", {0: 6, 2: 6, 3: 6, 10: 6, 11: 6})
    with h5py.File(path, "r+") as file:
        file["mask/train"], file["mask/few"] = np.array([b"demo_0", b"demo_2", b"demo_10"]), np.array([b"demo_0"])
    found = list(opened(path, task="x", filter_key="train"))
    assert [e.metadata["source_episode"] for e in found] == ["demo_0", "demo_2", "demo_10"]
    assert [e.metadata["masks"] for e in found] == ["few,train", "train", "train"]
    with pytest.raises(UserError, match="filter_key=tain is no mask of its files. Did you mean 'train'"):
        opened(path, task="x", filter_key="tain")


def test_episodes_are_lists_and_ranges(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "x.hdf5", dict.fromkeys(range(8), 4))
    for part, wanted in (("[0,2,5:7]", [0, 2, 5, 6]), ("3", [3]), ("-2:", [6, 7]), ("6,1:3, 1", [1, 2, 6])):
        names = [e.metadata["source_episode"] for e in opened(path, task="x", episodes=part)]
        assert names == [f"demo_{number}" for number in wanted]
    with pytest.raises(UserError, match="has 8 episodes, none of number 8"):
        opened(path, task="x", episodes="0,8")


def test_bad_episodes_are_left_out_on_request(tmp_path: Path, capsys: Capture) -> None:
    def damage(demo: h5py.Group, number: int) -> None:
        if number == 1:
            demo["actions"][3] = np.nan
        if number == 3:
            demo["obs/agentview_image"][:] = 0
        if number == 4:
            demo["obs/agentview_image"][3:] = demo["obs/agentview_image"][3]
        if number == 5:
            demo["actions"][15:], demo["obs/robot0_eef_pos"][15:], demo.attrs["num_samples"] = 0, 0, 15
        if number == 6:
            demo["actions"][15:], demo["obs/robot0_eef_pos"][15:] = 0, 0

    lengths = {0: 40, 1: 40, 2: 1, 3: 40, 4: 40, 5: 40, 6: 40}
    path = robomimic(tmp_path / "x.hdf5", lengths, damage)
    with pytest.raises(
        UserError, match=r"demo_1/actions' holds NaN or infinity \(step 3\); .* skip_bad=true leaves out"
    ):
        list(opened(path, task="x"))
    capsys.readouterr()
    assert [len(episode) for episode in opened(path, task="x", episodes="0,3:")] == [40, 40, 40, 15, 40]
    said = capsys.readouterr().err
    for expected in (
        "demo_3: 'agentview_image': every picture is black or of one colour",
        "demo_4: 'agentview_image': its picture stands still from step 3 on, while the robot moves on",
        "'demo_5' has 40 rows and num_samples 15; rows after these are left out",
        "demo_6: states and actions are zero in the last 25 of 40 steps",
    ):
        assert expected in said
    out = tmp_path / "run"
    assert cli.main(["import", str(path), "task=x", "skip_bad=true", f"out={out}"]) == 0
    told = capsys.readouterr().out
    assert "skipped episode 1" in told
    assert "demo_2: has 1 step" in told
    result = json.loads((out / "run.json").read_text())["result"]
    assert (result["episodes"], len(result["skipped"]), result["frames"]) == (2, 5, 55)
    inspected = tmp_path / "inspected"
    assert cli.main(["import", str(path), "task=x", "episodes=[0,3,4]", f"out={inspected}"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(inspected / "dataset"), f"out={tmp_path / 'inspection'}"]) == 0
    told = capsys.readouterr().out
    assert "warning: observation.images.agentview: episode 1: every picture is black or of one colour" in told
    assert "warning: observation.images.agentview: episode 2: its picture stands still from step 3 on" in told


def test_the_first_episode_and_whole_files_may_be_bad(tmp_path: Path) -> None:
    def damage(demo: h5py.Group, number: int) -> None:
        if number == 0:
            del demo["obs/agentview_image"], demo["actions"]

    for name, lengths in (("a", {0: 6, 1: 6}), ("b", {2: 6}), ("c", {3: 6})):
        robomimic(tmp_path / f"{name}.hdf5", lengths, damage)
    (tmp_path / "b.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match=r"b.hdf5: '/' is not readable as HDF5"):
        opened(tmp_path, task="x")
    source = opened(tmp_path, task="x", skip_bad=True)
    assert [episode.metadata["source_episode"] for episode in source] == ["demo_1", "demo_3"]
    assert len(source.skipped) == 2


def test_pointers_of_git_lfs_are_told(tmp_path: Path) -> None:
    pointer = tmp_path / "x.hdf5"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="x.hdf5: is a git-lfs pointer, not the file itself; run `git lfs pull`"):
        opened(pointer)
    root = v21(tmp_path / "v21")
    shutil.copy(pointer, root / f"videos/chunk-000/{TOP}/episode_000001.mp4")
    with pytest.raises(UserError, match="episode_000001.mp4: is a git-lfs pointer"):
        list(opened(root))


# ---------------------------------------------------------------------------------------------------------- LeRobot


def v21(
    root: Path, version: str = "v2.1", numbers: tuple[int, ...] = (0, 1, 2), jump: bool = False, per_row: int = 1
) -> Path:
    """Episodes of 9, 12 and 15 steps at 10 Hz; the red level is 10 * step + 20, the first action step + 0.5."""
    vector = {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "z"]}}
    scalar = {"dtype": "int64", "shape": [1], "names": None}
    features: dict[str, Any] = {TOP: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channel"]}}
    features |= {STATE: vector, ACTION: vector, "timestamp": {**scalar, "dtype": "float32"}}
    features |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), scalar)
    features["observation.effort"] = vector
    lines: dict[str, list[Any]] = {"episodes": [], "tasks": [{"task_index": k, "task": f"task {k}"} for k in range(2)]}
    for number, length in zip(numbers, (9, 12, 15), strict=True):
        steps = np.arange(length)
        rows = np.stack([steps + 0.5, steps, steps], axis=1).astype(np.float32)
        stamps = steps / 10 + 2.0 * (jump & (steps >= 5))
        table = pd.DataFrame({STATE: list(rows), ACTION: list(rows), "observation.effort": list(rows)})
        table = table.assign(timestamp=stamps.astype(np.float32), frame_index=steps, index=steps, episode_index=number)
        path = root / f"data/chunk-000/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.assign(task_index=number % 2).to_parquet(path)
        video = root / f"videos/chunk-000/{TOP}/episode_{number:06d}.mp4"
        mp4(video, np.repeat(10 * steps + 20, per_row), 10 * per_row)
        lines["episodes"].append({"episode_index": number, "tasks": [f"task {number % 2}"], "length": length})
    (root / "meta").mkdir()
    info = {"codebase_version": version, "robot_type": "so100", "fps": 10, "features": features, "chunks_size": 1000}
    (root / "meta/info.json").write_text(json.dumps({**info, "total_episodes": 3, "total_frames": 36}))
    for name, found in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    return root


def assert_aligned(source: Recording, lengths: list[int]) -> None:
    found = list(source)
    assert [len(episode) for episode in found] == lengths
    for episode in found:
        assert np.abs(levels(first(episode)) - (10 * (episode.actions[:, 0] - 0.5) + 20)).max() < 6


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_version_2_without_statistics_and_with_gaps(tmp_path: Path, version: str, capsys: Capture) -> None:
    source = opened(v21(tmp_path / "x", version, (0, 3, 7)))
    assert (source.layout, source.fps, source.state_names) == (f"lerobot {version}", 10, ["x", "y", "z"])
    assert source.left_out == ["observation.effort 3 float32"]
    assert_aligned(source, [9, 12, 15])
    assert [episode.task for episode in source] == ["task 0", "task 1", "task 1"]
    assert "numbered with gaps, up to 7" in capsys.readouterr().err
    (tmp_path / "x/data/chunk-000/episode_000003.parquet").unlink()
    with pytest.raises(UserError, match=r"episode_000003.parquet: is missing"):
        list(opened(tmp_path / "x"))
    assert_aligned(opened(tmp_path / "x", skip_bad=True), [9, 15])
    (tmp_path / "x/meta/episodes.jsonl").unlink()
    with pytest.raises(UserError, match=r"meta/episodes.jsonl: is missing"):
        opened(tmp_path / "x")


def test_jumps_of_time_stamps_are_told_and_split(tmp_path: Path, capsys: Capture) -> None:
    root = v21(tmp_path / "x", jump=True)
    assert_aligned(opened(root), [9, 12, 15])
    said = capsys.readouterr().err
    assert "time stamps jump in 3 episodes (episode 0 by 2.10 s at step 5" in said
    assert "split_at=[jumps] splits them" in said
    source = opened(root, split_at=("jumps",))
    assert_aligned(source, [5, 4, 5, 7, 5, 10])
    assert next(iter(source)).metadata["source_episode"] == "episode_0 part 0"


def test_pictures_stand_at_the_time_of_their_row(tmp_path: Path) -> None:
    root = v21(tmp_path / "x", per_row=3)
    source = opened(root)
    assert source.copies is None
    assert_aligned(source, [9, 12, 15])
    mp4(root / f"videos/chunk-000/{TOP}/episode_000001.mp4", range(5), 10)
    with pytest.raises(
        UserError, match=rf"x/videos/chunk-000/{TOP}/episode_000001.mp4: 5 pictures, 10 a second, for 12"
    ):
        list(opened(root))


def test_video_that_does_not_change_is_copied_and_only_what_is_asked(tmp_path: Path) -> None:
    root = v21(tmp_path / "x")
    (root / f"videos/chunk-000/{TOP}/episode_000002.mp4").write_bytes(b"damaged")  # never looked at
    (root / "data/chunk-000/episode_000002.parquet").write_bytes(b"damaged")
    assert cli.main(["import", str(root), "episodes=0:2", f"out={tmp_path / 'a'}"]) == 0
    assert json.loads((tmp_path / "a/run.json").read_text())["result"]["video"] == "copied"
    wanted = list(opened(root, episodes="0:2"))
    found = list(lerobot_read.read_episodes(tmp_path / "a/dataset"))
    for a, b in zip(wanted, found, strict=True):
        assert np.array_equal(first(a), first(b))
        assert np.array_equal(a.actions, b.actions)
    statistics = json.loads((tmp_path / "a/dataset/meta/stats.json").read_text())
    mean = np.concatenate([first(episode) for episode in wanted]).mean((0, 1, 2)) / 255
    np.testing.assert_allclose(np.ravel(statistics[TOP]["mean"]), mean, atol=1e-6)
    dataset = LeRobotDataset("local/a", root=tmp_path / "a/dataset", video_backend="pyav")
    frame = (dataset[20][TOP].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
    assert np.array_equal(frame, first(found[1])[11])
    assert cli.main(["import", str(tmp_path / "a/dataset"), "episodes=[1]", f"out={tmp_path / 'b'}"]) == 0
    (again,) = lerobot_read.read_episodes(tmp_path / "b/dataset")  # out of the middle of a file of two episodes
    assert np.array_equal(first(again), first(found[1]))
    assert cli.main(["import", str(root), "episodes=0:2", "codec=av1", "crf=20", f"out={tmp_path / 'c'}"]) == 0
    info = json.loads((tmp_path / "c/dataset/meta/info.json").read_text())["features"][TOP]["info"]
    assert (info["video.codec"], info["video.crf"]) == ("av1", 20)


def test_version_3_without_its_tasks(dataset: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    wanted = [episode.task for episode in opened(copy)]
    (copy / "meta/tasks.parquet").unlink()
    assert [episode.task for episode in opened(copy)] == wanted
    assert (
        "meta/tasks.parquet: is missing or empty; instructions come from the episode table" in capsys.readouterr().err
    )
    (path,) = copy.glob("meta/episodes/**/*.parquet")
    pd.read_parquet(path).drop(columns="tasks").to_parquet(path)
    with pytest.raises(UserError, match=r"no instruction \(meta/tasks.parquet is missing\); give one with task="):
        list(opened(copy))
    assert {episode.task for episode in opened(copy, task="push")} == {"push"}


def test_instructions_that_change_are_split_on_request(dataset: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (path,) = copy.glob("data/**/*.parquet")
    table = pd.read_parquet(path)
    table.assign(task_index=(table["frame_index"] >= 5).astype(int)).to_parquet(path)
    assert [len(episode) for episode in opened(copy)] == [17] * 4
    assert "the instruction changes inside 4 episodes (0, 1, 2)" in capsys.readouterr().err
    found = list(opened(copy, split_at=("instructions",)))
    assert [len(episode) for episode in found] == [5, 12] * 4
    assert found[0].task != found[1].task
