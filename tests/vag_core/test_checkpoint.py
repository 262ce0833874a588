"""A generator's checkpoint that somebody else wrote: read, compared and only then built."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vag_core.checkpoint import MOST_PARAMETERS, check_finite, load_network, read_config, read_shapes
from vag_core.config import GeneratorConfig
from vag_core.generator import Generator

SMALL: dict[str, Any] = {
    "image_size": 32,
    "num_frames": 9,
    "tokenizer": {"width": 16, "depth": 1, "latent_channels": 4},
    "scene": {"width": 16, "depth": 1, "keypoints": 8},
    "video": {"width": 32, "depth": 1, "heads": 2},
    "action": {"width": 32, "depth": 1, "heads": 2},
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Generator(GeneratorConfig.from_dict(SMALL)).save_pretrained(tmp_path / "generator")
    return tmp_path / "generator"


def change(directory: Path, part: str | None, **values: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    (config if part is None else config[part]).update(values)
    path.write_text(json.dumps(config))


def peak_megabytes(during: Callable[[], Any]) -> float:
    """How far the process's memory rises above what it is now."""

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    during()
    return (status("VmHWM") - before) / 1024


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("video", {"width": 200_000}),
        ("video", {"depth": 1_000_000}),
        ("action", {"depth": 1_000_000}),
        ("action", {"width": 20_000}),
        ("tokenizer", {"width": 8_192, "depth": 50}),
        ("scene", {"keypoints": 1_000_000}),
        ("instruction", {"length": 1_000_000}),
    ],
)
def test_a_network_larger_than_its_file_is_not_built(directory: Path, part: str, values: dict[str, int]) -> None:
    Generator.from_pretrained(directory)
    change(directory, part, **values)

    def refused() -> None:
        with pytest.raises(ValueError, match="than the file holds|of another shape") as refusal:
            Generator.from_pretrained(directory)
        assert "\n" not in str(refusal.value)
        assert str(directory) in str(refusal.value)

    assert peak_megabytes(refused) < 150


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("video", {"width": -8}, r"generator\.video\.width = -8: expected a whole number from 1 to 1000000"),
        ("video", {"width": 10**9}, "whole number"),
        ("video", {"width": 32.0}, "whole number"),
        ("video", {"width": "32"}, "whole number"),
        ("video", {"width": True}, "whole number"),
        ("video", {"width": None}, "whole number"),
        ("video", {"heads": 0}, "expected a whole number from 1"),
        ("action", {"detach": 1}, "expected true or false"),
        ("video", {"attention": ["full"]}, "expected a word"),
        ("video", {"attention": "f" * 1000}, "expected a word"),
        ("tokenizer", {"kl_weight": float("nan")}, "not valid JSON"),
        ("tokenizer", {"kl_weight": "1e400"}, "expected a finite number"),
        (None, {"action": {"kind": "unet", "channels": []}}, "expected a list of 1 to 16"),
        (None, {"action": {"kind": "unet", "channels": [64] * 100_000}}, "expected a list of 1 to 16"),
        (None, {"action": {"kind": "unet", "channels": [64, [64]]}}, "whole number"),
        (None, {"action": {"kind": "unet", "bridge": {"grid": {"t": 1}}}}, "expected a list"),
        (None, {"action": {"kind": "mlp"}}, r"generator\.action\.kind = 'mlp': expected one of transformer"),
        (None, {"action": {"kind": ["unet"]}}, "expected one of transformer"),
        (None, {"action": {"kind": "unet", "width": 32}}, r"generator\.action: unknown key 'width'"),
        (None, {"video": "dit"}, r"generator\.video = 'dit': expected a mapping"),
        (None, {"video": {"type": "evil"}}, "unknown key 'type'"),
        (None, {"frames": 3}, "unknown key 'frames'"),
        (None, {"action": {"kind": "framewise", "backbone": "hf-hub:evil/net"}}, "action.backbone = 'hf-hub:evil/net'"),
        (None, {"action": {"kind": "framewise", "backbone": "local-dir:evil"}}, "expected the name of a timm model"),
    ],
)
def test_absurd_values_are_refused_in_one_line(
    directory: Path, part: str | None, values: dict[str, Any], message: str
) -> None:
    change(directory, part, **values)
    with pytest.raises(ValueError, match=message) as refusal:
        Generator.from_pretrained(directory)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert str(directory / "config.json") in str(refusal.value) or "timm" in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds list; expected a mapping"),
        ('{"type": ' + "[" * 50_000, "not valid JSON"),
        ('{"type": ' + "[" * 100 + "]" * 100 + "}", "nested more than 32 deep"),
        ('{"type": "' + "a" * (2 << 20) + '"}', "bytes; expected at most"),
        ('{"type": Infinity}', "Infinity is no JSON"),
        ('{"type": {"a": 1}}', "expected a checkpoint of type 'vag_generator'"),
    ],
)
def test_a_config_that_is_none(directory: Path, content: str, message: str) -> None:
    (directory / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as refusal:
        Generator.from_pretrained(directory)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "values",
    [{"heads": 0}, {"width": 10**9}, {"patch_size": -1}, {"width": float("nan")}],
)
def test_what_could_not_be_loaded_is_not_trained(values: dict[str, Any]) -> None:
    config = GeneratorConfig()
    config.video = replace(config.video, **values)
    with pytest.raises(ValueError, match=rf"video\.{next(iter(values))} = .*: expected a whole number from 1"):
        Generator(config)


def test_weights_that_are_not_finite_are_neither_read_nor_written(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    for value in (np.nan, np.inf):
        name = "video.state.weight"
        save_file({**weights, name: torch.full_like(weights[name], value)}, directory / "model.safetensors")
        with pytest.raises(ValueError, match="'video.state.weight' holds numbers that are not finite"):
            Generator.from_pretrained(directory)
    save_file(weights, directory / "model.safetensors")
    generator = Generator.from_pretrained(directory)
    with torch.no_grad():
        generator.video.state.bias[0] = np.nan
    with pytest.raises(ValueError, match=r"generator: not written, 'video\.state\.bias'"):
        generator.save_pretrained(directory)
    with pytest.raises(ValueError, match="not written"):
        generator.save_pretrained(directory.with_name("new"))
    assert not directory.with_name("new").exists()
    Generator.from_pretrained(directory)


def test_large_finite_numbers_pass() -> None:
    check_finite({"a": torch.full((10,), 3e38), "b": torch.zeros(0), "c": torch.arange(3)}, "")


def test_the_limit_is_lifted_by_max_parameters(directory: Path) -> None:
    numbers = sum(value.numel() for value in load_file(directory / "model.safetensors").values())
    with pytest.raises(ValueError, match=rf"holds {numbers} numbers; at most 9 are loaded.*max_parameters={numbers}"):
        Generator.from_pretrained(directory, max_parameters=9)
    Generator.from_pretrained(directory, max_parameters=numbers)
    assert MOST_PARAMETERS >= 4_000_000_000


def test_a_damaged_header_is_no_file_of_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    good = path.read_bytes()
    header = b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4]}}'
    for content in (b"", good[:100], b"\xff" * 64, len(header).to_bytes(8, "little") + header + b"\0" * 4):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            read_shapes(path)
    path.unlink()
    with pytest.raises(ValueError, match="safetensors only"):
        read_shapes(path)
    with pytest.raises(ValueError, match="not found"):
        read_config(directory / "nothing.json")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3, bias=False)
        self.other = nn.Linear(3, 3, bias=False)
        self.other.weight = self.one.weight


class NotOnMeta(nn.Module):
    """Reads a number as it is built, as networks do that take parts of a pretrained one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, int(torch.ones(()).item()))


def test_tied_weights_have_one_name_in_the_file(tmp_path: Path) -> None:
    save_file({"one.weight": torch.ones(3, 3)}, tmp_path / "a.safetensors")
    assert (load_network(Tied, tmp_path / "a.safetensors").other.weight == 1).all()


def test_a_network_that_meta_cannot_hold_is_bounded_too(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"layer.weight": torch.ones(1, 3), "layer.bias": torch.ones(1)}, path)
    assert load_network(lambda: NotOnMeta(3), path).layer.weight.sum() == 3
    with pytest.raises(ValueError, match="of another shape"):
        load_network(lambda: NotOnMeta(4), path)
    with pytest.raises(ValueError, match="asks for a larger network than the file holds"):
        load_network(lambda: NotOnMeta(10**10), path)


def test_the_random_state_is_as_if_it_was_built_once(directory: Path) -> None:
    torch.manual_seed(3)
    Generator(GeneratorConfig.from_dict(SMALL))
    expected = torch.rand(1)
    torch.manual_seed(3)
    Generator.from_pretrained(directory)
    assert torch.equal(torch.rand(1), expected)
