"""Which episodes are held out, the windows on which their loss is measured, and when that loss has risen."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.base.errors import UserError
from toolkit.data.clips import ClipStore, write_clips
from toolkit.data.episode import Episode
from toolkit.data.held_out import FixedWindows, hold_out, part_of, spread_windows
from toolkit.data.selection import subset
from toolkit.training.loss_curve import LossCurve


@pytest.fixture
def of(moving_square: Callable[..., Episode], tmp_path: Path) -> Callable[..., ClipStore]:
    """of(instructions, metadata=...) -> a store of short episodes."""

    def build(tasks: Sequence[str], metadata: Sequence[dict[str, Any]] | None = None, first: int = 0) -> ClipStore:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5"
        rows = metadata or [{}] * len(tasks)
        episodes = [
            replace(moving_square(first + i, length=5, size=16), task=task, metadata=dict(row))
            for i, (task, row) in enumerate(zip(tasks, rows, strict=True))
        ]
        write_clips(path, episodes, 5 * len(tasks), 20, str(path))
        return ClipStore.open(path)

    return build


def held(store: ClipStore, fraction: float = 0.1, seed: int = 0) -> list[int]:
    return np.flatnonzero(hold_out([store], [True], fraction, seed)[0]).tolist()


def test_a_tenth_of_each_instruction_by_the_seed(of: Callable[..., ClipStore]) -> None:
    store = of(["a"] * 20 + ["b"] * 10 + ["c"] * 30)
    chosen = held(store)
    assert np.bincount(store.episode_tasks[chosen]).tolist() == [2, 1, 3]
    assert held(store) == chosen
    assert len({tuple(held(store, seed=seed)) for seed in range(5)}) > 1
    assert len(held(store, 0.5)) == 30
    assert held(store, 0) == []


@pytest.mark.parametrize(("tasks", "count"), [("aaaa", 0), ("aaaab", 1), ("abcde", 1), ("aab", 0), ("a" * 9 + "b", 1)])
def test_few_episodes_give_one_or_none_and_the_only_one_of_an_instruction_last(
    tasks: str, count: int, of: Callable[..., ClipStore]
) -> None:
    store = of(tasks)
    for seed in range(6):
        chosen = held(store, seed=seed)
        assert len(chosen) == count
        assert [tasks[i] for i in chosen] == ["a"] * count or len(set(tasks)) == len(tasks)


def test_datasets_of_which_nearly_every_episode_has_its_own_instruction_give_a_tenth_too(
    of: Callable[..., ClipStore],
) -> None:
    chosen = held(of(["same", "same", *(f"task {i}" for i in range(38))]))
    assert len(chosen) == 4


def test_a_scene_is_on_one_side_whichever_dataset_it_is_in(of: Callable[..., ClipStore]) -> None:
    scenes = [{"task_name": "push", "seed": i // 2} for i in range(24)]
    store, other = of(["a"] * 24, scenes), of(["a", "b"] * 4, scenes[:8], first=100)
    of_both = 0
    for seed in range(6):
        chosen = hold_out([store, other], [True, True], 0.25, seed)
        assert 6 <= chosen[0].sum() + chosen[1].sum() <= 8
        of_both += int(chosen[1].any())
        told = [
            {row["seed"] for row, out in zip(part.metadata, own, strict=True) if out}
            for part, own in zip((store, other), chosen, strict=True)
        ]
        left = [
            {row["seed"] for row, out in zip(part.metadata, own, strict=True) if not out}
            for part, own in zip((store, other), chosen, strict=True)
        ]
        assert not (told[0] | told[1]) & (left[0] | left[1])
    assert of_both > 0
    twice = hold_out([store, store], [True, True], 0.25, 3)  # with the same recordings
    assert twice[0].tolist() == twice[1].tolist()
    assert twice[0].any()


def test_a_scene_larger_than_the_share_is_held_out_whole(of: Callable[..., ClipStore]) -> None:
    store = of(["a"] * 9, [{"task_name": "push", "seed": i // 3} for i in range(9)])
    assert len({i // 3 for i in held(store)}) == 1
    assert len(held(store)) == 3


def test_synthetic_episodes_are_not_held_out_and_their_scenes_last(of: Callable[..., ClipStore]) -> None:
    recorded = of(["a"] * 12, [{"task_name": "push", "seed": i} for i in range(12)])
    made = of(["a"] * 9, [{"task_name": "push", "seed": i, "source": "synthetic"} for i in range(9)], first=50)
    for seed in range(6):
        for takes_part in (True, False):
            first, second = hold_out([recorded, made], [True, takes_part], 0.1, seed)
            assert not second.any()
            assert np.flatnonzero(first).tolist()[0] >= 9


def test_parts_are_views_with_a_name_of_their_own(of: Callable[..., ClipStore]) -> None:
    store = of(["a", "b", "a", "b"])
    part = part_of(store, np.array([3, 1]), np.array([2, 0]))
    assert part.frames is store.frames
    assert part.source_id not in (store.source_id, part_of(store, np.array([3, 1])).source_id)
    assert part_of(store, np.arange(4)) is store
    own, copied = part.generator_batch(np.array([0]), np.array([0]), 3), subset(store, np.array([3]))
    expected = copied.generator_batch(np.array([0]), np.array([2]), 3)
    assert all(np.array_equal(own[key], expected[key]) for key in own)
    assert own["is_pad"].tolist() == [[False, False]]


def test_windows_are_spread_over_episodes_and_what_they_cover() -> None:
    episodes, starts = spread_windows(np.full(100, 30), 10, 32, True)
    assert len(set(episodes.tolist())) == 32
    assert starts.min() < 3 < 17 < starts.max() <= 20
    episodes, starts = spread_windows(np.array([30, 11, 5]), 10, 32, True)
    assert np.bincount(episodes).tolist() == [10, 2, 1]
    assert starts[:10].tolist() == np.linspace(0, 20, 10).round().tolist()
    episodes, starts = spread_windows(np.full(3, 30), 10, 32, False)
    assert (episodes.tolist(), starts.tolist()) == ([0, 1, 2], [0, 0, 0])


def test_every_window_is_a_pair_in_one_of_the_batches(of: Callable[..., ClipStore]) -> None:
    windows = FixedWindows(of(["a"] * 7), 1, 3, 0, False, num_joint=lambda size: size // 4)
    assert windows.size == 21
    pairs = [windows.draw(draw)[0][: 21 // 4] for draw in range(4)]
    assert set(np.concatenate(pairs).tolist()) == set(range(7))
    assert all(np.bincount(windows.draw(draw)[0]).tolist() == [3] * 7 for draw in range(4))


@pytest.mark.parametrize(
    ("losses", "risen", "begins"),
    [
        ([3.0, 2.0, 1.0], False, []),
        ([1.0, 1.019, 1.0], False, []),
        ([2.0, 1.0, 1.1], True, []),
        ([2.0, 1.0, 1.1, 1.2, 1.3, 1.4], True, [5]),
        ([1.0, 1.001, 1.002, 1.003, 1.03], True, [5]),
        ([1.0, 1.1, 1.2, 1.3, 0.9, 1.0, 1.1, 1.2], True, [4]),
        ([1.0], False, []),
    ],
)
def test_a_loss_has_risen_by_more_than_noise(
    losses: list[float], risen: bool, begins: list[int], tmp_path: Path
) -> None:
    curve = LossCurve.open(tmp_path / "curve.json")
    told = []
    for step, loss in enumerate(losses, 1):
        curve.add(step, loss)
        told += [step] if curve.begins_to_rise else []
    assert (curve.has_risen, told) == (risen, begins)
    assert LossCurve.open(tmp_path / "curve.json") == curve
    assert losses[curve.best] == min(losses)


def test_a_curve_forgets_what_training_falls_behind(tmp_path: Path) -> None:
    curve = LossCurve(tmp_path / "curve.json")
    for step, loss in ((10, 2.0), (20, 1.0), (30, 3.0)):
        curve.add(step, loss)
    curve.forget_after(20)
    assert curve.steps == [10, 20]
    assert not curve.has_risen
    assert not curve.is_lowest(1.0)
    curve.forget_after(0)
    assert curve.is_lowest(9.0)


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"points": [{"step": 1}]}', '{"points": [{"step": 0, "loss": 1}]}', '{"points": 3}'],
)
def test_a_damaged_curve_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "curve.json").write_text(text)
    with pytest.raises(UserError, match=r"curve.json: (damaged|holds list)"):
        LossCurve.open(tmp_path / "curve.json")
    falling = '{"points": [{"step": 2, "loss": 1}, {"step": 1, "loss": 1}]}'
    (tmp_path / "curve.json").write_text(falling)
    with pytest.raises(UserError, match="do not rise"):
        LossCurve.open(tmp_path / "curve.json")
