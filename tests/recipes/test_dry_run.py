"""What `vag train-generator dry_run=true` says is what training takes, of tiny models, and of published sizes."""

import json
import socket
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from recipes import cli, hardware
from recipes.compose import checked_config
from recipes.dry_run import dry_run, fit_model, largest_batch, parameters, planned, read_facts
from recipes.fit_to_data import fit_pictures
from toolkit.data.clips import write_clips
from toolkit.data.episode import Episode
from toolkit.reporting.generator_results import DryRun
from vag_core import Generator, estimate
from vag_core.backbones.models import load_model

TINY = ["generator=vag_cosmos", "generator.video.path=tiny:cosmos", "generator.num_frames=9", "image_size=32"]
ACTION = ["generator.action.width=32", "generator.action.depth=1", "generator.action.heads=2"]
SMALL = [*TINY, *ACTION]
WEIGHED = (("cosmos", "float32", "lora"), ("wan", "bfloat16", "full"))  # of the combinations that are weighed
OWN = ["image_size=32", "generator.num_frames=9", *ACTION]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def config_of(*words: str) -> Any:
    return OmegaConf.to_object(checked_config("train-generator", ["dry_run=true", *words]))


def found(*words: str) -> DryRun:
    run = dry_run(config_of(*words)).dry_run
    assert run is not None
    return run


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("generator", "frozen", "lora"),
    [("vag_cosmos", 1_956_413_440, 45_875_200), ("vag_wan", 4_999_787_712, 80_609_280)],
)
def test_published_sizes_without_a_weight(generator: str, frozen: int, lora: int) -> None:
    words = [f"generator={generator}", "generator.num_frames=5", "image_size=64", *ACTION]
    trained = dict[str, int]()
    for train in ("lora", "frozen"):
        config = config_of(*words, f"generator.video.train={train}")
        sizes = fit_model(config)
        fit_pictures(config.generator, read_facts(config).canvas)
        made = planned(config, sizes)
        trained[train], without, _ = parameters(made)
        assert sizes.is_published
        assert without == frozen
        assert estimate.weight_bytes(made).frozen == pytest.approx(2 * frozen, rel=0.01)  # Wan keeps a few in float32
    assert trained["lora"] - trained["frozen"] == lora


@pytest.fixture(scope="module")
def clips(moving_square: Callable[..., Episode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dry") / "clips.h5"
    write_clips(path, [moving_square(seed, length=9, size=32) for seed in range(4)], 36, 10, "x")
    return path


@pytest.mark.parametrize("words", [OWN, [*OWN, "generator=vag_grid"], SMALL, [*SMALL, "generator.video.train=full"]])
def test_flop_are_those_of_a_training_on_a_cpu(clips: Path, tmp_path: Path, words: list[str]) -> None:
    words = [w for w in words if w not in ACTION or "generator=vag_grid" not in words]
    more = ["optim.batch_size=5", "optim.gradient_accumulation=2", "optim.steps=1", "held_out_fraction=0"]
    words = ["train-generator", str(clips), *words, *more, "tokenizer_optim.steps=1"]
    assert cli.main([*words, f"out={tmp_path / 'real'}"]) == 0
    assert cli.main([*words, "dry_run=true", f"out={tmp_path / 'dry'}"]) == 0
    real, dry = (json.loads((tmp_path / name / "run.json").read_text())["result"] for name in ("real", "dry"))
    assert dry["dry_run"]["flop_per_sample"] == real["throughput"]["flop_per_sample"]
    assert dry["generator"]["parameters"] == real["generator"]["parameters"]
    left = {path.name for path in (tmp_path / "dry").iterdir()}
    assert not left & {"generator", "streams", "tokenizer"}


@pytest.mark.parametrize(
    ("kind", "dtype", "train"),
    [
        case if case in WEIGHED else pytest.param(*case, marks=pytest.mark.long)
        for case in product(("cosmos", "cosmos25", "wan"), ("float32", "bfloat16"), ("frozen", "lora", "full"))
    ],
)
def test_bytes_of_weights_are_those_of_a_real_generator(tmp_path: Path, kind: str, dtype: str, train: str) -> None:
    words = [f"generator=vag_{kind}", f"generator.video.path=tiny:{kind}", *SMALL[2:-3], *ACTION, "image_size=64"]
    config = config_of(*words, f"generator.video.train={train}", f"generator.video.dtype={dtype}")
    run = dry_run(config).dry_run
    assert run is not None
    generator = Generator(config.generator, attach=False)
    model = load_model(f"tiny:{kind}", getattr(torch, dtype), cache=tmp_path)
    model.check = lambda config: None  # type: ignore[method-assign]  # its id is not asked for
    generator.attach(model)
    sizes = dict.fromkeys(["frozen_weights", "trained_weights", "tokenizer"], 0)
    for name, weight in generator.named_parameters():
        part = "tokenizer" if name.startswith("tokenizer.") else "frozen_weights"
        sizes["trained_weights" if weight.requires_grad else part] += weight.numel() * weight.element_size()
    assert {name: run.memory[name] for name in sizes} == sizes


def activations(*words: str) -> int:
    memory = found(*words).memory
    return memory["kept_activations"] + memory["working"]


def test_memory_grows_with_the_clips_and_shrinks_with_checkpointing() -> None:
    base = activations(*SMALL, "optim.batch_size=5")
    assert activations(*SMALL, "optim.batch_size=20") > 2 * base
    assert activations(*SMALL, "optim.batch_size=5", "generator.num_frames=17") > base
    deep = [*SMALL, "optim.batch_size=20"]
    kept = found(*deep, "generator.video.gradient_checkpointing=false")
    again = found(*deep)
    assert kept.memory["kept_activations"] > 1.8 * again.memory["kept_activations"]  # the text of all clips is in both
    assert kept.flop_per_step < again.flop_per_step
    assert kept.memory["frozen_weights"] == again.memory["frozen_weights"]


def test_half_precision_halves_what_is_kept() -> None:
    half, whole = (found(*SMALL, "optim.batch_size=80", f"runtime.mixed_precision={kind}") for kind in ("auto", "no"))
    assert half.bf16
    assert not whole.bf16
    assert half.memory["kept_activations"] < whole.memory["kept_activations"]
    assert half.flop_per_step == whole.flop_per_step


def test_a_step_is_all_of_its_passes() -> None:
    one = found(*SMALL, "optim.batch_size=5", "optim.gradient_accumulation=1")
    four = found(*SMALL, "optim.batch_size=5", "optim.gradient_accumulation=4")
    assert four.clips_of_step == 20
    assert four.flop_per_step == pytest.approx(4 * one.flop_per_step)
    assert four.total_bytes == pytest.approx(one.total_bytes, rel=1e-3)
    assert four.flop_per_sample == one.flop_per_sample


def test_what_does_not_fit_gets_a_batch_size_that_does(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    words = [*SMALL, "optim.batch_size=40", "optim.gradient_accumulation=1"]
    whole = found(*words)
    room = whole.total_bytes - 3 * whole.bytes_per_joint_clip
    monkeypatch.setattr("recipes.gpus.Gpu.bytes", property(lambda _: room))
    tight = found(*words)
    assert 0 < tight.largest_batch_size < 40
    assert found(*words[:-2], f"optim.batch_size={tight.largest_batch_size}").total_bytes <= room
    assert 40 % tight.gradient_accumulation == 0
    assert f"optim.batch_size={tight.largest_batch_size} does" in capsys.readouterr().out
    monkeypatch.setattr("recipes.gpus.Gpu.bytes", property(lambda _: whole.memory["trained_weights"]))
    assert found(*words).largest_batch_size == 0
    assert "not even one clip fits" in capsys.readouterr().out


def test_the_largest_that_fits_is_found() -> None:
    assert [largest_batch(lambda size, most=most: size <= most) for most in (0, 1, 7, 100)] == [0, 1, 7, 100]


def test_a_directory_of_configs_is_enough(tmp_path: Path) -> None:
    from vag_core.backbones.tiny import tiny_directory

    path = tiny_directory("cosmos", tmp_path)
    for file in path.rglob("*.safetensors"):
        file.unlink()
    run = found(*SMALL, f"generator.video.path={path}")
    assert not run.published
    assert run.memory == found(*SMALL).memory
    (path / "transformer" / "config.json").write_text("{}")
    assert cli.main(["train-generator", "dry_run=true", *SMALL, f"generator.video.path={path}"]) == 2


def test_a_line_of_the_table_is_what_is_computed() -> None:
    case = ("vag_cosmos", (49, 256, 256), "lora")
    assert case in list(hardware.cases())
    assert hardware.line(*case) in hardware.PAGE.read_text().splitlines()
