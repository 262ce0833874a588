"""Which episodes take part: rules, weights, and the control with shuffled actions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.base.errors import UserError
from toolkit.data.augmentation import Augmented
from toolkit.data.batches import Mixture, WeightedDataset
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from toolkit.data.episode import ACTION, IMAGE, PICTURE_EVERY
from toolkit.data.selection import balanced, first_of_each, select, subset, weights_by, with_shuffled_actions

LENGTHS = np.array([3, 5, 2, 4])


def store() -> ClipStore:
    """Four episodes of two instructions; states and actions tell the episode."""
    episodes = np.repeat(np.arange(4), LENGTHS)
    rng = np.random.default_rng(0)
    return ClipStore(
        path=Path("clips.h5"),
        frames=rng.integers(0, 255, (14, 16, 16, 3), dtype=np.uint8),
        states=np.stack([episodes, np.arange(14)], axis=1).astype(np.float32),
        actions=np.stack([episodes, np.arange(14)], axis=1).astype(np.float32),
        episode_starts=np.cumsum(LENGTHS) - LENGTHS,
        episode_lengths=LENGTHS,
        episode_tasks=np.array([0, 1, 0, 1]),
        tasks=["a", "b"],
        metadata=[{"score": s, "replay_success": s < 3} for s in (4.0, 1.0, 2.0, 3.0)],
        fps=10.0,
        source_id="x",
        canvas=Canvas.single((16, 16)),
    )


def test_a_subset_keeps_whole_episodes() -> None:
    part = subset(store(), np.array([1, 3]))
    assert part.states[:, 0].tolist() == [1] * 5 + [3] * 4
    assert part.episode_starts.tolist() == [0, 5]
    assert [row["score"] for row in part.metadata] == [1.0, 3.0]
    assert part.instruction(1) == "b"
    np.testing.assert_array_equal(part.frames, store().frames[part.states[:, 1].astype(int)])
    assert first_of_each(store().episode_tasks, 1).tolist() == [0, 1]
    whole, other = subset(store(), np.arange(4)), subset(store(), np.array([0, 1]))
    assert whole.source_id == store().source_id
    assert len({whole.source_id, part.source_id, other.source_id}) == 3  # what is cached of one is not of another
    assert subset(store(), np.array([1, 0, 2, 3])).instruction(0) == "b"


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ([], [0, 1, 2, 3]),
        (["score<=3"], [1, 2, 3]),
        (["score >= 1.5", "replay_success==1"], None),  # nothing of the second instruction
        (["score<=50%"], [1, 2]),  # the better of each instruction
        (["replay_success==1"], [1, 2]),
    ],
)
def test_rules_choose_episodes(rules: list[str], kept: list[int] | None) -> None:
    clips = store()
    if kept is None:
        with pytest.raises(UserError, match="leaves no episode of 1 of 2 tasks"):
            select(rules, clips.metadata, clips.episode_tasks, "data")
    else:
        assert np.flatnonzero(select(rules, clips.metadata, clips.episode_tasks, "data")).tolist() == kept


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("score<3", "cannot read 'score<3'"),
        ("score<=200%", "cannot read"),
        ("scor<=2", "data: episode 0 has no number 'scor'.*score"),
    ],
)
def test_rules_that_make_no_sense_are_named(rule: str, message: str) -> None:
    clips = store()
    with pytest.raises(UserError, match=message):
        select([rule], clips.metadata, clips.episode_tasks, "data")


def test_weights_fall_with_the_rank_within_an_instruction() -> None:
    clips = store()
    weights = weights_by("score", clips.metadata, clips.episode_tasks, "data")
    assert weights.tolist() == [0.5, 1.5, 1.5, 0.5]
    source = WeightedDataset(clips, 1.0, 2, 2, episode_weights=np.array([0.0, 1.0, 0.0, 3.0]))
    drawn = Mixture([source], 1000, 2, seed=0).batch(0)[ACTION][:, 0, 0].numpy()
    counts = {int(value): int((drawn == value).sum()) for value in np.unique(drawn)}
    assert counts.keys() == {1, 3}
    assert counts[3] / counts[1] == pytest.approx(3 * 4 / 5, rel=0.25)  # weight times length


def test_the_best_have_the_most_weight_whatever_the_direction_of_their_score() -> None:
    tasks, scores = np.zeros(4, int), (4.0, 1.0, 2.0, 2.0)
    rows = [{"score": s, "score_nearest": s, "replay_success": s > 1} for s in scores]
    assert weights_by("score", rows, tasks, "x").tolist() == [0.25, 1.75, 1.0, 1.0]  # equal scores, equal weights
    assert weights_by("score_nearest", rows, tasks, "x").tolist() == [1.75, 0.25, 1.0, 1.0]
    assert weights_by("replay_success", rows, tasks, "x").tolist() == [1.25, 0.25, 1.25, 1.25]


def test_shuffled_actions_are_those_of_another_episode() -> None:
    clips = store()
    shuffled = with_shuffled_actions(clips, seed=0)
    np.testing.assert_array_equal(shuffled.states, clips.states)
    taken = [np.unique(shuffled.actions[clips.rows_of(np.array([e])), 0]) for e in range(4)]
    assert all(len(owner) == 1 for owner in taken)
    assert sorted(float(owner[0]) for owner in taken) == [0, 1, 2, 3]
    assert all(int(owner[0]) != e for e, owner in enumerate(taken))
    assert all(clips.episode_tasks[int(owner[0])] == clips.episode_tasks[e] for e, owner in enumerate(taken))
    with pytest.raises(UserError, match="two episodes or more of"):
        with_shuffled_actions(subset(clips, np.array([0])), 0)


def test_a_rule_of_chance_keeps_as_many_as_the_rule_it_is_the_control_of() -> None:
    clips = store()
    where = (clips.metadata, clips.episode_tasks, "data")
    kept = [tuple(select(["random<=50%"], *where, seed)) for seed in range(9)]
    assert {sum(one) for one in kept} == {sum(select(["score<=50%"], *where))}
    assert len(set(kept)) > 1
    assert balanced(np.array([0, 0, 0, 1])).tolist() == [2 / 3, 2 / 3, 2 / 3, 2]


def test_only_rows_with_a_picture_of_their_own_are_drawn() -> None:
    """A camera slower than the robot repeats its last picture: a policy must not act on that."""
    clips = replace(store(), metadata=[{PICTURE_EVERY: 2}] * 4)
    source = WeightedDataset(clips, 1.0, 2, 2)
    episodes, steps = Mixture._rows(source, 500, np.random.default_rng(0))
    assert set(steps % 2) == {0}
    assert {(e, s) for e, s in zip(episodes, steps, strict=True)} == {
        (e, s) for e in range(4) for s in range(0, clips.episode_lengths[e], 2)
    }
    slow = replace(store(), metadata=[{PICTURE_EVERY: 1}] * 4)
    same = Mixture([WeightedDataset(slow, 1.0, 2, 2)], 8, 2, seed=0).batch(5)
    assert torch.equal(same[ACTION], Mixture([WeightedDataset(store(), 1.0, 2, 2)], 8, 2, seed=0).batch(5)[ACTION])


def test_augmented_pictures_repeat_and_leave_the_rest_alone() -> None:
    mixture = Mixture([WeightedDataset(store(), 1.0, 2, 2)], 8, 2, seed=0)
    plain, first, again, other = mixture.batch(3), *(Augmented(mixture, seed).batch(3) for seed in (0, 0, 1))
    assert (first[IMAGE] == again[IMAGE]).all()
    assert (first[IMAGE] != other[IMAGE]).any()
    changed = (first[IMAGE] != plain[IMAGE]).flatten(1).any(1)
    assert changed.all()
    assert 0 <= first[IMAGE].min() <= first[IMAGE].max() <= 1
    assert (first[ACTION] == plain[ACTION]).all()
