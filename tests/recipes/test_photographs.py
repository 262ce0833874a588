"""Scenes from a folder of photographs: any pictures, states of the table or of the nearest recording, clear errors."""

import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes import cli
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_layout import read_info
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.pictures import read_pictures
from vag_core import Generator
from vag_core.config import GeneratorConfig

TOP, WRIST = "observation.images.top", "observation.images.wrist"
CANVAS = {"cameras": {TOP: [48, 64], WRIST: [64, 48]}, "cell": [32, 32]}
RED, BLUE = (200, 0, 0), (0, 0, 200)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of two cameras and three numbers, that has learned nothing."""
    path = tmp_path_factory.mktemp("photographs") / "generator"
    config = GeneratorConfig(image_size=[32, 64], views=[1, 2], num_frames=9, state_dim=3, action_dim=2)
    generator = Generator(config)
    generator.trajectory.set_statistics(np.zeros(5), np.ones(5), -np.ones(5), np.ones(5))
    generator.save_pretrained(path)
    about = {"fps": 10, "state_names": ["x", "y", "grip"], "action_names": ["dx", "dy"], "robot_type": "arm"}
    (path / "conventions.json").write_text(json.dumps({**about, "canvas": CANVAS}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scenes with states: a photograph that the camera held sideways, one with transparency, two grey ones."""
    path = tmp_path / "photos"
    path.mkdir()
    sideways = np.zeros((90, 60, 3), np.uint8)  # turned by 90 degrees: left becomes top
    sideways[:, :30], sideways[:, 30:] = RED, BLUE
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(sideways).save(path / "a.jpg", exif=exif, quality=95, subsampling=0)
    Image.fromarray(np.full((480, 360, 4), 90, np.uint8)).save(path / "b.png")
    Image.fromarray(np.full((60, 300), 120, np.uint8)).save(path / "c.png")
    Image.fromarray(np.full((300, 225), 60, np.uint8)).save(path / "d.jpeg")
    rows = [["top", "wrist", "instruction", "state"], ["a.jpg", "b.png", "push it", "[0.1, 0.2, 0.3]"]]
    write_csv(path, [*rows, ["c.png", "d.jpeg", "lift, then turn", "[0.4, 0.5, 0.6]"]])
    return path


def write_csv(folder: Path, rows: list[list[str]]) -> None:
    (folder / "scenes.csv").write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in rows))


def synthesize(checkpoint: Path, source: Path, out: Path, *words: str) -> int:
    given = [f"checkpoint={checkpoint}", f"scenes_from={source}", "sampler.num_inference_steps=1"]
    return cli.main(["synthesize", *given, *words, f"out={out}"])


def firsts(dataset: Path, camera: str) -> list[np.ndarray]:
    episodes = read_table(dataset).episodes
    return [next(read_pictures(dataset, [episode], camera))[0] for episode in episodes]


def test_photographs_of_any_kind_become_scenes(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesize(checkpoint, folder, tmp_path / "out") == 0
    dataset = tmp_path / "out/dataset"
    table, info = read_table(dataset), read_info(dataset)
    assert table.tasks == ["push it", "lift, then turn"]
    starts = np.cumsum(table.lengths) - table.lengths
    np.testing.assert_allclose(table.states[starts], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    assert [row["photographs"] for row in table.metadata] == [
        f"{TOP}: a.jpg, {WRIST}: b.png",
        f"{TOP}: c.png, {WRIST}: d.jpeg",
    ]
    assert {row["state_from"] for row in table.metadata} == {"the table"}
    assert (info["fps"], info["robot_type"]) == (10, "arm")
    assert info["features"]["observation.state"]["names"] == ["x", "y", "grip"]
    assert {key: info["features"][key]["shape"][:2] for key in CANVAS["cameras"]} == CANVAS["cameras"]
    top = firsts(dataset, TOP)
    assert abs(top[0][10, 32].astype(int) - RED).max() < 25  # 60x90, as the camera was held
    assert abs(top[0][38, 32].astype(int) - BLUE).max() < 25
    assert top[1][24].mean() > 60  # a strip across the middle, with bars
    assert max(top[1][:14].max(), top[1][34:].max()) < 30
    assert abs(firsts(dataset, WRIST)[0].astype(int) - 90).max() < 12
    assert "2 pictures have another shape than the cameras" in capsys.readouterr().err


def test_a_photograph_without_a_state_has_that_of_the_nearest_recording(
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    moving_square: Callable[..., Episode],
) -> None:
    episodes = [moving_square(seed, size=64) for seed in range(4)]
    with EpisodeWriter(tmp_path / "recorded", 10, ["x", "y", "grip"], ["dx", "dy"], robot_type="arm") as writer:
        for k, episode in enumerate(episodes):
            cameras = {TOP: episode.images[:, 8:56], WRIST: episode.images[:, :, 8:56]}
            states = np.pad(episode.states, ((0, 0), (0, 1)), constant_values=k)
            writer.add(replace(episode, images=None, states=states, cameras=cameras))
    for name, picture in (("e.png", episodes[2].images[0, 8:56]), ("f.png", episodes[2].images[0, :, 8:56])):
        Image.fromarray(picture).save(folder / name)
    lines = [{"front": "e.png", "wrist": "f.png", "task": "push"}, {"front": "a.jpg", "wrist": "b.png", "task": "lift"}]
    lines[1] |= {"state.0": 0, "state.1": 0.5, "state.2": 9, "remark": "bright"}
    (folder / "scenes.csv").unlink()
    (folder / "other.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = [f"rename={{front: {TOP}}}", f"states_from={tmp_path / 'recorded'}"]
    assert synthesize(checkpoint, folder, tmp_path / "out", *words) == 0
    said = capsys.readouterr().err
    assert f"1 of 2 photographs have no state: each gets that of the episode of {tmp_path / 'recorded'}" in said
    assert "from the nearest other one" in said
    assert "not read: 'remark'" in said
    assert "such as 9 in dimension 2 (-1 to 1); are the units those of the data?" in said
    table = read_table(tmp_path / "out/dataset")
    np.testing.assert_array_equal(table.states[0], [*episodes[2].states[0], 2])
    np.testing.assert_array_equal(table.states[table.lengths[0]], [0, 0.5, 9])
    assert table.metadata[0]["state_from"] == f"episode 2 of {tmp_path / 'recorded'}"
    assert table.metadata[0]["state_distance"] < 12  # of 255: what the codec loses
    assert "state_distance" not in table.metadata[1]


def bomb(path: Path) -> None:
    """A PNG of a few bytes that declares 8,000 x 8,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8_000, 8_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


MISTAKES = [
    ("none.png", "[0, 0, 0]", "scenes.csv: row 2, column 'top': {folder}/none.png: not found"),
    ("../secret.png", "[0, 0, 0]", "row 2, column 'top': {folder}: '../secret.png' leads out of the directory"),
    ("link.png", "[0, 0, 0]", "row 2, column 'top': {folder}: 'link.png' leads out of the directory"),
    ("pipe.png", "[0, 0, 0]", "row 2, column 'top': {folder}/pipe.png: is no regular file"),
    ("bomb.png", "[0, 0, 0]", "bomb.png is not readable as a JPEG or PNG of 8 bits: a file of "),
    ("deep.png", "[0, 0, 0]", "deep.png is not readable as a JPEG or PNG of 8 bits: a colour has more than 8 bits"),
    ("lfs.png", "[0, 0, 0]", "is a git-lfs pointer"),
    ("", "[0, 0, 0]", "row 2, column 'top': ''; expected the path of a picture in {folder}"),
    ("a.jpg", "[0, 0]", "row 2, column 'state': '[0, 0]'; expected 3 finite numbers, as a list"),
    ("a.jpg", "[0, 0, NaN]", "row 2, column 'state': '[0, 0, NaN]'; expected 3 finite numbers"),
    ("a.jpg", "left", "row 2, column 'state': 'left'; expected 3 finite numbers"),
    ("a.jpg", "", "1 of 1 rows have no state; give a column 'state' with lists of 3 numbers, or states_from=DATASET"),
]


@pytest.mark.parametrize(("picture", "state", "message"), MISTAKES)
def test_mistakes_in_a_row_name_it(
    picture: str, state: str, message: str, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    os.mkfifo(folder / "pipe.png")
    bomb(folder / "bomb.png")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "deep.png")
    (folder / "lfs.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    write_csv(folder, [["top", "wrist", "instruction", "state"], [picture, "b.png", "push", state]])
    assert synthesize(checkpoint, folder, folder.parent / "out") == 2
    assert message.format(folder=folder) in capsys.readouterr().err
    assert not (folder.parent / "out/dataset").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "front,wrist,instruction\na.jpg,b.png,push",
            f"no column for camera {TOP}; expected 'top'. It has front, wrist",
        ),
        ("front,wrist,instruction\na.jpg,b.png,push", f"rename={{front: {TOP}}} says which one is meant"),
        ("top,wrist\na.jpg,b.png", "no column 'instruction'; it has top, wrist"),
        ("top,wrist,task,x,y\na.jpg,b.png,push,1,2", "of the 3 numbers of a state, no column has grip"),
        ("top,wrist,task\na.jpg,b.png,push, then lift", "row 2 has more cells than there are columns"),
        ("top,top,task\na.jpg,b.png,push", "two columns are called 'top'"),
        ("top,wrist,task\na.jpg,b.png,", "row 2, column 'task': ''; expected an instruction"),
        ("top,wrist,task\n", "no rows; expected one for each scene"),
    ],
)
def test_mistakes_in_a_table_name_what_it_has(
    text: str, message: str, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "scenes.csv").write_text(text)
    assert synthesize(checkpoint, folder, folder.parent / "out") == 2
    assert message in capsys.readouterr().err


def test_mistakes_in_a_folder(checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "out"
    for words, message in (
        (["notes=[nowhere]"], "notes are about recorded episodes"),
        (["cameras=[other]"], f"was trained on {TOP}, {WRIST}"),
        (["episode_lengths=sampled"], "holds no recorded lengths"),
    ):
        assert synthesize(checkpoint, folder, out, *words) == 2
        assert message in capsys.readouterr().err
    (folder / "scenes.jsonl").write_text("{}")
    assert synthesize(checkpoint, folder, out) == 2
    assert "several tables, scenes.csv, scenes.jsonl; name the one to read" in capsys.readouterr().err
    assert synthesize(checkpoint, folder / "scenes.csv", out) == 0
    for name in ("scenes.csv", "scenes.jsonl"):
        (folder / name).unlink()
    assert synthesize(checkpoint, folder, folder.parent / "other") == 2
    assert "neither a LeRobotDataset (meta/info.json) nor a folder of photographs" in capsys.readouterr().err
    assert cli.main(["synthesize", f"checkpoint={checkpoint}", "tasks=[push]", "states_from=x"]) == 2
    assert "states_from is for photographs" in capsys.readouterr().err
