"""The mixture: fractions, exact batches, robots of different widths and ranges."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.base.errors import UserError
from toolkit.data.batches import (
    ROWS,
    SIZE,
    WHOLE,
    GeneratorClips,
    Mixture,
    Part,
    TokenizerClips,
    make_sources,
)
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import Conventions
from toolkit.data.episode import ACTION, ACTION_DIM_IS_PAD, ACTION_IS_PAD, STATE, SYNTHETIC
from toolkit.data.latents import LatentClips
from toolkit.data.normalizer import ACTION_FLOOR, compute_statistics, describe, describe_columns


def memory_store(lengths: list[int], state_dim: int = 2, action_dim: int = 2, scale: float = 1.0) -> ClipStore:
    """A store in memory whose states and actions are normal numbers times `scale`."""
    rng = np.random.default_rng(sum(lengths))
    rows = sum(lengths)
    return ClipStore(
        path=Path("memory"),
        frames=np.zeros((rows, 4, 4, 3), np.uint8),
        states=(scale * rng.normal(size=(rows, state_dim))).astype(np.float32),
        actions=(scale * rng.normal(size=(rows, action_dim))).astype(np.float32),
        episode_starts=np.cumsum(lengths) - lengths,
        episode_lengths=np.array(lengths),
        episode_tasks=np.zeros(len(lengths), np.int64),
        tasks=["move"],
        metadata=[{} for _ in lengths],
        fps=20,
        source_id="memory",
        canvas=Canvas.single((4, 4)),
    )


def mixture(stores: list[ClipStore], weights: list[float], batch_size: int = 20, **options: Any) -> Mixture:
    return Mixture(make_sources(stores, weights, 1, **options), batch_size, 4, seed=3)


def follows(store: ClipStore, row: int, chunk: np.ndarray, padding: np.ndarray) -> bool:
    """True if the chunk holds the actions from `row` on, the episode's last one repeated where `padding`."""
    episode = int(np.searchsorted(store.episode_starts, row, side="right")) - 1
    end = store.episode_starts[episode] + store.episode_lengths[episode]
    rows = row + np.arange(len(chunk))
    return np.array_equal(chunk, store.actions[np.minimum(rows, end - 1)]) and np.array_equal(padding, rows >= end)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    weights=st.lists(st.floats(0, 1), min_size=1, max_size=4).filter(lambda w: sum(w) > 0.01),
    batch_size=st.integers(1, 40),
    step=st.integers(0, 10_000),
)
def test_every_batch_is_exact(lengths: list[int], weights: list[float], batch_size: int, step: int) -> None:
    """Shares right up to rounding, actions that follow their picture, padding past the end, the same at each call."""
    stores = [memory_store([n + k for n in lengths]) for k in range(len(weights))]
    mixed = mixture(stores, weights, batch_size)
    batch = mixed.batch(step)
    assert len(batch[STATE]) == len(batch["task"]) == batch_size
    for share, weight in zip(mixed.fractions(step % 7 + 1), mixed.weights, strict=True):
        assert abs(share - weight) <= 1 / batch_size + 1e-9
    values = [batch[key].numpy() for key in (STATE, ACTION, ACTION_IS_PAD, SYNTHETIC)]
    for state, chunk, padding, synthetic in zip(*values, strict=True):
        candidates = stores[1:] if synthetic else stores[:1]
        places = [(s, int(row)) for s in candidates for row in np.flatnonzero((s.states == state).all(axis=1))]
        assert any(follows(store, row, chunk, padding) for store, row in places)
    again = mixture(stores, weights, batch_size).batch(step)
    assert all(np.array_equal(again[key], batch[key]) for key in batch)


def test_fraction_is_realised_and_processes_share_it(store: ClipStore) -> None:
    mixed = mixture([store, store], [0.7, 0.3])
    assert mixed.fractions(200) == pytest.approx([0.7, 0.3], abs=0.01)
    assert mixed.fractions(1) == pytest.approx([0.7, 0.3], abs=0.05)  # every batch holds it, up to rounding
    assert not (mixed.batch(17)[STATE] == mixed.batch(18)[STATE]).all()
    for process in range(2):
        drawn = [float(mixed.batch(step, Part(process, 2))[SYNTHETIC].mean()) for step in range(50)]
        assert np.mean(drawn) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("kind", ["mixture", "windows", "latents", "tokenizer"])
def test_the_parts_of_a_batch_are_the_batch_of_twice_the_size(store: ClipStore, kind: str) -> None:
    """Row for row; every part knows what is padded, or labelled, in all of them."""

    def source(size: int) -> Any:
        if kind == "mixture":
            narrow = replace(store, actions=store.actions[:, :1])
            return mixture([store, narrow], [0.6, 0.4], size, pad_widths=True)
        labelled = np.arange(store.num_episodes) < 2
        clips = GeneratorClips(store, size, 17, seed=0, random_start=True, labelled=labelled)
        latents = torch.arange(clips.windows_of.sum(), dtype=torch.float32)[:, None]
        return {"windows": clips, "latents": LatentClips(clips, latents), "tokenizer": TokenizerClips(clips, 4, 2)}[
            kind
        ]

    whole, parts = source(14).batch(3), [source(7).batch(3, Part(index, 2)) for index in range(2)]
    assert WHOLE not in whole
    for index, part in enumerate(parts):
        known = part.pop(WHOLE)
        assert (known.pop(ROWS), known.pop(SIZE)) == (range(index, 14, 2), 14)
        assert part.keys() == whole.keys()
        for key, value in part.items():
            assert np.array_equal(np.asarray(value), np.asarray(whole[key][index::2])), key
        wanted = {"mixture": {ACTION_IS_PAD, ACTION_DIM_IS_PAD}, "tokenizer": set()}.get(kind, {"has_actions"})
        assert known.keys() == wanted
        assert all(np.array_equal(value, whole[key]) for key, value in known.items())


def test_sources_that_do_not_fit_are_refused(store: ClipStore) -> None:
    wider = replace(store, actions=np.zeros((len(store.actions), 7), np.float32))
    with pytest.raises(UserError, match="actions are 2 wide; expected 7, as the widest of 2 datasets; pad_widths=true"):
        mixture([replace(store, action_names=["dx", "dy"]), replace(wider, action_names=list("abcdefg"))], [1, 1])
    with pytest.raises(UserError, match="actions are 7 wide; expected 2, as the robot$"):
        mixture([store, wider], [1, 1], action_dim=2, pad_widths=True, asked_by="the robot")
    with pytest.raises(UserError, match="mixture weights"):
        mixture([store], [-1])
    with pytest.raises(UserError, match="normalization=own: expected shared or per_source"):
        mixture([store], [1], normalization="own")
    with pytest.raises(UserError, match="5 steps a second; .* has 20: the same action would last another time"):
        make_sources([memory_store([5]), replace(memory_store([5]), fps=5)], [1, 1], 1)
    with pytest.raises(UserError, match="frames are .*they cannot be mixed"):
        mixture([store, memory_store([5])], [1, 1])
    named = [replace(store, action_names=names) for names in ((), ["dx", "dy"], ["dx", "dy"], ["x", "y"])]
    mixture(named[:3], [1, 1, 1])
    with pytest.raises(UserError, match="its action_names are x, y; .* has dx, dy: .*meta/info.json"):
        mixture(named, [1, 1, 1, 1])
    mixture(named, [1, 1, 1, 1], pad_widths=True)


def test_policies_keep_what_the_numbers_of_all_their_data_mean(tmp_path: Path, store: ClipStore) -> None:
    wide, narrow, other, unnamed = (
        replace(store, action_names=names) for names in (["dx", "dy", "grip"], ["dx", "dy"], ["a", "b", "c"], ())
    )
    kept = Conventions.shared([unnamed, narrow, wide])
    assert kept.action_names == ["dx", "dy", "grip"]
    assert Conventions.shared([kept, unnamed, narrow]) == kept  # as fine-tuning goes on from it
    assert Conventions.shared([wide, other]).action_names == []
    kept.write(tmp_path)
    read = Conventions.read(tmp_path)
    assert read == replace(kept, name=str(tmp_path))
    read.check(wide)
    read.check(unnamed)
    read.check(narrow, names=False)
    with pytest.raises(UserError, match="action_names are a, b, c; .* trained on dx, dy, grip.*refit_statistics"):
        read.check(other)
    with pytest.raises(UserError, match="5 steps a second; .* was trained on 20"):
        read.check(replace(wide, fps=5), names=False)
    assert Conventions.read(tmp_path / "nowhere") is None


def test_narrow_robots_are_padded_and_masked() -> None:
    narrow, wide = memory_store([9], 2, 3), memory_store([8], 4, 5)
    mixed = mixture([narrow, wide], [1, 1], pad_widths=True)
    batch = {key: value.numpy() for key, value in mixed.batch(0).items() if key != "task"}
    of_wide = batch[SYNTHETIC].astype(bool)
    assert batch[ACTION].shape == (20, 4, 5)
    assert batch[ACTION_DIM_IS_PAD][~of_wide].tolist() == [[False] * 3 + [True] * 2] * 10
    assert not batch[ACTION_DIM_IS_PAD][of_wide].any()
    assert not batch[ACTION][~of_wide][..., 3:].any()
    assert not batch[STATE][~of_wide][:, 2:].any()
    statistics = compute_statistics([source.unpadded for source in mixed.sources])
    both = np.concatenate([narrow.actions, wide.actions[:, :3]])
    np.testing.assert_allclose(statistics[ACTION]["mean"][:3], both.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics[ACTION]["mean"][3:], wide.actions[:, 3:].mean(0), rtol=1e-5)


def test_per_source_normalisation_moves_ranges_onto_the_first() -> None:
    first, other = memory_store([400], scale=1.0), memory_store([300], scale=20.0)
    shared = mixture([first, other], [1, 1]).sources
    assert np.array_equal(shared[1].store.actions, other.actions)
    moved = mixture([first, other], [1, 1], normalization="per_source").sources
    assert np.array_equal(moved[0].store.actions, first.actions)
    wanted, found = (describe(source.store.actions, ACTION_FLOOR) for source in moved)
    for name in ("q01", "q99"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3)
    np.testing.assert_allclose(np.corrcoef(moved[1].store.actions[:, 0], other.actions[:, 0])[0, 1], 1, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 50), width=st.integers(1, 6), scale=st.floats(1e-6, 1e6), shift=st.floats(-1e3, 1e3))
def test_normalising_and_back_is_the_identity(rows: int, width: int, scale: float, shift: float) -> None:
    """The range is never empty, and the statistics of the parts together are those of the whole."""
    values = (np.random.default_rng(rows).normal(size=(rows, width)) * scale + shift).astype(np.float32)
    found = describe(values, ACTION_FLOOR)
    low, spread = found["q01"].astype(float), (found["q99"] - found["q01"]).astype(float)
    assert (spread > 0).all()
    back = (2 * (values - low) / spread - 1 + 1) / 2 * spread + low
    np.testing.assert_allclose(back, values, rtol=1e-5, atol=1e-5 * max(scale, abs(shift)))
    halves = describe_columns([values[: rows // 2], values[rows // 2 :]] if rows > 1 else [values], ACTION_FLOOR)
    for name, value in found.items():
        np.testing.assert_array_equal(halves[name], value)
