"""Episodes of several clips, episodes as long as recorded ones, and instructions that name the views."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes import cli
from recipes.start_scenes import scene_seeds
from toolkit.base.randomness import stream_seed
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.pictures import read_pictures
from vag_core import Generator

TOP, WRIST = "observation.images.top", "observation.images.wrist"
LENGTHS = {"push the square": (30, 32), "pull the square": (11, 14)}
SMALL = [
    *("generator.video.width=32", "generator.video.depth=1", "generator.video.heads=2", "generator.tokenizer.width=16"),
    *(
        "generator.tokenizer.depth=1",
        "generator.action.width=32",
        "generator.action.depth=1",
        "tokenizer_optim.steps=2",
    ),
    *("optim.steps=2", "optim.batch_size=2", "image_size=32", "generator.num_frames=17"),
]


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


def result(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())["result"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, moving_square: Callable[..., Episode]) -> Path:
    """Two cameras; episodes of one task are twice as long as a window of 16 steps, those of the other end in it."""
    path = tmp_path_factory.mktemp("long") / "recorded"
    with EpisodeWriter(path, 10, ["y", "x"], ["dy", "dx"]) as writer:
        for task, lengths in LENGTHS.items():
            for k, length in enumerate(lengths):
                episode = moving_square(k, length=length, size=32)
                cameras = {TOP: episode.images, WRIST: 255 - episode.images}
                writer.add(replace(episode, images=None, cameras=cameras, task=task, metadata={}))
    return path


@pytest.fixture(scope="module")
def checkpoint(recorded: Path) -> Path:
    run("train-generator", str(recorded), *SMALL, f"out={recorded.parent / 'generator'}")
    return recorded.parent / "generator/generator"


def synthesize(checkpoint: Path, recorded: Path, out: Path, *words: str) -> int:
    given = [f"checkpoint={checkpoint}", f"scenes_from={recorded}", "sampler.num_inference_steps=2"]
    return cli.main(["synthesize", *given, *words, f"out={out}"])


def test_episodes_end_as_recorded_ones_do(checkpoint: Path, recorded: Path, tmp_path: Path) -> None:
    told = json.loads((checkpoint / "windows.json").read_text())
    assert told == {"random_start": True, "lengths": {task: list(lengths) for task, lengths in LENGTHS.items()}}
    assert synthesize(checkpoint, recorded, tmp_path / "sampled", "samples_per_scene=8") == 0
    table = read_table(tmp_path / "sampled/dataset")
    made = {
        task: {length for length, own in zip(table.lengths, table.tasks, strict=True) if own == task}
        for task in LENGTHS
    }
    assert made == {"push the square": {16}, "pull the square": {10, 13}}  # the last step has no state after it
    ends = result(tmp_path / "sampled")["ends"]
    assert {key: ends[key] for key in ("rule", "shortest", "longest", "cut", "recorded_lengths")} == {
        **{"rule": "sampled", "shortest": 10, "longest": 16, "cut": 16, "recorded_lengths": 4},
    }
    assert 0 < ends["off"] < ends["off_of_window"] == pytest.approx(np.mean([0, 0, 6, 3]))
    assert synthesize(checkpoint, recorded, tmp_path / "window", "episode_lengths=window") == 0
    whole = read_table(tmp_path / "window/dataset")
    assert set(whole.lengths) == {16}
    own = table.actions[table.lengths[:16].sum() :][: table.lengths[16]]  # what is cut is the same as far as it goes
    np.testing.assert_array_equal(own, whole.actions[32 : 32 + len(own)])


def test_clips_go_on_from_the_last_picture_and_state(
    checkpoint: Path, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["clips=3", "episode_lengths=window", "sampler.order=synchronised"]
    assert synthesize(checkpoint, recorded, tmp_path / "out", *words) == 0
    said = capsys.readouterr()
    assert "random_start" not in said.err
    table = read_table(tmp_path / "out/dataset")
    assert list(table.lengths) == [48] * 4
    generator, window = Generator.from_pretrained(checkpoint), slice(48, 48 + 48)  # of the second scene
    seed = scene_seeds(0, [{"first_picture_of": k} for k in range(4)])[1]
    pictures = [next(read_pictures(recorded, read_table(recorded).episodes[1:2], key))[:1] for key in (TOP, WRIST)]
    image = torch.from_numpy(np.concatenate(pictures, axis=2))
    state = torch.from_numpy(read_table(recorded).states[30:31])
    for clip in range(3):
        rng = torch.Generator().manual_seed(stream_seed(seed, "clip", clip) if clip else seed)
        made = generator.sample(
            image, state, ["push the square"], num_inference_steps=2, order="synchronised", rng=[rng]
        )
        rows = slice(window.start + 16 * clip, window.start + 16 * (clip + 1))
        np.testing.assert_allclose(table.actions[rows], made.actions[0], atol=2e-3)
        np.testing.assert_allclose(table.states[rows], made.states[0, :-1], atol=2e-3)  # the seam's row once
        image, state = made.frames[:, -1], made.states[:, -1]
    drift = result(tmp_path / "out")["drift"]
    assert [(clip["clip"], clip["episodes"], clip.get("compared")) for clip in drift] == [
        (1, 4, 4),
        (2, 4, 2),
        (3, 4, None),
    ]
    for clip in drift:
        assert 0 <= clip["at_limits"] <= 1
        assert clip["sharpness"] > 0
        assert clip["sharpness_of_first_picture"] == drift[0]["sharpness_of_first_picture"]
    for clip in drift[:2]:
        assert clip["psnr"] < clip["psnr_of_first_picture"]  # two steps of training
        assert clip["action_distance_of_mean"] > 0
    assert "clip 2: " in said.out
    assert f"(first picture {drift[1]['psnr_of_first_picture']:.2f})" in said.out


def test_clips_of_a_generator_that_saw_starts_alone_are_warned_of(
    checkpoint: Path, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = checkpoint / "windows.json"
    for change, warning in (
        ({"random_start": False}, "was trained on windows at the start of episodes alone (random_start=false)"),
        ({"lengths": {"push the square": [12]}}, "no recorded length that was drawn goes beyond the first clip"),
        ({"lengths": {"lift": [20]}}, "2 instructions have no recording, such as 'pull the square'"),
        ({"random_start": None}, "windows.json: damaged; expected random_start"),
        ({"lengths": {"lift": [0]}}, "windows.json: damaged; expected random_start"),
        (None, "does not say whether it learned from the middle of episodes"),
    ):
        with changed(windows, change):
            done = synthesize(checkpoint, recorded, tmp_path / "out", "clips=2", "overwrite=true")
            said = capsys.readouterr().err
            assert warning in said
            assert done == 2 * ("damaged" in warning)
            if change is not None and "lift" in change.get("lengths", {}) and not done:
                assert set(read_table(tmp_path / "out/dataset").lengths) == {19}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for words, message in (
            (["draws=2", "clips=2"], "draws are plans of one window"),
            (["clips=0"], "clips=0: expected at least 1"),
            (["episode_lengths=any"], "episode_lengths=any: expected one of sampled, window"),
        ):
            assert cli.main(["synthesize", f"checkpoint={checkpoint}", "tasks=[push]", *words]) == 2
            assert message in capsys.readouterr().err


@contextmanager
def changed(path: Path, change: dict | None) -> Iterator[None]:
    """A JSON file with other values, or without it; afterwards as it was."""
    before = path.read_text()
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps({**json.loads(before), **change}))
    yield
    path.write_text(before)


def test_instructions_name_the_views_if_the_generator_learned_so(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In training, sampling, metrics and scores, without being told again; in the data they stay as they were."""
    words = [str(recorded), *SMALL, "name_views=true"]
    read: list[str] = []

    def note(method: Callable) -> Callable:
        def noted(self: Generator, *arguments: object, **options: object) -> object:
            read.extend(arguments[0]["instruction"] if isinstance(arguments[0], dict) else arguments[2])
            return method(self, *arguments, **options)

        return noted

    monkeypatch.setattr(Generator, "loss", note(Generator.loss))
    monkeypatch.setattr(Generator, "sample", note(Generator.sample))
    views = "; multi-view video: left: top camera, right: wrist camera"
    run("train-generator", *words, f"out={tmp_path / 'generator'}")
    checkpoint = tmp_path / "generator/generator"
    assert json.loads((checkpoint / "conventions.json").read_text())["name_views"] is True
    assert synthesize(checkpoint, recorded, tmp_path / "synthetic") == 0
    data = f"dataset={recorded}"
    run(
        "evaluate-generator",
        f"checkpoint={checkpoint}",
        data,
        "allow_seen=true",
        "replay=false",
        f"out={tmp_path / 'e'}",
    )
    run("score", str(tmp_path / "synthetic/dataset"), f"checkpoint={checkpoint}", f"out={tmp_path / 'score'}")
    assert set(read) == {task + views for task in LENGTHS}
    assert set(read_table(tmp_path / "synthetic/dataset").tasks) == set(LENGTHS)
    assert cli.main(["train-generator", *words, f"cameras=[{TOP}]", f"out={tmp_path / 'one'}"]) == 2
    assert f"name_views=true: {recorded} has one camera" in capsys.readouterr().err
