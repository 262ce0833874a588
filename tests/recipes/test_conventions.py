"""What a checkpoint was trained on goes with it: camera, rate, sizes, names, words; and what is guessed is said."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recipes import cli
from recipes.worlds import check_simulated
from toolkit.base.errors import UserError
from toolkit.data.batches import GeneratorClips
from toolkit.data.conventions import Conventions
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_read import read_episodes, read_table
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.pictures import read_pictures

WRIST = "observation.images.wrist"
SWAPPED = f"{{observation.image: {WRIST}, {WRIST}: observation.image}}"
RENAMED = f"rename={{{{observation.image: {WRIST}}}}}"
NETWORK = [
    *("image_size=32", "generator.num_frames=17", "generator.video.width=32", "generator.video.depth=1"),
    *("generator.tokenizer.width=16", "generator.tokenizer.depth=1", "generator.action.width=32"),
    *("generator.action.depth=1", "tokenizer_optim.steps=1", "optim.steps=1", "optim.batch_size=2"),
]
POLICY = ["policy=pi05_compact", "policy.options.width=32", "image_size=32", "optim.steps=1", "optim.batch_size=2"]


def write(path: Path, episodes: list[Episode], fps: int = 20) -> Path:
    with EpisodeWriter(path, fps, ["y", "x"], ["dy", "dx"]) as writer:
        for episode in episodes:
            writer.add(episode)
    return path


@pytest.fixture(scope="module")
def wrist(tmp_path_factory: pytest.TempPathFactory, moving_square: Callable[..., Episode]) -> dict[str, Path]:
    """Two cameras, of which the second shows the negative; a generator and a policy that were trained on that one."""
    root = tmp_path_factory.mktemp("wrist")
    episodes = [moving_square(seed) for seed in range(3)]
    made = {"dataset": write(root / "data", [replace(e, cameras={WRIST: 255 - e.images}) for e in episodes])}
    made["fast"] = write(root / "fast", episodes, fps=40)
    camera = [f"cameras=[{WRIST}]", "seed=0"]
    words = ["train-generator", str(made["dataset"]), *NETWORK, *camera, f"out={root / 'generator'}"]
    assert cli.main(words) == 0
    assert cli.main(["pretrain", f"real=[{made['dataset']}]", *POLICY, *camera, f"out={root / 'policy'}"]) == 0
    made["generator"], made["policy"] = root / "generator/generator", root / "policy/pretrained_model"
    return made


def opened(dataset: Path, camera: str) -> Iterator[np.ndarray]:
    """The first picture of a camera."""
    rows = read_table(dataset).episodes[:1]
    return (part[0] for part in read_pictures(dataset, rows, camera))


def test_checkpoints_hold_what_their_data_mean(wrist: dict[str, Path]) -> None:
    for name in ("generator", "policy"):
        assert json.loads((wrist[name] / "conventions.json").read_text()) == {
            "fps": 20,
            "state_names": ["y", "x"],
            "action_names": ["dy", "dx"],
            "canvas": {"cameras": {WRIST: [32, 32]}, "cell": [32, 32]},
            "robot_type": "sawyer",
            "codec": "h264",
        }


def test_a_checkpoint_is_shown_its_own_camera(
    wrist: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["synthesize", f"checkpoint={wrist['generator']}", f"scenes_from={wrist['dataset']}"]
    assert cli.main([*words, f"out={tmp_path / 'own'}"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert cli.main([*words, "cameras=[observation.image]", f"out={tmp_path / 'other'}"]) == 2
    said = capsys.readouterr().err
    assert f"cameras=[observation.image]: {wrist['generator']} was trained on {WRIST}; leave cameras out" in said
    assert f"rename={{observation.image: {WRIST}}}" in said
    assert cli.main([*words, f"rename={SWAPPED}", f"out={tmp_path / 'other'}"]) == 0
    recorded = next(iter(read_episodes(wrist["dataset"])))
    for name, wanted in (("own", 255 - recorded.images[0]), ("other", recorded.images[0])):
        (made,) = opened(tmp_path / name / "dataset", WRIST)
        assert np.abs(made.astype(int) - wanted).mean() < 12  # what a video file keeps of it
    alone = [*words[:2], f"scenes_from={wrist['fast']}", f"out={tmp_path / 'alone'}"]
    assert cli.main(alone) == 2
    assert (
        f"{wrist['fast']}: no camera '{WRIST}'; it has observation.image. Choose cameras=[...] that it has, or say "
        f"which one is meant, such as rename={{observation.image: {WRIST}}}"
    ) in capsys.readouterr().err


def test_policies_and_scores_take_camera_and_size_from_the_checkpoint(
    wrist: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {}
    for name, camera in (("own", []), ("named", [f"cameras=[{WRIST}]"]), ("other", [f"rename={SWAPPED}"])):
        words = ["evaluate", f"checkpoint={wrist['policy']}", f"dataset={wrist['dataset']}", *camera]
        assert cli.main([*words, f"out={tmp_path / name}"]) == 0
        errors[name] = json.loads((tmp_path / name / "run.json").read_text())["result"]["open_loop"]["action_distance"]
    assert errors["own"] == errors["named"] != errors["other"]
    given = [f"real=[{wrist['dataset']}]", "optim.steps=1", "optim.batch_size=2"]
    assert cli.main(["finetune", f"checkpoint={wrist['policy']}", *given, f"out={tmp_path / 'tuned'}"]) == 0
    told = json.loads((tmp_path / "tuned/pretrained_model/conventions.json").read_text())
    assert told["canvas"] == {"cameras": {WRIST: [32, 32]}, "cell": [32, 32]}
    score = ["score", str(wrist["dataset"]), f"checkpoint={wrist['generator']}", f"out={tmp_path / 'score'}"]
    assert cli.main(score) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    "words",
    [
        ["synthesize", "checkpoint={generator}", "scenes_from={fast}", RENAMED],
        ["evaluate-generator", "checkpoint={generator}", "dataset={fast}", RENAMED],
        ["score", "dataset={fast}", "checkpoint={generator}", RENAMED],
        ["evaluate", "checkpoint={policy}", "dataset={fast}", RENAMED],
    ],
)
def test_another_rate_is_refused(
    words: list[str], wrist: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*(word.format(**wrist) for word in words), f"out={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"fast: 40 steps a second; .* was trained on 20: the same action would last another time\. ", said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fps", [20, 80])
def test_the_simulator_is_another_robot_too(
    fps: int, moving_square: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal widths say little: else synthetic episodes get the clock and the names of the simulator."""
    with EpisodeWriter(tmp_path / "data", fps, ["a", "b", "c", "d"], ["e", "f", "g", "h"]) as writer:
        for seed in range(2):
            episode = moving_square(seed)
            twice = {key: np.tile(getattr(episode, key), 2) for key in ("states", "actions")}
            writer.add(replace(episode, **twice))
    said = r"the simulator: 80 steps a second; .* was trained on 20" if fps == 20 else r"the simulator: its state_names"
    train = ["train-generator", str(tmp_path / "data"), *NETWORK, f"out={tmp_path / 'generator'}"]
    assert cli.main(train) == 0
    assert cli.main(["pretrain", f"real=[{tmp_path / 'data'}]", *POLICY, f"out={tmp_path / 'policy'}"]) == 0
    capsys.readouterr()
    for command, checkpoint in (("synthesize", "generator/generator"), ("evaluate", "policy/pretrained_model")):
        words = [command, f"checkpoint={tmp_path / checkpoint}", "tasks=[push]", "episodes_per_task=1"]
        assert cli.main([*words, f"out={tmp_path / command}"]) == 2
        assert re.search(said, capsys.readouterr().err)
        assert not (tmp_path / command).exists()


def test_a_window_that_misses_most_of_an_episode_is_said_with_numbers(
    moving_square: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = write(tmp_path / "long", [moving_square(seed, length=161) for seed in range(2)])
    for dataset, changes, said, covered, padded in (
        (long, [], "16 steps (0.8 s) and covers 11% of an episode (161 steps in the median), anywhere", 0.1056, 0),
        (long, ["random_start=false"], "covers 11% of an episode (161 steps in the median), at its start", 0.1056, 0),
        (long, [], "generator.frame_stride=10 covers the median episode with as many pictures", 0.1056, 0),
        (long, ["clip_seconds=6"], "covers 75% of an episode", 0.7516, 0),  # 1 + 15 groups of 8 in 6 s of 20 a second
        (long, ["clip_seconds=8", "frame_rate=2"], "", 1, 0),
        (long, ["generator.frame_stride=10"], "", 1, 0),
        (long, ["generator.frame_stride=20"], "50% of the window lies past the end and never counts", 1, 0.4984),
    ):
        out = tmp_path / "run"
        assert cli.main(["train-generator", str(dataset), *NETWORK, *changes, f"out={out}", "overwrite=true"]) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "vag: warning: " in line]
        assert len(lines) == bool(said), lines
        assert said in "".join(lines)
        result = json.loads((out / "run.json").read_text())["result"]
        assert (result["covered"], result["padded"]) == (covered, padded)


def named(episode: Episode, task: str, **metadata: Any) -> Episode:
    return replace(episode, task=task, metadata={**episode.metadata, **metadata})


def test_instructions_are_read_to_their_end(
    moving_square: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = " ".join(["very"] * 17)
    episodes = [named(moving_square(i), f"push the {words} {('small', 'large')[i % 2]} square") for i in range(4)]
    dataset = write(tmp_path / "data", episodes)
    generator = ["train-generator", str(dataset), *NETWORK, f"out={tmp_path / 'generator'}"]
    assert cli.main(generator) == 0
    assert "an instruction has 106 bytes, more than generator.instruction.length=64" in capsys.readouterr().err
    policy = ["pretrain", f"real=[{dataset}]", *POLICY]
    assert cli.main([*policy, f"out={tmp_path / 'policy'}"]) == 0
    config = json.loads((tmp_path / "policy/pretrained_model/config.json").read_text())
    assert config["tokenizer_max_length"] == 21
    capsys.readouterr()
    short = [*policy, "policy.options.tokenizer_max_length=16", f"out={tmp_path / 'short'}"]
    assert cli.main(short) == 2
    assert "differ after the 16 words that the policy reads" in capsys.readouterr().err
    alike = write(tmp_path / "alike", [named(episode, episodes[0].task) for episode in episodes])
    short[1] = f"real=[{alike}]"
    assert cli.main(short) == 0
    assert "has 21 words; the policy reads the first 16" in capsys.readouterr().err


def test_synthetic_episodes_among_recorded_ones_count_as_what_they_are(
    moving_square: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = [moving_square(seed) for seed in range(4)]
    synthetic = [replace(e, metadata={**e.metadata, "source": "synthetic"}) for e in episodes]
    merged = write(tmp_path / "merged", [*episodes[:1], *synthetic[1:]])
    out = tmp_path / "policy"
    assert cli.main(["pretrain", f"real=[{merged}]", *POLICY, f"out={out}"]) == 0
    assert f"real=[{merged}]: 3 of 4 episodes are synthetic, and count as such" in capsys.readouterr().err
    result = json.loads((out / "run.json").read_text())["result"]
    assert result["episodes"] == [1, 3]
    assert result["synthetic_fraction"] > 0.4
    assert "*" in json.loads((out / "pretrained_model/seen_scenes.json").read_text())  # whatever their generator saw
    whole = write(tmp_path / "whole", synthetic)
    assert cli.main(["pretrain", f"real=[{whole}]", *POLICY, f"out={tmp_path / 'other'}"]) == 2
    assert "all its episodes are synthetic; give it as synthetic=[...]" in capsys.readouterr().err


def test_a_policy_that_does_not_exist_is_named_before_data_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["policy.type=pi05_compac"], "policy type 'pi05_compac' is unknown"),
        (["policy.options.widht=3"], "pi05_compact has no option 'widht'"),
    ):
        assert cli.main(["pretrain", f"real=[{tmp_path / 'nowhere'}]", *words, f"out={tmp_path / 'run'}"]) == 2
        assert said in capsys.readouterr().err


def test_a_window_is_told_in_seconds(
    moving_square: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = write(tmp_path / "long", [moving_square(seed, length=161) for seed in range(2)])
    train = ["train-generator", str(long), *NETWORK, "clip_seconds=4", f"out={tmp_path / 'run'}"]
    assert cli.main([*train, "frame_rate=6"]) == 0
    assert "a window has 25 pictures, 3 steps apart: 72 steps, 3.6 s" in capsys.readouterr().out  # 20 / 6 is about 3
    config = json.loads((tmp_path / "run/generator/config.json").read_text())
    assert (config["num_frames"], config["frame_stride"]) == (25, 3)
    assert cli.main([*train, "frame_rate=21", "overwrite=true"]) == 2
    assert f"frame_rate=21: {long} has 20 steps a second" in capsys.readouterr().err


@pytest.mark.parametrize(("length", "anywhere"), [(17, False), (18, True)])
def test_windows_are_taken_from_anywhere_in_episodes_that_they_do_not_cover(
    length: int, anywhere: bool, moving_square: Callable[..., Episode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    original = GeneratorClips.draw
    monkeypatch.setattr(GeneratorClips, "draw", lambda *args: drawn.append(original(*args)[1]) or original(*args))
    data = write(tmp_path / "data", [moving_square(seed, length=length) for seed in range(2)])
    assert cli.main(["train-generator", str(data), *NETWORK, "optim.steps=8", f"out={tmp_path / 'run'}"]) == 0
    assert np.concatenate(drawn).any() == anywhere


def test_a_policy_in_another_world_is_told_to_choose_its_own(tmp_path: Path) -> None:
    """A rate of a world is none that `vag import` lowers."""
    Conventions("test", 10, [], []).write(tmp_path)
    env: Any = SimpleNamespace(fps=80, state_names=["x"], action_names=["y"], cameras=["observation.image"])
    with pytest.raises(
        UserError, match=r"80 steps a second; .* choose the world of its data by env=\.\.\., or"
    ) as raised:
        check_simulated(tmp_path, env, "metaworld", "fine-tune the policy")
    assert "vag import" not in str(raised.value)
