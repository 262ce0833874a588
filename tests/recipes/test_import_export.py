"""`vag import` and `vag export` from the command line: there, back again, and one line for every mistake."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from recipes import cli, export
from toolkit.base.manifest import MANIFEST
from toolkit.data.formats.lerobot_read import read_episodes


def write_source(path: Path, pictures: bool = True) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for k in range(2):
            demo = file.create_group(f"data/demo_{k}")
            demo["actions"] = rng.normal(size=(4, 3)).astype(np.float32)
            demo["obs/eef"] = rng.normal(size=(4, 2)).astype(np.float32)
            demo["obs/front_image"] = rng.integers(0, 256, (4, 17, 23, 3), dtype=np.uint8)
            if not pictures and k == 1:
                del demo["obs/front_image"]


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vag: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "robot.hdf5"
    write_source(source)
    words = [
        str(source),
        "task=wave and stop",
        "image_keys={observation.image:front}",
        "image_size=16",
        "fps=12",
        "episodes=0:2",
    ]
    assert cli.main(["import", *words, f"out={tmp_path / 'a'}"]) == 0
    record = json.loads((tmp_path / "a/run.json").read_text())
    result = record["result"]
    assert (result["layout"], result["episodes"], result["frames"], result["fps"]) == ("robomimic", 2, 8, 12)
    assert result["cameras"] == {"observation.image": "front_image"}
    assert record["data"][0]["episodes"] == 2
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [MANIFEST, "dataset", "run.json"]
    assert cli.main(["export", str(tmp_path / "a/dataset"), f"out={tmp_path / 'b'}"]) == 0
    assert cli.main(["import", str(tmp_path / "b/dataset.hdf5"), f"out={tmp_path / 'c'}"]) == 0
    first, second = (list(read_episodes(tmp_path / name / "dataset")) for name in "ac")
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.actions, b.actions)
        assert (a.task, a.metadata, a.images.shape) == (b.task, b.metadata, (4, 16, 16, 3))
        assert a.task == "wave and stop"
    assert "2 episodes, 8 frames" in capsys.readouterr().out


def test_mistakes_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "robot.hdf5"
    write_source(source, pictures=False)
    out = tmp_path / "run"
    assert "no instruction; give one with task=" in complaint(capsys, "import", str(source), f"out={out}")
    again = (f"out={out}", "resume=true")
    for words, expected in (
        (
            (str(source), "task=wave"),
            "no dataset 'obs/front_image'",
        ),  # of the second, after the first is written
        ((str(tmp_path / "none.hdf5"),), "not found"),
        ((str(source), "layout=robomimik"), "Did you mean 'robomimic'"),
        (("nobody/nothing",), "the Hugging Face hub does not give it"),
    ):
        assert expected in complaint(capsys, "import", *words, f"out={out}", "overwrite=true")
        assert not out.exists()
    write_source(source)
    assert cli.main(["import", str(source), "task=wave", f"out={out}"]) == 0
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "status": "failed"}))
    capsys.readouterr()
    assert "was begun with" in complaint(capsys, "import", "other.hdf5", *again)
    assert "not a LeRobotDataset" in complaint(capsys, "export", str(tmp_path), f"out={tmp_path / 'export'}")
    told = complaint(capsys, "export", "x", "jpeg_quality=0", f"out={tmp_path / 'quality'}")
    assert "jpeg_quality=0: expected at least 1" in told


def test_export_refuses_links_before_it_decodes(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (tmp_path / "secret").write_text("secret")
    (copy / "notes.txt").symlink_to(tmp_path / "secret")
    monkeypatch.setattr(export, "export_robomimic", lambda *_: pytest.fail("decoded"))
    assert "'notes.txt' leads out of the directory" in complaint(
        capsys, "export", str(copy), f"out={tmp_path / 'export'}"
    )
