"""Stable Video Diffusion beside a generator: pictures and windows brought to its sizes and back."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recipes import cli
from recipes.schema import SvdConfig
from recipes.svd_video import SvdVideos
from vag_core import Generator
from vag_core.config import GeneratorConfig


class Fading:
    """In the place of the model: the picture, darker by 10 with each of five frames; notes what it was told."""

    directory = SimpleNamespace(num_frames=5)

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def sample(self, first: np.ndarray, rng: torch.Generator, **told: Any) -> np.ndarray:
        self.told = {**told, "first": first, "noise": rng.initial_seed()}
        return np.stack([first - np.minimum(first, 10 * frame) for frame in range(5)])


def test_picture_is_letterboxed_and_frames_come_out_of_the_bars() -> None:
    model: Any = Fading()
    videos = SvdVideos(model, (64, 128), SvdConfig(motion_bucket_id=3), "id")
    first = np.full((20, 20, 3), 200, np.uint8)
    frames = videos.video(first, 3, 5.0, seed=8)  # 0.4 seconds: the model's frames are told to fill them
    assert model.told["first"].shape == (64, 128, 3)
    assert (model.told["first"][:, 32:96] == 200).all()  # never stretched
    assert not model.told["first"][:, :32].any()
    assert not model.told["first"][:, 96:].any()
    assert (model.told["fps"], model.told["motion_bucket_id"], model.told["noise"]) == (10, 3, 8)
    assert frames.shape == (3, 20, 20, 3)
    assert frames.reshape(3, -1).min(1).tolist() == frames.reshape(3, -1).max(1).tolist() == [200, 180, 160]


def test_first_frame_is_the_recorded_picture_and_the_last_one_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = Fading()
    videos = SvdVideos(model, (32, 64), SvdConfig(path="model", fps=10), "id")
    first = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    frames = videos.video(first, 7, 10.0, seed=0)
    assert np.array_equal(frames[0], first)
    assert np.array_equal(frames[4], frames[6])
    assert not np.array_equal(frames[3], frames[4])
    videos.warn_of_end(5, 10.0)
    assert not capsys.readouterr().err
    videos.warn_of_end(7, 10.0)
    assert "model: 5 frames at svd.fps=10 are 0.5 s of the window's 0.6 s" in capsys.readouterr().err


@pytest.fixture
def command(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("VAG_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("diffusers")
    config = GeneratorConfig(image_size=[32, 32], num_frames=9, state_dim=2, action_dim=2)
    Generator(config).save_pretrained(tmp_path / "generator")
    words = [f"checkpoint={tmp_path / 'generator'}", f"dataset={dataset}", "svd.num_inference_steps=1"]
    return ["evaluate-generator", *words, "svd.image_size=[32,48]", "runtime.device=cpu", "keep_samples=true"]


def test_videos_depend_on_seed_and_scene_alone(tmp_path: Path, command: list[str]) -> None:
    found = {}
    for name, words in (("a", []), ("b", []), ("c", ["seed=1"])):
        assert cli.main([*command, "svd.path=tiny:svd", *words, f"out={tmp_path / name}"]) == 0
        with np.load(tmp_path / name / "samples.npz") as saved:
            assert saved.files == ["frames"]
            found[name] = saved["frames"]
    assert np.array_equal(found["a"], found["b"])
    assert not np.array_equal(found["a"], found["c"])
    result = json.loads((tmp_path / "a/run.json").read_text())["result"]
    assert set(result["metrics"]) == set(result["still"]) == {"psnr", "ssim", "gmsd"}
    assert (result.get("replay"), result["function_evaluations"]) == (None, 2)
    data = json.loads((tmp_path / "a/run.json").read_text())["data"]
    assert {"path": "tiny:svd", "id": result["checkpoint_id"], "episodes": None} in data


def test_mistakes_are_one_line(tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for words, complaint in (
        (["svd.path=tiny:svd", "given=video"], "given=video with svd.path"),
        (["svd.path=tiny:svd", "svd.image_size=[33,48]"], "[33, 48]; expected multiples of 2"),
        ([f"svd.path={tmp_path / 'nothing'}"], "directory not found"),
    ):
        assert cli.main([*command, *words, f"out={tmp_path / 'run'}", "overwrite=true"]) == 2
        assert complaint in capsys.readouterr().err
