"""Recordings of other projects: every layout comes in whole, and what is damaged or hostile is refused by name."""

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from toolkit.base.errors import UserError
from toolkit.data.episode import IMAGE, STATE, Episode
from toolkit.data.formats import lerobot_read
from toolkit.data.formats.export import export_robomimic
from toolkit.data.formats.importers import ImportOptions, open_source
from toolkit.data.formats.lerobot_layout import check_inside
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.formats.recording import Recording
from toolkit.data.formats.videos import Video
from toolkit.data.images import letterboxed
from toolkit.data.inspection.picture_spans import video_frames
from toolkit.data.pictures import read_pictures
from toolkit.evaluation.video_metrics import psnr

WRIST = "observation.images.eye_in_hand"
Change = Callable[[h5py.File], None]


def vectors(rng: np.random.Generator, length: int, width: int) -> np.ndarray:
    return rng.normal(size=(length, width)).astype(np.float32)


def pictures(rng: np.random.Generator, length: int, height: int = 24, width: int = 32) -> np.ndarray:
    return rng.integers(0, 256, (length, height, width, 3), dtype=np.uint8)


def jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return np.frombuffer(file.getvalue(), np.uint8)


def write_robomimic(path: Path, demos: int = 3, length: int = 5, change: Change = lambda file: None) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 10}})
        for k in range(demos):
            demo = data.create_group(f"demo_{k}")
            demo.attrs.update(num_samples=length, model_file="<mujoco/>", operator=f"person {k % 2}", trial=k)
            demo.attrs["language_instruction"] = f"lift cube {k}"
            demo["actions"] = vectors(rng, length, 7).astype(np.float64)
            demo["obs/agentview_image"] = pictures(rng, length)
            demo["obs/robot0_eye_in_hand_image"] = pictures(rng, length, 20, 20)
            demo["obs/agentview_depth"] = np.zeros((length, 24, 32, 1), np.float32)
            demo["obs/robot0_gripper_qpos"] = vectors(rng, length, 2)
            demo["obs/robot0_eef_pos"] = vectors(rng, length, 3)
            demo["obs/object"] = vectors(rng, length, 9)
        change(file)


def write_libero(path: Path) -> None:
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": list('"open the drawer"')})
        demo = data.create_group("demo_0")
        demo["actions"] = vectors(rng, 4, 7)
        demo["obs/agentview_rgb"], demo["obs/eye_in_hand_rgb"] = pictures(rng, 4), pictures(rng, 4)
        demo["obs/ee_states"], demo["obs/joint_states"] = vectors(rng, 4, 6), vectors(rng, 4, 7)
        demo["obs/gripper_states"] = vectors(rng, 4, 2)


def write_aloha(path: Path, packed: str = "padded") -> None:
    rng = np.random.default_rng(2)
    with h5py.File(path, "w") as file:
        file["action"], file["observations/qpos"] = vectors(rng, 6, 14), vectors(rng, 6, 14)
        file.attrs.update(sim=True, compress=packed != "raw")
        for camera in ("cam_left_wrist", "cam_high"):
            frames = pictures(rng, 6)
            key = f"observations/images/{camera}"
            if packed == "raw":
                file[key] = frames
                continue
            files = [jpeg(frame) for frame in frames]
            if packed == "variable":
                rows = file.create_dataset(key, len(files), h5py.vlen_dtype(np.uint8))
                for row, data in enumerate(files):
                    rows[row] = data
            else:
                longest = max(map(len, files))
                file[key] = np.stack([np.pad(data, (0, longest - len(data))) for data in files])


def write_bridge(path: Path) -> None:
    rng = np.random.default_rng(3)
    with h5py.File(path, "w") as file:
        for k in range(11):
            demo = file.create_group(f"data/demo_{k}")
            demo.attrs.update(language_instruction="flip the pot", episode_id=k)
            demo["actions"], demo["obs/state"] = vectors(rng, 4, 7), vectors(rng, 4, 7)
            demo["obs/image_0"] = pictures(rng, 4)


def first(episode: Episode) -> np.ndarray:
    """The pictures of the only camera, or of the first one."""
    return next(iter(episode.pictures.values()))


def opened(path: Path, layout: str = "auto", **options: Any) -> Recording:
    return open_source(path, layout, ImportOptions(**options), path.parent / "workspace")


def write(source: Recording, directory: Path) -> Path:
    with EpisodeWriter(
        directory, source.fps, source.state_names, source.action_names, source.robot_type, crf=0
    ) as writer:
        for episode in source:
            writer.add(episode)
    return directory


def everything(directory: Path) -> list[Episode]:
    return list(lerobot_read.read_episodes(directory))


def assert_same(found: list[Episode], wanted: list[Episode]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.states, b.states)
        assert (a.task, a.metadata) == (b.task, b.metadata)
        assert list(a.cameras) == list(b.cameras)
        for left, right in ((first(a), first(b)), *zip(a.cameras.values(), b.cameras.values(), strict=True)):
            assert left.shape == right.shape
            assert min(psnr(x[None], y[None]) for x, y in zip(left, right, strict=True)) >= 45


def test_robomimic(tmp_path: Path) -> None:
    write_robomimic(tmp_path / "lift.hdf5", demos=12)
    source = opened(tmp_path / "lift.hdf5")
    assert (source.layout, source.fps, source.num_episodes) == ("robomimic", 10, 12)
    assert "control_freq" in source.fps_from
    wrist = "robot0_eye_in_hand"
    assert source.cameras == {f"observation.images.{name}": f"{name}_image" for name in ("agentview", wrist)}
    names = [*(f"robot0_eef_pos_{i}" for i in range(3)), *(f"robot0_gripper_qpos_{i}" for i in range(2))]
    assert source.state_names == names
    episodes = list(source)
    with h5py.File(tmp_path / "lift.hdf5") as file:
        demo = file["data/demo_2"]  # the third, although demo_10 sorts before it as text
        assert np.array_equal(episodes[2].actions, np.float32(demo["actions"][()]))
        assert np.array_equal(first(episodes[2]), demo["obs/agentview_image"][()])
        assert np.array_equal(episodes[2].states[:, :3], demo["obs/robot0_eef_pos"][()])
    assert episodes[2].task == "lift cube 2"
    assert episodes[2].metadata == {
        "source": "teleoperation",
        "source_episode": "demo_2",
        "source_file": "lift.hdf5",
        "operator": "person 0",
        "trial": 2,
    }


def test_libero(tmp_path: Path) -> None:
    write_libero(tmp_path / "x.hdf5")
    source = opened(tmp_path / "x.hdf5")
    assert (source.layout, source.fps, source.fps_from) == ("libero", 20, "default of the libero layout")
    assert source.cameras == {"observation.images.agentview": "agentview_rgb", WRIST: "eye_in_hand_rgb"}
    assert len(source.state_names) == 15
    (episode,) = source
    assert episode.task == "open the drawer"
    (flipped,) = opened(tmp_path / "x.hdf5", flip_vertical=True, image_size=12)
    (wide,) = opened(tmp_path / "x.hdf5", image_size=[12, 30])
    assert np.array_equal(first(wide), letterboxed(first(episode), (12, 30)))
    assert np.array_equal(first(flipped), letterboxed(first(episode)[:, ::-1], (12, 12)))


@pytest.mark.parametrize("packed", ["raw", "padded", "variable"])
def test_aloha(tmp_path: Path, packed: str) -> None:
    folder = tmp_path / "episodes"
    folder.mkdir()
    for k in (0, 2, 10):
        write_aloha(folder / f"episode_{k}.hdf5", packed)
    source = opened(folder, task="fold the shirt")
    assert (source.layout, source.fps, source.num_episodes) == ("aloha", 50, 3)
    assert source.cameras == {f"observation.images.{name}": name for name in ("cam_high", "cam_left_wrist")}
    episodes = list(source)
    assert [e.metadata["source_file"] for e in episodes] == [f"episode_{k}.hdf5" for k in (0, 2, 10)]
    assert episodes[0].metadata["sim"] is True
    assert episodes[0].task == "fold the shirt"
    assert first(episodes[0]).shape == (6, 24, 32, 3)
    if packed != "raw":
        with h5py.File(folder / "episode_0.hdf5") as file:
            data = file["observations/images/cam_high"][3].tobytes()
        assert np.array_equal(first(episodes[0])[3], np.asarray(Image.open(io.BytesIO(data))))


def test_bridge_and_options(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    write_bridge(path)
    source = opened(path, episodes="2:-1", image_keys={IMAGE: "image_0"}, fps=7, state_names=tuple("abcdefg"))
    assert (source.layout, source.fps, source.fps_from, source.num_episodes) == ("bridge", 7, "fps=", 8)
    assert source.state_names == list("abcdefg")
    assert [e.metadata["episode_id"] for e in source] == list(range(2, 10))
    wide = opened(path, state_keys=("state", "actions"), robot_type="widowx")
    assert (len(wide.state_names), wide.robot_type) == (14, "widowx")
    assert opened(path).identity() == wide.identity()


def refuse(path: Path, expected: str, **options: Any) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        list(opened(path, **options))
    assert "\n" not in str(caught.value)


def external(file: h5py.File) -> None:
    file["data/demo_1/actions_elsewhere"] = h5py.ExternalLink("/etc/passwd", "/x")
    del file["data/demo_1/actions"]
    file["data/demo_1/actions"] = h5py.ExternalLink("../other.hdf5", "/actions")


def soft(file: h5py.File) -> None:
    file["elsewhere"] = h5py.ExternalLink("../other.hdf5", "/")
    del file["data/demo_1/actions"]
    file["data/demo_1/actions"] = h5py.SoftLink("/elsewhere/actions")


def circle(file: h5py.File) -> None:
    del file["data/demo_1/actions"]
    file["data/demo_1/actions"] = h5py.SoftLink("/data/demo_1/actions")


def external_storage(file: h5py.File) -> None:
    del file["data/demo_1/actions"]
    file["data/demo_1"].create_dataset("actions", (5, 7), np.float32, external=[("/etc/hostname", 0, 140)])


def virtual(file: h5py.File) -> None:
    del file["data/demo_1/actions"]
    layout = h5py.VirtualLayout((5, 7), np.float32)
    layout[:] = h5py.VirtualSource("/etc/other.hdf5", "x", (5, 7))
    file["data/demo_1"].create_virtual_dataset("actions", layout)


def declared(shape: tuple[int, ...], compression: str | None) -> Change:
    def change(file: h5py.File) -> None:
        del file["data/demo_1/obs/agentview_image"]
        chunks = (1, *shape[1:])
        file["data/demo_1/obs"].create_dataset(
            "agentview_image", shape, np.uint8, chunks=chunks, compression=compression
        )

    return change


def bomb(file: h5py.File) -> None:
    del file["data/demo_1/obs/agentview_image"]
    frames = file["data/demo_1/obs"].create_dataset(
        "agentview_image", (5, 20_000, 20_000, 3), np.uint8, chunks=(1, 500, 500, 3), compression="gzip"
    )
    for k in range(5):  # the rest of each picture is not stored
        frames[k, :500, :5000] = np.random.default_rng(k).integers(0, 9, (500, 5000, 3), dtype=np.uint8)


def put(key: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        place = f"data/demo_1/{key}"
        if place in file:
            del file[place]
        if value is not None:
            file[place] = value

    return change


def attribute(place: str, name: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        file[place].attrs[name] = value

    return change


def no_instruction(file: h5py.File) -> None:
    del file["data/demo_1"].attrs["language_instruction"]


REFUSALS: dict[str, tuple[Change, str]] = {
    "external link": (external, "demo_1/actions' leads to another file"),
    "soft link out": (soft, "leads to another file"),
    "circle of links": (circle, "chain of more than"),
    "external storage": (external_storage, "actions' keeps its data in another file"),
    "virtual dataset": (virtual, "actions' is a virtual dataset"),
    "declared, not there": (declared((5, 30_000, 30_000, 3), None), "declares 13500000000 bytes"),
    "declared, packed": (declared((5, 3000, 3000, 3), "gzip"), "declares 135000000 bytes"),
    "bomb": (bomb, "takes 5.6 GiB in memory, an episode may take 4"),
    "NaN": (put("actions", np.full((5, 7), np.nan)), r"actions' holds NaN or infinity \(step 0\)"),
    "infinity after rounding": (put("actions", np.full((5, 7), 1e300)), "actions' holds NaN or infinity"),
    "text": (put("actions", b"left"), r"actions' is \(\) .* expected numbers"),
    "compound": (put("actions", np.zeros(5, [("x", "f4")])), "expected numbers"),
    "three dimensions": (put("actions", np.zeros((5, 7, 2))), "expected numbers"),
    "no steps": (put("actions", np.zeros((0, 7))), "actions' is empty"),
    "lengths": (put("actions", np.zeros((4, 7))), "lengths differ: 'data/demo_1/actions' has 4, .* has 5"),
    "width": (put("actions", np.zeros((5, 6))), "demo_1: action width 6; expected 7"),
    "no actions": (put("actions", None), "no dataset 'actions' in 'data/demo_1'. It holds: obs"),
    "no camera": (put("obs/agentview_image", None), "no dataset 'obs/agentview_image'"),
    "depth": (put("obs/agentview_image", np.zeros((5, 24, 32, 1))), "expected pictures .* uint8"),
    "16 bits": (put("obs/agentview_image", np.zeros((5, 24, 32, 3), np.uint16)), "expected pictures .* uint8"),
    "floats": (put("obs/agentview_image", np.full((5, 24, 32, 3), -1.0)), "numbers from -1 to 0; expected 0..1 or 0"),
    "two channels": (put("obs/agentview_image", np.zeros((5, 24, 32, 2), np.uint8)), "expected pictures .* uint8"),
    "tiny pictures": (put("obs/agentview_image", np.zeros((5, 4, 32, 3), np.uint8)), "are 4x32; expected sides of 8"),
    "bytes that are no JPEG": (put("obs/agentview_image", np.zeros((5, 99), np.uint8)), "row 0: not readable as JPEG"),
    "no instruction": (no_instruction, r"'demo_1' has no instruction; give one with task="),
    "env_args": (attribute("data", "env_args", "{"), "'env_args' of 'data' is no JSON"),
    "fps": (attribute("data", "control_freq", 12.5), "expected a whole number from 1 to 1000"),
    "type of an attribute": (attribute("data/demo_1", "trial", "two"), "'trial' is 'two'; earlier episodes have float"),
    "large number": (attribute("data/demo_1", "trial", np.uint64(2**64 - 1)), "expected a number of 64 bits"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_hostile_and_damaged_episodes_are_named(tmp_path: Path, case: str) -> None:
    change, expected = REFUSALS[case]
    write_robomimic(tmp_path / "x.hdf5", change=change)
    refuse(tmp_path / "x.hdf5", expected)


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    write_robomimic(path)
    for expected, options in {
        "none is left": {"episodes": "7:9"},
        "expected first:last": {"episodes": "three"},
        "no camera 'agentvew'. Did you mean 'agentview'": {"image_keys": {IMAGE: "agentvew"}},
        "'camera' is no feature": {"image_keys": {IMAGE: "agentview", "camera": "agentview"}},
        "no dataset 'qpos'": {"state_keys": ("qpos",)},
        "no dataset 'torque'": {"action_key": "torque"},
        "state_names: 2 names; expected 5": {"state_names": ("a", "b")},
        "fps is 0": {"fps": 0},
    }.items():
        refuse(path, expected, **options)
    refuse(path, "layout=robomimc is unknown. Did you mean 'robomimic'", layout="robomimc")
    refuse(path, "no 'action', which the layout aloha has", layout="aloha")
    refuse(tmp_path / "no/where.hdf5", "not found")
    refuse(tmp_path / "none.hdf5", "not found")


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    write_robomimic(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuse(path, "x.hdf5: '/' is not readable as HDF5")
    path.write_bytes(b"not HDF5 at all")
    refuse(path, "x.hdf5: '/' is not readable as HDF5")
    with h5py.File(path, "w") as file:
        file["letters"] = 3
    refuse(path, "no known layout; .* found: letters")
    folder = tmp_path / "folder"
    folder.mkdir()
    refuse(folder, "no .hdf5 or .h5 file")
    (folder / "episode_0.hdf5").symlink_to(path)
    refuse(folder, "'episode_0.hdf5' leads out of the directory")


def test_cameras_that_would_have_the_same_name(tmp_path: Path, moving_square: Callable[..., Episode]) -> None:
    path = tmp_path / "x.hdf5"

    def cameras(*names: str) -> Change:
        def change(file: h5py.File) -> None:
            for k in range(3):
                for shade, name in enumerate(names):
                    file[f"data/demo_{k}/obs/{name}"] = np.full((5, 24, 32, 3), shade, np.uint8)

        return change

    write_robomimic(path, change=cameras("left_image", "left_rgb"))
    both = "cameras 'left_image' and 'left_rgb' would both be 'observation.images.left'; name them"
    refuse(path, both, layout="robomimic")
    refuse(path, "no camera 'left'", image_keys={IMAGE: "left"})
    keys = {IMAGE: "left_rgb", "observation.images.a": "left_image"}
    source = opened(path, image_keys=keys, layout="robomimic")
    assert source.cameras == keys
    episode = next(iter(source))
    assert (episode.images.max(), episode.cameras["observation.images.a"].max()) == (1, 0)
    other = moving_square(0)
    clash = {"observation.images.front.left": first(other), "observation.images.front_left": first(other)}
    with EpisodeWriter(tmp_path / "dataset", 20, ["y", "x"], ["a", "b"]) as writer:
        writer.add(replace(other, cameras=clash))
    assert list(opened(tmp_path / "dataset").cameras) == [IMAGE, *clash]  # keys of a LeRobotDataset stay
    with EpisodeWriter(tmp_path / "other", 20, ["y", "x"], ["a", "b"]) as writer:
        writer.add(replace(other, cameras={"observation.images.image": first(other)}))
    with pytest.raises(UserError, match="would have the same name in the file"):
        export_robomimic(tmp_path / "other", tmp_path / "out.hdf5", None, compress=False)
    assert not (tmp_path / "out.hdf5").exists()


def told(fps: int = 10, names: list[str] | None = None, scenes: dict[str, list[int]] | None = None) -> Change:
    """A change of what a file says of its episodes."""
    stored = {"features": {"action": {"names": names}}, "seen_scenes": scenes}
    return attribute("data", "env_args", json.dumps({"env_kwargs": {"control_freq": fps}, **stored}))


def folder_of(directory: Path, *changes: Change) -> Path:
    directory.mkdir()
    for k, change in enumerate(changes):
        write_robomimic(directory / f"part_{k}.hdf5", demos=2, length=3, change=change)
    return directory


def test_files_of_a_folder_must_agree(tmp_path: Path) -> None:
    rates = folder_of(tmp_path / "rates", told(), told(), told(fps=5))
    refuse(rates, r"part_2.hdf5: fps is 5, in part_0.hdf5 10; import the files one by one, or give fps=")
    assert opened(rates, fps=7).fps == 7
    assert opened(rates, episodes="0:4").num_episodes == 4  # of those that agree
    given = tuple("abcdefg")
    names = folder_of(tmp_path / "names", told(names=list(given)), told(names=list(reversed(given))))
    refuse(names, r"part_1.hdf5: action_names is \['g', .*, in part_0.hdf5 \['a', .* or give action_names=")
    assert opened(names, action_names=given).action_names == list(given)
    some = folder_of(tmp_path / "some", told(names=list(given)), told())
    refuse(some, r"part_1.hdf5: action_names is not told, in part_0.hdf5 \['a'")


def test_files_of_a_folder_that_would_be_passed_over(tmp_path: Path) -> None:
    def empty(file: h5py.File) -> None:
        del file["data/demo_0"], file["data/demo_1"]

    folder = folder_of(tmp_path / "folder", told(), empty)
    for layout, expected in (("auto", "part_1.hdf5: no known layout"), ("robomimic", "part_1.hdf5: no episode")):
        refuse(folder, expected, layout=layout)
    for write_other, other in ((write_aloha, "aloha"), (write_libero, "libero")):
        write_other(folder / "part_1.hdf5")
        refuse(folder, rf"part_1.hdf5: has the layout {other}, part_0.hdf5 the layout robomimic; import them one by")


def test_scenes_of_all_files_are_kept(tmp_path: Path) -> None:
    first, second = told(scenes={"push": [2, 1]}), told(scenes={"push": [3], "pull": [1]})
    assert opened(folder_of(tmp_path / "all", first, second)).seen_scenes == {"pull": [1], "push": [1, 2, 3]}
    assert opened(folder_of(tmp_path / "some", first, told())).seen_scenes is None


def test_quotes_of_an_instruction_are_kept(tmp_path: Path) -> None:
    """But for those that LIBERO puts around all of it."""
    path = tmp_path / "x.hdf5"
    for text in ('say "hi"', '"hi" and "bye"', '"open the door"'):
        write_robomimic(path, change=attribute("data/demo_1", "language_instruction", text))
        assert list(opened(path))[1].task == text
    for text, task in (
        ('"open the drawer"', "open the drawer"),
        (' " open the drawer " ', "open the drawer"),
        ('say "hi"', 'say "hi"'),
        ('"hi" and "bye"', '"hi" and "bye"'),
        ('"', '"'),
    ):
        write_libero(path)
        with h5py.File(path, "r+") as file:
            file["data"].attrs["problem_info"] = json.dumps({"language_instruction": text})
        assert next(iter(opened(path))).task == task
    with h5py.File(path, "r+") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": '""'})
    refuse(path, "has no instruction")


def test_several_cameras_through_a_dataset_and_back(tmp_path: Path) -> None:
    """Noise is the hardest content for a video codec; the claim of 45 dB holds for it too."""
    write_robomimic(tmp_path / "x.hdf5")
    source = opened(tmp_path / "x.hdf5")
    wanted = list(source)
    made = write(source, tmp_path / "first")
    assert_same(everything(made), wanted)
    statistics = json.loads((made / "meta/stats.json").read_text())
    states = np.concatenate([episode.states for episode in wanted])
    np.testing.assert_allclose(statistics[STATE]["q99"], np.quantile(states, 0.99, axis=0), rtol=1e-5)
    camera = next(iter(wanted[0].cameras))
    mean = np.concatenate([episode.cameras[camera] for episode in wanted]).mean((0, 1, 2)) / 255
    np.testing.assert_allclose(np.ravel(statistics[camera]["mean"]), mean, atol=1e-6)
    for quality in (None, 100):
        result = export_robomimic(made, tmp_path / "out/x.hdf5", quality, compress=True)
        assert (result["episodes"], result["frames"], result["fps"]) == (3, 15, 10)
        again = opened(tmp_path / "out/x.hdf5")
        assert (again.layout, again.fps) == ("robomimic", 10)
        assert (again.state_names, again.action_names) == (source.state_names, source.action_names)
        if quality is None:
            assert_same(everything(write(again, tmp_path / "second")), everything(made))
        else:
            assert min(psnr(first(a), first(b)) for a, b in zip(again, wanted, strict=True)) > 35


def test_export_is_what_robomimic_reads(dataset: Path, tmp_path: Path) -> None:
    export_robomimic(dataset, tmp_path / "x.hdf5", None, compress=False)
    with h5py.File(tmp_path / "x.hdf5") as file:
        data = file["data"]
        assert data.attrs["total"] == 68
        assert json.loads(data.attrs["env_args"])["env_kwargs"] == {"control_freq": 20}
        demo = data["demo_1"]
        assert demo.attrs["num_samples"] == 17
        assert demo.attrs["task_name"] == "pull"
        assert {key: demo[key].shape for key in ("actions", "dones", "rewards", "obs/state", "obs/image")} == {
            "actions": (17, 2),
            "dones": (17,),
            "rewards": (17,),
            "obs/state": (17, 2),
            "obs/image": (17, 32, 32, 3),
        }
        assert demo["dones"][()].tolist() == [0] * 16 + [1]
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset, damaged)
    next(damaged.glob("videos/**/*.mp4")).write_bytes(b"")
    with pytest.raises(UserError, match="not readable as video"):
        export_robomimic(damaged, tmp_path / "out/x.hdf5", None, compress=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_lerobot_v3(dataset: Path, tmp_path: Path) -> None:
    source = open_source(dataset, "auto", ImportOptions(episodes="1:3", image_size=16), tmp_path)
    assert (source.layout, source.fps, source.state_names, source.num_episodes) == ("lerobot", 20, ["y", "x"], 2)
    wanted = list(lerobot_read.read_episodes(dataset))[1:3]
    for found, episode in zip(source, wanted, strict=True):
        assert np.array_equal(found.actions, episode.actions)
        assert np.array_equal(first(found), letterboxed(first(episode), (16, 16)))
        assert found.metadata["seed"] == episode.metadata["seed"]
    with pytest.raises(UserError, match="recorded at 20; leave fps= out"):
        open_source(dataset, "auto", ImportOptions(fps=10), tmp_path)
    swapped = ImportOptions(state_keys=("action", STATE), action_key=STATE)
    (episode, *_) = open_source(dataset, "auto", swapped, tmp_path)
    assert np.array_equal(episode.states, np.concatenate([wanted[0].actions, wanted[0].states], 1)) is False
    assert episode.states.shape[1] == 4
    with pytest.raises(UserError, match=r"nobody/nothing: no such path here, and the Hugging Face hub"):
        open_source("nobody/nothing", "auto", ImportOptions(), tmp_path)


def test_lerobot_v21_is_read_where_it_lies(tmp_path: Path, moving_square: Callable[..., Episode]) -> None:
    old = tmp_path / "old"
    episodes = [moving_square(seed) for seed in range(2)]
    feature = {"dtype": "float32", "shape": [2], "names": ["y", "x"]}
    scalar = {"dtype": "int64", "shape": [1], "names": None}
    features = {
        IMAGE: {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channels"]},
        **{STATE: feature, "action": feature, "timestamp": {**scalar, "dtype": "float32"}},
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), scalar),
    }
    info = {"codebase_version": "v2.1", "robot_type": "square", "fps": 20, "features": features}
    info |= {"total_episodes": 2, "total_frames": 34, "total_tasks": 2, "total_videos": 2, "total_chunks": 1}
    info |= {"chunks_size": 1000, "splits": {"train": "0:2"}, "data_path": "data", "video_path": "videos"}
    lines: dict[str, list[Any]] = {"tasks": [], "episodes": [], "episodes_stats": []}
    new = tmp_path / "new"
    with EpisodeWriter(new, 20, ["y", "x"], ["y", "x"]) as writer:
        writer.add(episodes[0])
    video = next(new.glob("videos/**/*.mp4"))
    for k, episode in enumerate(episodes):
        rows = pd.DataFrame({STATE: list(episode.states), "action": list(episode.actions)})
        rows = rows.assign(timestamp=np.arange(17, dtype=np.float32) / 20, frame_index=range(17), episode_index=k)
        path = old / f"data/chunk-000/episode_{k:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.assign(index=range(17 * k, 17 * k + 17), task_index=k).to_parquet(path)
        path = old / f"videos/chunk-000/{IMAGE}/episode_{k:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, path)
        lines["tasks"].append({"task_index": k, "task": episode.task})
        lines["episodes"].append({"episode_index": k, "tasks": [episode.task], "length": 17})
        values = {"min": [0.0, 0.0], "max": [1.0, 1.0], "mean": [0.0, 0.0], "std": [1.0, 1.0], "count": [17]}
        lines["episodes_stats"].append({"episode_index": k, "stats": {STATE: values, "action": values}})
    (old / "meta").mkdir()
    (old / "meta/info.json").write_text(json.dumps(info))
    for name, rows_of in lines.items():
        (old / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    before = sorted(path for path in old.rglob("*"))
    source = open_source(old, "auto", ImportOptions(), tmp_path / "workspace")
    assert (source.layout, source.fps, source.num_episodes) == ("lerobot v2.1", 20, 2)
    for found, episode in zip(source, episodes, strict=True):
        assert np.array_equal(found.actions, episode.actions)
        assert found.task == episode.task
    assert sorted(path for path in old.rglob("*")) == before
    (old / "gone").symlink_to("nowhere")
    with pytest.raises(UserError, match="'gone' is no file, or a link that leads nowhere"):
        open_source(old, "auto", ImportOptions(), tmp_path / "workspace")
    (old / "gone").unlink()
    playlist = next(old.glob("videos/**/*.mp4"))
    whole = playlist.read_bytes()
    playlist.write_text(f"ffconcat version 1.0\nfile '{video}'\n")
    with pytest.raises(UserError, match=r"episode_00000\d.mp4: not readable as video"):
        list(open_source(old, "auto", ImportOptions(), tmp_path / "workspace"))
    playlist.write_bytes(whole)
    (old / "meta/episodes.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"meta/episodes.jsonl: line 1: not valid JSON"):
        open_source(old, "auto", ImportOptions(), tmp_path / "workspace")


@pytest.fixture
def broken(dataset: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "broken"
    shutil.copytree(dataset, copy)
    return copy


def read_all(directory: Path) -> None:
    for _ in lerobot_read.read_episodes(directory):
        pass


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("fps", None, "'fps' is None; expected a positive number"),
        ("fps", "fast", "'fps' is 'fast'"),
        ("features", [], "'features' is missing or damaged"),
        ("features", {IMAGE: 3}, "'features' is missing or damaged"),
        ("total_episodes", "four", "'total_episodes' is 'four'; expected a count"),
        ("total_frames", -1, "'total_frames' is -1"),
        ("video_path", None, "'video_path' is None; expected LeRobot's template"),
        ("video_path", "{video_key.__class__}", "expected LeRobot's template"),
        ("video_path", "{chunk_index:99999999999d}", "expected LeRobot's template"),
        ("video_path", "../../secret.mp4", "leads out of the directory"),
        ("video_path", "/etc/hostname", "leads out of the directory"),
        ("video_path", "videos/../videos/x.mp4", "expected a path below the dataset"),
        ("video_path", "videos/nothing.mp4", "nothing.mp4: is missing"),
    ],
)
def test_damaged_info_is_named(broken: Path, key: str, value: Any, expected: str) -> None:
    path = broken / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=expected):
        read_all(broken)


@pytest.mark.parametrize(
    ("pattern", "column", "value", "expected"),
    [
        ("data/**/*.parquet", "action", None, "no column 'action'"),
        ("data/**/*.parquet", "action", "left", "its tables are damaged"),
        ("data/**/*.parquet", "episode_index", 7, "'episode_index' of the rows disagrees"),
        ("data/**/*.parquet", "task_index", 99, "'task_index' that meta/tasks lacks"),
        ("data/**/*.parquet", "task_index", "x", "its tables are damaged"),
        ("meta/episodes/**/*.parquet", "length", None, "no column 'length'"),
        ("meta/episodes/**/*.parquet", "length", -5, "lengths that cannot be"),
        ("meta/episodes/**/*.parquet", "episode_index", 3, "does not count 0, 1, 2"),
        ("meta/episodes/**/*.parquet", f"videos/{IMAGE}/chunk_index", None, "is missing or damaged"),
        ("meta/episodes/**/*.parquet", f"videos/{IMAGE}/to_timestamp", np.nan, "is missing or damaged"),
        ("meta/tasks.parquet", "task_index", "x", "its tables are damaged"),
    ],
)
def test_damaged_tables_are_named(broken: Path, pattern: str, column: str, value: Any, expected: str) -> None:
    (path,) = broken.glob(pattern)
    table = pd.read_parquet(path)
    table = table.drop(columns=column) if value is None else table.assign(**{column: value})
    table.to_parquet(path)
    with pytest.raises(UserError, match=expected):
        read_all(broken)


def test_lost_and_doubled_frames_are_named(broken: Path, retime_video: Callable[..., None]) -> None:
    """Of one episode, too: as many frames as rows follow, each beside the action of another step."""
    (path,) = broken.glob("videos/**/*.mp4")
    whole, table = path.read_bytes(), lerobot_read.read_table(broken)
    for times, expected in (
        ({}, None),
        ({20: []}, r"file-000.mp4: frame 3 of episode 1 stands at 1.0500 s instead of 1.0000 s"),
        ({17: []}, r"frame 0 of episode 1 stands at 0.9000 s instead of 0.8500 s"),
        ({20: [20, 20.4]}, r"frame 4 of episode 1 stands at 1.0200 s instead of 1.0500 s; .* missing or doubled"),
    ):
        path.write_bytes(whole)
        retime_video(path, times)
        for episodes in (table.episodes, table.episodes[1:2]):
            if expected is None:
                assert sum(map(len, read_pictures(broken, episodes, IMAGE))) == 17 * len(episodes)
                continue
            with pytest.raises(UserError, match=expected):
                list(read_pictures(broken, episodes, IMAGE))


def test_video_of_an_unknown_codec_is_named(broken: Path) -> None:
    """PyAV has no decoder then, and crashes when it is asked for frames all the same."""
    (path,) = broken.glob("videos/**/*.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xyz1"))
    with pytest.raises(UserError, match="file-000.mp4: not readable as video"):
        read_all(broken)


def test_a_playlist_that_is_named_like_a_video_is_not_followed(broken: Path, tmp_path: Path) -> None:
    (path,) = broken.glob("videos/**/*.mp4")
    outside = tmp_path / "outside.mp4"
    path.rename(outside)
    beside = path.with_name("beside.mp4")
    for text in (
        f"ffconcat version 1.0\nfile '{outside}'\n",
        "ffconcat version 1.0\nfile beside.mp4\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:3.4,\n{outside}\n#EXT-X-ENDLIST\n",
    ):
        path.write_text(text)
        beside.unlink(missing_ok=True)
        os.mkfifo(beside)  # to open it would take for ever
        with pytest.raises(UserError, match="file-000.mp4: not readable as video"):
            read_all(broken)
        with pytest.raises(UserError, match="file-000.mp4: not readable as video"):
            list(video_frames(path, 20))
        with pytest.raises(UserError, match="file-000.mp4: not readable as video"):
            Video(path)


def test_ragged_vectors_and_links_out_of_a_dataset_are_refused(broken: Path, tmp_path: Path) -> None:
    (path,) = broken.glob("data/**/*.parquet")
    table = pd.read_parquet(path)
    ragged = [np.zeros(2 + k % 2, np.float32) for k in range(len(table))]
    table.assign(action=ragged).to_parquet(path)
    with pytest.raises(UserError, match="its tables are damaged"):
        read_all(broken)
    table.assign(action=list(np.zeros((len(table), 3), np.float32))).to_parquet(path)
    with pytest.raises(UserError, match="'action' has 3 values a row; meta/info.json says 2"):
        read_all(broken)
    outside = tmp_path / "outside.parquet"
    table.to_parquet(outside)
    path.unlink()
    path.symlink_to(outside)
    for function in (read_all, lerobot_read.dataset_id):
        with pytest.raises(UserError, match="leads out of the directory"):
            function(broken)
    os.replace(outside, broken / "data/inside.bin")
    path.unlink()
    path.symlink_to("../inside.bin")  # a link that stays inside is fine
    read_all(broken)
    assert check_inside(broken, "meta/info.json") == broken / "meta/info.json"


def test_writer_refuses_cameras_that_do_not_fit(tmp_path: Path, moving_square: Callable[..., Episode]) -> None:
    episode = moving_square(0)
    short = replace(episode, cameras={WRIST: first(episode)[:5]})
    with (
        pytest.raises(UserError, match="lengths differ"),
        EpisodeWriter(tmp_path / "x", 20, ["y", "x"], ["a", "b"]) as writer,
    ):
        writer.add(short)
    with EpisodeWriter(tmp_path / "x", 20, ["y", "x"], ["a", "b"]) as writer:
        writer.add(replace(episode, cameras={WRIST: first(episode)}))
        with pytest.raises(UserError, match="episode 1: shapes"):
            writer.add(episode)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif("VAG_BRIDGE_HDF5" not in os.environ, reason="$VAG_BRIDGE_HDF5 names no sample of Bridge V2")
def test_the_bridge_sample_comes_in_whole(tmp_path: Path) -> None:
    path = Path(os.environ["VAG_BRIDGE_HDF5"])
    source = open_source(path, "auto", ImportOptions(), tmp_path)
    assert (source.layout, source.fps) == ("bridge", 5)
    assert_same(everything(write(source, tmp_path / "dataset")), list(source))
    with h5py.File(path) as file:
        assert source.num_episodes == len(file["data"])
        last = list(source)[-1]
        demo = file[f"data/demo_{source.num_episodes - 1}"]
        assert np.array_equal(last.actions, demo["actions"][()])
        assert last.task == demo.attrs["language_instruction"]


def test_a_rate_that_is_guessed_or_rounded_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_aloha(tmp_path / "aloha.hdf5")
    assert opened(tmp_path / "aloha.hdf5").fps == 50
    said = capsys.readouterr().err
    assert "no file says its rate; taken as 50 steps a second, the default of the aloha layout. Give fps=" in said
    opened(tmp_path / "aloha.hdf5", fps=4, colour_order="rgb")
    assert capsys.readouterr().err == ""
    write_robomimic(tmp_path / "near.hdf5", change=attribute("data", "control_freq", 29.97))
    assert opened(tmp_path / "near.hdf5").fps == 30
    assert "is 29.97; taken as 30" in capsys.readouterr().err


@pytest.mark.parametrize("codec", ["av1", "hevc"])
def test_a_lossy_codec_costs_no_more_than_encoding_once(codec: str, tmp_path: Path) -> None:
    """Against PyAV at LeRobot's settings, on smooth pictures with the noise of a sensor."""
    rng = np.random.default_rng(5)
    smooth = gaussian_filter(rng.normal(size=(14, 96, 128, 3)), (2, 6, 6, 0)) * 1500 + 128
    frames = (smooth + rng.normal(scale=2, size=smooth.shape)).clip(0, 255).astype(np.uint8)
    name = {"av1": "libsvtav1", "hevc": "libx265"}[codec]
    with av.open(str(tmp_path / "once.mp4"), "w") as container:
        stream: Any = container.add_stream(name, 10, options={"crf": "30", "g": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "once.mp4")) as container:
        once = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with EpisodeWriter(tmp_path / "x", 10, ["y"], ["dy"], codec=codec, crf=None) as writer:
        writer.add(Episode(frames, np.zeros((14, 1)), np.zeros((14, 1)), "push"))
    ours = next(read_pictures(tmp_path / "x", lerobot_read.read_table(tmp_path / "x").episodes, IMAGE))
    assert psnr(ours, frames) > psnr(once, frames) - 0.5
