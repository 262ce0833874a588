"""README's way from a dataset to a policy, word by word, on recordings of three robots.

`fixtures/bridge_clips.hdf5` holds six clips of BridgeData V2 (CC BY 4.0, Walke et al. 2023), whole. The larger sets are
named by environment variables.
"""

import io
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from recipes import cli
from toolkit.data.formats.lerobot_layout import read_info, video_codec
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.images import letterboxed
from toolkit.data.pictures import read_pictures

ROOT = Path(__file__).parents[2]
CLIPS = Path(__file__).parent / "fixtures/bridge_clips.hdf5"
NAMES = ("recordings.hdf5", "new_scenes.hdf5", "held_out.hdf5")  # as README calls them
SMALL = {  # steps and widths, nothing else
    "train-generator": "generator.video.width=32 generator.video.depth=1 generator.video.heads=2 "
    "generator.tokenizer.width=16 generator.tokenizer.depth=1 generator.action.width=32 generator.action.depth=1 "
    "tokenizer_optim.steps=2 optim.steps=2",
    "pretrain": "optim.steps=2",
    "finetune": "optim.steps=2",
}


def commands(page: str, heading: str) -> list[list[str]]:
    """The words of each `vag` command in the first block under a heading."""
    block = (ROOT / page).read_text().split(heading)[1].split("\n\n    ")[1].split("\n\n")[0]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines() if line.strip().startswith("vag ")]


def bridge(path: Path, source: Path, clips: Sequence[int]) -> None:
    """Some clips of a file, as they are."""
    with h5py.File(source) as old, h5py.File(path, "w") as new:
        for number, clip in enumerate(clips):
            old.copy(f"data/demo_{clip}", new.require_group("data"), name=f"demo_{number}")


def aloha(path: Path, source: Path, clips: Sequence[int]) -> None:
    """The same clips as ALOHA's recorders write them: a file an episode, three cameras as rows of JPEG."""
    path.mkdir()
    with h5py.File(source) as old:
        for number, clip in enumerate(clips):
            demo = old[f"data/demo_{clip}"]
            frames = demo["obs/image_0"][()]
            with h5py.File(path / f"episode_{number}.hdf5", "w") as new:
                new["action"], new["observations/qpos"] = demo["actions"][()], demo["obs/state"][()]
                new.attrs["language_instruction"] = demo.attrs["language_instruction"]
                views = {
                    "cam_high": frames,
                    "cam_left_wrist": frames[:, 8:56],
                    "cam_right_wrist": frames[:, ::-1, 8:56],
                }
                for camera, pictures in views.items():
                    rows = [np.frombuffer(jpeg(picture), np.uint8) for picture in pictures]
                    padded = np.zeros((len(rows), max(map(len, rows))), np.uint8)
                    for row, data in zip(padded, rows, strict=True):
                        row[: len(data)] = data
                    new[f"observations/images/{camera}"] = padded


def jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return file.getvalue()


def cut(write: Callable[[Path, Path, Sequence[int]], None], source: Path, parts: Sequence[Sequence[int]]) -> None:
    for name, clips in zip(NAMES, parts, strict=True):
        write(Path(name), source, clips)


def lay_out(robot: str) -> None:
    """Put the three sources that README names into the working directory, or skip."""
    variable = {"bridge_sample": "VAG_BRIDGE_HDF5", "droid": "VAG_DROID", "g1": "VAG_G1"}.get(robot)
    if robot in ("bridge", "aloha"):
        cut({"bridge": bridge, "aloha": aloha}[robot], CLIPS, ((0, 1, 2), (3, 4), (5,)))
        return
    assert variable is not None
    if variable not in os.environ:
        pytest.skip(f"${variable} names no recordings of this robot")
    source = Path(os.environ[variable])
    if robot == "bridge_sample":
        cut(bridge, source, (range(20), range(20, 23), range(23, 25)))
    for name, episodes in zip(NAMES, ((0, 1), (2,), (2,)), strict=True):
        if robot == "droid":
            Path(name).mkdir()
            for episode in episodes:
                os.link(source / f"episode_{episode}.hdf5", Path(name) / f"episode_{episode}.hdf5")
        if robot == "g1":
            Path(name).symlink_to(source)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("robot", "sizes", "codec", "warnings"),
    [
        ("bridge", [(64, 64)], "h264", ["taken as 5 steps a second", "past the end"]),
        ("aloha", [(48, 64), (64, 48), (64, 64)], "h264", ["taken as 50 steps a second", "past the end"]),
        pytest.param(
            *("bridge_sample", [(64, 64)], "h264", ["taken as 5 steps a second", "past the end"]),
            marks=pytest.mark.long,
        ),
        pytest.param(
            *("droid", [(192, 320)] * 3, "h264"),
            ["taken as 50 steps a second", "do not tell the order of their colours"],
            marks=pytest.mark.long,
        ),
        ("g1", [(480, 640)], "av1", ["of an episode"]),
    ],
)
def test_from_your_dataset_to_a_policy(
    robot: str,
    sizes: list[tuple[int, int]],
    codec: str,
    warnings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(robot)
    for words in commands("README.md", "## From your dataset to a policy"):
        assert cli.main([*words, *SMALL.get(words[0], "").split()]) == 0, words
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert all(warning in said for warning in warnings), said
    outcome = json.loads(Path("outputs/evaluate/run.json").read_text())["result"]["open_loop"]
    assert outcome["n"] == read_info(Path("held_out/dataset"))["total_episodes"]
    real, made = (Path(name) / "dataset" for name in ("my", "outputs/synthetic"))
    recorded, ours = read_info(real)["features"], read_info(made)["features"]
    cameras = [key for key, feature in recorded.items() if feature["dtype"] == "video"]
    assert sorted(tuple(recorded[key]["shape"][:2]) for key in cameras) == sizes
    assert ours.keys() == recorded.keys()
    for key in (*cameras, "observation.state", "action"):
        assert (ours[key]["shape"], ours[key]["names"]) == (recorded[key]["shape"], recorded[key]["names"])
    scenes = Path("scenes/dataset")
    for camera in cameras:
        assert video_codec(read_info(made), camera) == codec
        pair = (next(read_pictures(path, read_table(path).episodes[:1], camera))[:1] for path in (scenes, made))
        first, generated = (letterboxed(picture, (38, 64)).astype(int) for picture in pair)
        assert np.abs(first - generated).mean() < 12  # the first picture is given


def test_the_pages_say_the_same_commands() -> None:
    readme, page = (
        commands("README.md", "## From your dataset to a policy"),
        commands("docs/own_data.md", "# Your own data"),
    )
    assert readme == page
