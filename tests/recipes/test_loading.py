"""The commands that load a generator: one line for a stranger's, and a limit that `max_parameters=` lifts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes.cli import main
from vag_core import Generator, GeneratorConfig

SMALL = {
    "image_size": 32,
    "num_frames": 9,
    "state_dim": 2,
    "action_dim": 2,
    "tokenizer": {"width": 16, "depth": 1, "latent_channels": 4},
    "scene": {"width": 16, "depth": 1, "keypoints": 8},
    "video": {"width": 32, "depth": 1, "heads": 2},
    "action": {"width": 32, "depth": 1, "heads": 2},
}


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Generator(GeneratorConfig.from_dict(SMALL)).save_pretrained(tmp_path / "generator")
    return tmp_path / "generator"


def words(command: str, generator: Path, dataset: Path, out: Path) -> list[str]:
    given = {
        "synthesize": [f"checkpoint={generator}", f"scenes_from={dataset}"],
        "evaluate-generator": [f"checkpoint={generator}", f"dataset={dataset}"],
        "score": [f"checkpoint={generator}", f"dataset={dataset}"],
        "train-generator": [
            f"tokenizer_from={generator}",
            f"dataset={dataset}",
            "image_size=32",
            "generator.num_frames=17",
        ],
    }[command]
    return [command, *given, f"out={out}"]


@pytest.mark.parametrize("command", ["synthesize", "evaluate-generator", "score", "train-generator"])
def test_a_strangers_generator_is_refused_in_one_line(
    command: str, generator: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(generator / "model.safetensors")
    good = json.loads((generator / "config.json").read_text())
    numbers = sum(value.numel() for value in weights.values())
    for name, config, tensors, options, message in (
        ("wide", {"video": {**good["video"], "width": 200_000}}, {}, [], "larger generator than the file holds"),
        ("text", {"video": {**good["video"], "width": "32"}}, {}, [], "expected a whole number"),
        ("nan", {}, {"trajectory.std": torch.full_like(weights["trajectory.std"], torch.nan)}, [], "not finite"),
        ("limit", {}, {}, ["max_parameters=9"], f"more with max_parameters={numbers}"),
    ):
        (generator / "config.json").write_text(json.dumps({**good, **config}))
        save_file({**weights, **tensors}, generator / "model.safetensors")
        assert main([*words(command, generator, dataset, tmp_path / name), *options]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vag: ")]
        assert len(lines) == 1
        assert message in lines[0]
        assert str(generator) in lines[0]


@pytest.mark.parametrize(("command", "option"), [("score", "image_size=32"), ("evaluate-generator", "given=video")])
def test_what_a_generator_never_trained_is_refused_in_one_line(
    command: str, option: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published system denoises both streams in step: it infers no actions from a video."""
    config = GeneratorConfig.from_dict(SMALL | {"action": {"kind": "unet", "channels": [16, 32]}})
    Generator(config).save_pretrained(tmp_path / "generator")
    assert main([*words(command, tmp_path / "generator", dataset, tmp_path / "run"), option]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vag: ")]
    assert len(lines) == 1
    assert "inverse dynamics: a generator of action.kind = unet is never trained for it" in lines[0]
