"""A lower rate by time stamps: what stays, and what the actions between become."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recipes import cli
from toolkit.base.errors import UserError
from toolkit.data.cache import open_clips
from toolkit.data.clips import ClipStore
from toolkit.data.episode import PICTURE_EVERY, Episode
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.resampling import Resampling, resampled

NONE = np.zeros(2, bool)


@pytest.mark.parametrize(
    ("fps", "target", "rows"),
    [
        (30, 10, [0, 3, 6, 9]),
        (30, 12, [0, 2, 5, 7, 10]),
        (15, 10, [0, 1, 3, 4, 6, 7, 9, 10]),
        (29.97, 10, [0, 3, 6, 9]),
    ],
)
def test_the_rows_nearest_in_time_stay(fps: float, target: float, rows: list[int]) -> None:
    change = Resampling(fps, target, "absolute", NONE)
    kept = change.rows(change.even(12), "x")
    assert kept.tolist()[: len(rows)] == rows
    times = np.arange(len(kept)) / target
    assert np.abs(kept / fps - times).max() <= 0.5 / fps + 1e-9
    assert (np.diff(kept) > 0).all()


def test_time_stamps_count_where_there_are_any() -> None:
    """Jitter moves the nearest row; of a pause nothing is made up."""
    change = Resampling(30, 10, "absolute", NONE)
    times = np.array([0, 0.03, 0.09, 0.12, 0.17, 0.2, 0.23, 2.2, 2.24, 2.31])
    assert change.rows(times, "x").tolist() == [0, 2, 5, 7, 9]


def test_stamps_that_cannot_be_resampled_are_named() -> None:
    change = Resampling(30, 10, "absolute", NONE)
    for times, message in (
        (np.array([0, 0.1, 0.05]), "a b: its time stamps do not rise"),
        (np.array([0.0]), "1 steps at 30 a second are 1 at 10"),
        (np.array([0, 0.03]), "2 steps at 30 a second are 1 at 10"),
    ):
        with pytest.raises(UserError, match=message):
            change.rows(times, "a b")
    assert change.rows(np.array([0, 0.1, 1e12]), "x").tolist() == [0, 1, 2]  # a gap takes no memory


def test_absolute_actions_are_picked_deltas_added_and_grippers_held() -> None:
    """So that the state after an action is the one that stays next, whatever the kind of the actions."""
    moves = np.random.default_rng(0).normal(size=(11, 2))
    moves[:, 1] = np.arange(11) % 4  # a gripper
    place = np.cumsum(moves[:, 0])  # after each step
    states = np.concatenate([[0], place[:-1]])
    held = np.array([False, True])
    delta, absolute = (Resampling(30, 10, kind, held) for kind in ("delta", "absolute"))
    rows = delta.rows(delta.even(11), "x")
    summed = delta.actions(moves, rows)
    np.testing.assert_allclose(states[rows[:-1]] + summed[:-1, 0], states[rows[1:]])
    assert summed[:, 1].tolist() == [2, 1, 0, 2]  # the last of each interval
    targets = np.stack([place, moves[:, 1]], axis=1)
    np.testing.assert_allclose(absolute.actions(targets, rows)[:-1, 0], states[rows[1:]])
    assert absolute.actions(targets, rows)[:, 1].tolist() == [2, 1, 0, 2]


def test_a_clip_store_at_a_lower_rate(store: ClipStore) -> None:
    assert resampled(store, None, "delta", None) is store
    slow = resampled(store, 10, "delta", ["0"])
    assert (slow.fps, slow.num_episodes) == (10, store.num_episodes)
    for episode in range(store.num_episodes):
        now, before = (s.rows_of(np.array([episode])) for s in (slow, store))
        assert np.array_equal(slow.frames[now], store.frames[before[::2]])
        assert np.array_equal(slow.states[now], store.states[before[::2]])
        assert np.array_equal(slow.actions[now][:-1, 0], store.actions[before[1::2]][: len(now) - 1, 0])  # held
    window = slow.generator_batch(np.array([1]), np.array([2]), 3)
    assert np.array_equal(window["frames"][0], store.frames[store.episode_starts[1] + np.array([4, 6, 8])])
    with pytest.raises(UserError, match=r"resample_fps=40: .* has 20 steps a second; a rate can be lowered"):
        resampled(store, 40, "absolute", None)
    with pytest.raises(UserError, match="a new picture every 3 of 20 steps a second, no whole"):
        resampled(replace(store, metadata=[{PICTURE_EVERY: 3}] * store.num_episodes), 10, "absolute", None)
    with pytest.raises(UserError, match="a new picture every 2 of 30 steps"):  # every other picture would be old
        resampled(replace(store, fps=30, metadata=[{PICTURE_EVERY: 2}] * 6), 10, "absolute", None)
    assert resampled(replace(store, metadata=[{PICTURE_EVERY: 4}] * 6), 10, "absolute", None).metadata[0] == {
        PICTURE_EVERY: 2
    }


def test_import_resamples_and_robots_of_two_rates_are_mixed(
    dataset: Path, tmp_path: Path, moving_square: Callable[..., Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", str(dataset), "resample_fps=10"]
    assert cli.main([*words, f"out={tmp_path / 'guessed'}"]) == 0
    assert "to resample they are taken as absolute. Give action_kind=" in capsys.readouterr().err
    assert cli.main([*words, "action_kind=delta", "absolute_dimensions=[]", f"out={tmp_path / 'slow'}"]) == 0
    assert capsys.readouterr().err.count("warning") == 0
    slow, fast = read_table(tmp_path / "slow/dataset"), read_table(dataset)
    assert [len(slow.lengths), *slow.lengths] == [4, 9, 9, 9, 9]
    assert np.array_equal(slow.states, fast.states.reshape(4, 17, 2)[:, ::2].reshape(-1, 2))
    np.testing.assert_allclose(slow.actions[0], fast.actions[:2].sum(0), rtol=1e-6)
    assert all(row["recorded_fps"] == 20 for row in slow.metadata)
    imported = json.loads((tmp_path / "slow/run.json").read_text())["result"]
    assert (imported["fps"], imported["fps_from"]) == (10, "meta/info.json, resampled from 20")
    with EpisodeWriter(tmp_path / "other", 10, ["y", "x"], ["dy", "dx"]) as writer:
        writer.add(moving_square(9))
    both = f"[{dataset},{tmp_path / 'other'}]"
    train = ["image_size=32", "optim.steps=1", "optim.batch_size=2"]
    for command in (["pretrain", f"real={both}"], ["train-generator", f"dataset={both}", "generator.num_frames=9"]):
        assert cli.main([*command, *train, f"out={tmp_path / 'no'}"]) == 2
        assert "resample_fps= lowers all to one" in capsys.readouterr().err
    mixed = ["resample_fps=10", "action_kind=delta", "tokenizer_optim.steps=1", f"out={tmp_path / 'generator'}"]
    assert cli.main([*command, *train, *mixed]) == 0
    assert f"{dataset}: 20 steps a second, resampled to 10" in capsys.readouterr().out
    told = json.loads((tmp_path / "generator/generator/conventions.json").read_text())
    assert told["fps"] == 10
    assert cli.main(["pretrain", f"real={both}", *train, *mixed[:2], f"out={tmp_path / 'policy'}"]) == 0
    checkpoint = f"checkpoint={tmp_path / 'policy/pretrained_model'}"
    assert cli.main(["evaluate", checkpoint, f"dataset={dataset}", f"out={tmp_path / 'e'}"]) == 2
    assert "vag import resample_fps=10 lowers it" in capsys.readouterr().err
    assert open_clips(tmp_path / "other", 32).fps == 10
