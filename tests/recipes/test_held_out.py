"""Held-out episodes of a generator's training: what is measured changes nothing, survives kills, and warns."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from recipes import cli, held_out, train_generator
from recipes.compose import compose_config
from recipes.held_out import GeneratorWatch, HeldOut
from toolkit.base.run import Run
from toolkit.data.clips import ClipStore, write_clips
from toolkit.data.episode import Episode
from toolkit.data.selection import subset
from toolkit.training import loop, loss_curve, watch
from toolkit.training.logging import ScalarLog
from vag_core import Generator

NETWORK = [
    "image_size=32",
    "generator.num_frames=9",
    "generator.tokenizer.width=32",
    "generator.tokenizer.depth=1",
    "generator.scene.width=16",
    "generator.scene.depth=1",
    "generator.video.width=32",
    "generator.video.depth=1",
    "generator.action.width=32",
    "generator.action.depth=1",
    "tokenizer_optim.steps=2",
    "tokenizer_optim.batch_size=2",
    "optim.batch_size=2",
    "optim.checkpoint_every=2",
    "runtime.device=cpu",
    "runtime.threads=1",
]


def ten(moving_square: Callable[..., Episode]) -> list[Episode]:
    return [moving_square(seed, length=10 + seed % 3) for seed in range(10)]


@pytest.fixture(scope="module")
def clips(moving_square: Callable[..., Episode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip file of ten episodes."""
    path = tmp_path_factory.mktemp("clips") / "clips.h5"
    write_clips(path, ten(moving_square), 109, 20, "ten")
    return path


def train(clips: Path, out: Path, *words: str) -> dict[str, Any]:
    assert cli.main(["train-generator", str(clips), *NETWORK, f"out={out}", *words]) == 0
    result: dict[str, Any] = json.loads((out / "run.json").read_text())["result"]
    return result


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed. Its held-out loss falls at first, and is made to rise."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratorWatch, "measure", falling_then_rising)
        train(clips, out, "optim.steps=6")
    return out


measured = GeneratorWatch.measure


def falling_then_rising(self: GeneratorWatch, log: ScalarLog) -> dict[str, float]:
    """The real measurement, moved so that the second of three is the lowest."""
    assert self.curve is not None
    losses = measured(self, log)
    return losses | {"loss": losses["loss"] + (0.5, 0.0, 0.2)[len(self.curve.steps)]}


def test_the_result_has_the_curve_and_the_run_the_best_generator(whole: Path) -> None:
    result = json.loads((whole / "run.json").read_text())["result"]
    curve = result["held_out"]
    assert (result["episodes"], curve["episodes"], curve["steps"]) == ([9], [1], [2, 4, 6])
    assert (curve["best_step"], curve["best_loss"]) == (4, min(curve["losses"]))
    assert curve["last_loss"] == curve["losses"][-1]
    best, last = content(whole / "best"), content(whole / "generator")
    assert best.keys() == last.keys()
    assert {name for name in best if best[name] != last[name]} == {"model.safetensors"}
    assert Generator.from_pretrained(whole / "best").config == Generator.from_pretrained(whole / "generator").config
    seen = json.loads((whole / "best/seen_scenes.json").read_text())
    assert sorted(seed for seeds in seen.values() for seed in seeds) == list(range(10))  # held-out ones too


def test_four_videos_of_held_out_episodes_reach_the_tracker(clips: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(clips, tmp_path / "run", "optim.steps=3", "held_out_fraction=0.5", "held_out_every=2")
    assert result["held_out"]["steps"] == [2, 3]
    events = EventAccumulator(str(tmp_path / "run/streams/tensorboard"), size_guidance={"images": 0})
    events.Reload()
    names = [f"held_out/recorded_above_generated_{number}" for number in (1, 2, 3, 4)]
    assert sorted(events.Tags()["images"]) == names
    assert all([image.step for image in events.Images(name)] == [2, 3] for name in names)
    first = [np.frombuffer(events.Images(name)[0].encoded_image_string, np.uint8)[:6].tobytes() for name in names]
    assert first == [b"GIF89a"] * 4
    points = {name: events.Scalars(f"held_out/{name}") for name in ("loss", "video_loss", "action_loss")}
    assert all([point.step for point in own] == [2, 3] for own in points.values())
    assert [point.value for point in points["loss"]] == pytest.approx(result["held_out"]["losses"], rel=1e-5)


def test_measuring_changes_no_bit_of_the_training(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where as many episodes are left out of it, but never looked at."""
    train(clips, tmp_path / "measured", "optim.steps=4")
    monkeypatch.setattr(GeneratorWatch, "due", lambda self, step: False)
    train(clips, tmp_path / "blind", "optim.steps=4")
    one, other = (weights(tmp_path / name / "generator") for name in ("measured", "blind"))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_weights_change_places_and_back() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
            self.again = self.layer
            self.norm.eval()

    module = Tied().train()
    module.norm.eval()
    average = watch.ExponentialMovingAverage(module, 0.9)
    for parameter in module.parameters():
        parameter.data.mul_(3).add_(1)
    trained, shadow = (
        {name: value.clone() for name, value in values.items()} for values in (module.state_dict(), average.shadow)
    )
    with watch.averaged(module, average):
        assert not module.training
        assert all(torch.equal(value, shadow[name]) for name, value in module.state_dict().items())
    assert (module.training, module.layer.training, module.norm.training) == (True, True, False)
    for values, expected in ((module.state_dict(), trained), (average.shadow, shadow)):
        assert all(torch.equal(value, expected[name]) for name, value in values.items())


POINTS = ["videos 2", "best 2", "curve 3"]
POINTS += [pytest.param(point, marks=pytest.mark.long) for point in ("checkpoint 2", "curve 2", "checkpoint 3")]


class Killed(Exception):  # noqa: N818
    """As SIGKILL does it: what was written stays."""


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_the_curve_and_the_best_are_those_of_an_undisturbed_run(
    point: str, clips: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of the changes that belong to the second measurement, and the last."""
    out, (kind, number) = tmp_path / "run", point.split()
    monkeypatch.setattr(GeneratorWatch, "measure", falling_then_rising)
    moments: dict[str, tuple[Any, str, Callable[..., bool]]] = {
        "checkpoint": (loop, "save_checkpoint", lambda directory, *_: directory.parent.name == "streams"),
        "videos": (GeneratorWatch, "_show", lambda *_: True),
        "best": (Run, "make", lambda _, name, __: name == "best"),
        "curve": (loss_curve, "write_json", lambda *_: True),
    }
    owner, name, counts = moments[kind]
    real, calls = getattr(owner, name), list[int]()

    def killed_after(*arguments: Any) -> None:
        real(*arguments)
        calls.extend([1] * counts(*arguments))
        if len(calls) == int(number):
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, killed_after)
        with pytest.raises(Killed):
            train(clips, out, "optim.steps=6")
    result = train(clips, out, "optim.steps=6", "resume=true")
    assert result["held_out"] == json.loads((whole / "run.json").read_text())["result"]["held_out"]
    for folder in ("best", "generator"):
        assert content(out / folder) == content(whole / folder)
    assert (out / "streams/held_out.json").read_bytes() == (whole / "streams/held_out.json").read_bytes()


def test_a_rise_is_a_warning_with_its_numbers_and_less_is_none(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generator=action_only", "optim.steps=6", "held_out_every=1"]
    losses = [3.0, 2.0, 2.2, 2.4, 2.6, 2.8]
    monkeypatch.setattr(GeneratorWatch, "measure", lambda self, log: {"loss": losses[len(self.curve.steps)]})
    train(clips, tmp_path / "risen", *words)
    said = capsys.readouterr()
    during, after = (line for line in said.err.splitlines() if "held-out loss" in line)
    told = f"at step 5, 2 at step 2, whose generator is in {tmp_path / 'risen/best'}"
    assert f"vag: warning: held-out loss rises: 2.6 {told}" in during
    assert "held-out loss has risen: 2.8 at step 6, 2 at step 2" in after
    assert "train for fewer steps, or on more episodes" in after
    assert "held-out loss 2.8, best 2 at step 2 (best)" in said.out
    losses[2:] = [2.0, 1.9, 2.0, 1.92]
    train(clips, tmp_path / "not", *words)
    assert "held-out loss" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_learns_its_episodes_by_heart_is_warned_of(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Actions of random squares cannot be foreseen: what is learned of them is learned by heart."""
    words = ["generator=action_only", "generator.action.dropout=0", "optim.steps=120", "optim.checkpoint_every=30"]
    result = train(clips, tmp_path / "run", *words, "optim.learning_rate=3e-3", "optim.ema_decay=0.9")
    assert result["held_out"]["last_loss"] > 1.02 * result["held_out"]["best_loss"]
    assert result["held_out"]["best_step"] < 120
    assert "held-out loss has risen" in capsys.readouterr().err


def test_statistics_tokenizer_and_lengths_know_of_no_held_out_episode(
    clips: Path, tmp_path: Path, moving_square: Callable[..., Episode]
) -> None:
    """With other content in the held-out episode the training is the same, bit for bit."""
    train(clips, tmp_path / "one", "optim.steps=2")
    kept = json.loads((tmp_path / "one/run.json").read_text())["result"]["episodes"]
    store = ClipStore.open(clips)
    config: Any = OmegaConf.to_object(compose_config("train-generator", [f"dataset={clips}", *NETWORK]))
    (out,) = np.flatnonzero(held_out.held_out_of(config, [store], 1)[0])
    episodes = ten(moving_square)
    episodes[out].actions[:] *= 50
    episodes[out].states[:] += 9
    episodes[out].images[:] = 255
    write_clips(tmp_path / "other.h5", episodes, 109, 20, "ten")
    assert train(tmp_path / "other.h5", tmp_path / "two", "optim.steps=2")["episodes"] == kept
    assert content(tmp_path / "one/generator") == content(tmp_path / "two/generator")
    lengths = json.loads((tmp_path / "one/generator/windows.json").read_text())["lengths"]
    assert sum(map(len, lengths.values())) == 9
    curves = [json.loads((tmp_path / name / "run.json").read_text())["result"]["held_out"] for name in ("one", "two")]
    assert curves[0]["losses"] != curves[1]["losses"]


def test_the_measured_loss_is_that_of_the_whole_batch_however_it_is_divided(store: ClipStore, tmp_path: Path) -> None:
    config: Any = OmegaConf.to_object(compose_config("train-generator", [f"dataset={tmp_path}", *NETWORK]))
    config.generator.image_size, config.generator.state_dim, config.generator.action_dim = [32, 32], 2, 2
    config.random_start = True
    generator = Generator(config.generator).eval()
    run: Any = SimpleNamespace(directory=tmp_path)
    part = HeldOut(subset(store, np.array([0, 1, 4])), [3], np.array([True, False, True]))
    log: Any = SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu"), autocast=torch.no_grad))
    found = []
    state = torch.get_rng_state()
    for size in (64, 3, 1):
        config.optim.batch_size = size
        starts = train_generator.TrainingData(store, config, [6], None, None, [], [-1, -1]).starts()
        looks = GeneratorWatch(config, run, generator, part, starts, list, lambda _: None)
        found.append(looks.measure(log))
        assert looks.measure(log) == found[-1]
    assert torch.equal(torch.get_rng_state(), state)
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)


def test_none_is_held_out_of_few_episodes_or_where_nobody_wants_it(
    clips: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(dataset, tmp_path / "few", "optim.steps=1")
    assert "held out: none of 4 episodes (held_out_fraction=0.1 needs 5" in capsys.readouterr().out
    assert "held_out" not in result
    assert not (tmp_path / "few/best").exists()
    assert train(clips, tmp_path / "all", "optim.steps=1", "held_out_fraction=0")["episodes"] == [10]
    assert "held out" not in capsys.readouterr().out
