"""Datasets on disk: what goes in comes out, and damage is named."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from toolkit.base.errors import UserError
from toolkit.data.batches import GeneratorClips, TokenizerClips
from toolkit.data.cache import open_clips
from toolkit.data.clips import ClipStore
from toolkit.data.episode import ACTION, IMAGE, STATE, Episode
from toolkit.data.formats import lerobot_read
from toolkit.data.formats.lerobot_stats import level_statistics
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.normalizer import ACTION_FLOOR, compute_statistics, describe

MakeEpisode = Callable[..., Episode]


def test_dataset_round_trip(dataset: Path, moving_square: MakeEpisode) -> None:
    for seed, episode in enumerate(lerobot_read.read_episodes(dataset)):
        wanted = moving_square(seed)
        assert np.array_equal(episode.actions, wanted.actions)
        assert np.array_equal(episode.states, wanted.states)
        assert episode.task == wanted.task
        assert episode.metadata == {"seed": seed, "task_name": wanted.metadata["task_name"]}
        error = np.square(episode.images.astype(float) - wanted.images).mean()
        assert 10 * np.log10(255**2 / error) > 45
    assert seed == 3


def test_lerobot_reads_the_dataset(dataset: Path, moving_square: MakeEpisode) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    loaded = LeRobotDataset("local/dataset", root=dataset, delta_timestamps={ACTION: [0.0, 0.05]})
    assert loaded.num_episodes == 4
    item = loaded[1]
    wanted = moving_square(0)
    assert item["task"] == wanted.task
    np.testing.assert_array_equal(item[ACTION].numpy(), wanted.actions[1:3])
    assert item[IMAGE].shape == (3, 32, 32)
    statistics = loaded.meta.stats[ACTION]
    every = np.concatenate([moving_square(s).actions for s in range(4)])
    np.testing.assert_allclose(statistics["q99"], np.quantile(every, 0.99, axis=0), rtol=1e-5)


def test_picture_statistics_are_exact(dataset: Path, moving_square: MakeEpisode) -> None:
    pixels = np.concatenate([moving_square(0).images[:, :, ::2], np.zeros((2, 32, 16, 3), np.uint8)])
    counts = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)])
    found = level_statistics(counts, {"q01": 0.01, "q50": 0.5, "q99": 0.99})
    flat = pixels.reshape(-1, 3)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(found[name], getattr(np, name)(flat, axis=0), atol=1e-9)
    for name, q in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        np.testing.assert_array_equal(found[name], np.quantile(flat, q, axis=0, method="inverted_cdf"))
    saved = json.loads((dataset / "meta/stats.json").read_text())[IMAGE]
    every = np.concatenate([moving_square(s).images.reshape(-1, 3) for s in range(4)]) / 255
    for name in ("mean", "min", "max"):
        np.testing.assert_allclose(np.ravel(saved[name]), getattr(np, name)(every, axis=0), atol=1e-6)


def test_writer_leaves_nothing_behind_after_an_error(tmp_path: Path, moving_square: MakeEpisode) -> None:
    target = tmp_path / "dataset"
    broken = moving_square(1)
    broken.actions[3, 0] = np.nan

    def write() -> None:
        with EpisodeWriter(target, 20, ["y", "x"], ["a", "b"]) as writer:
            writer.add(moving_square(0))
            writer.add(broken)

    with pytest.raises(UserError, match="episode 1: 'action' holds NaN"):
        write()
    assert list(tmp_path.iterdir()) == []


def damaged(dataset: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "damaged"
    shutil.copytree(dataset, copy)
    return copy


def test_missing_key_lists_what_exists(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"no camera 'observation.wrist'; it has observation.image\. Choose"):
        open_clips(dataset, 32, ["observation.wrist"])


@pytest.mark.parametrize("pattern", ["data/**/*.parquet", "videos/**/*.mp4", "meta/episodes/**/*.parquet"])
def test_truncated_files_are_named(dataset: Path, tmp_path: Path, pattern: str) -> None:
    copy = damaged(dataset, tmp_path)
    path = next(copy.glob(pattern))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{path.name}|truncated"):
        open_clips(copy, 32)


def test_nan_and_wrong_version_are_named(dataset: Path, tmp_path: Path) -> None:
    copy = damaged(dataset, tmp_path)
    path = next(copy.glob("data/**/*.parquet"))
    table = pd.read_parquet(path)
    table.at[20, "action"] = np.array([np.nan, 0.0], dtype=np.float32)
    table.to_parquet(path)
    with pytest.raises(UserError, match=r"'action' holds NaN or infinity \(episode 1\)"):
        open_clips(copy, 32)
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v2.1"}))
    with pytest.raises(UserError, match=r"LeRobotDataset v2.1; expected v3"):
        open_clips(copy, 32)
    with pytest.raises(UserError, match="not found"):
        open_clips(tmp_path / "nowhere", 32)


def test_tokenizer_batches_are_a_first_frame_and_whole_groups(store: ClipStore, episodes: list[Episode]) -> None:
    clips = GeneratorClips(store, 5, 17, seed=0, random_start=False)
    frames = TokenizerClips(clips, temporal_stride=4, groups=2).batch(0)["frames"].numpy()
    assert frames.shape == (5, 9, 32, 32, 3)
    chosen, _ = clips.draw(0)
    for picture, index in zip(frames, chosen, strict=True):
        images = episodes[index].images
        assert np.array_equal(picture[0], images[0])
        assert any(np.array_equal(picture[1:5], images[1 + 4 * g : 5 + 4 * g]) for g in range(4))
    clips = GeneratorClips(store, 5, 5, seed=0, random_start=False, frame_stride=4)
    frames = TokenizerClips(clips, temporal_stride=2, groups=1).batch(0)["frames"].numpy()
    for picture, index in zip(frames, clips.draw(0)[0], strict=True):
        images = episodes[index].images
        assert any(np.array_equal(picture[1:], images[[4 * g + 4, 4 * g + 8]]) for g in (0, 2))


def test_instructions_lie_in_the_index_or_in_a_column(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    tasks = pd.read_parquet(copy / "meta/tasks.parquet")
    wanted = lerobot_read.read_table(dataset).tasks
    plain = pd.DataFrame({"task_index": tasks["task_index"].to_numpy(), "task": list(tasks.index)})
    plain.to_parquet(copy / "meta/tasks.parquet", index=False)
    assert lerobot_read.read_table(copy).tasks == wanted
    plain.drop(columns="task").to_parquet(copy / "meta/tasks.parquet", index=False)
    with pytest.raises(
        UserError, match=r"meta/tasks.parquet has no instructions; expected .* found: index, task_index"
    ):
        lerobot_read.read_table(copy)
    (copy / "meta/tasks.parquet").unlink()
    with pytest.raises(UserError, match=r"no file 'tasks.parquet'"):
        lerobot_read.read_table(copy)


def test_an_instruction_that_changes_on_the_way_is_said(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    (path,) = (copy / "data").rglob("*.parquet")
    rows = pd.read_parquet(path)
    late = (rows["episode_index"] == 2) & (rows["frame_index"] > 9)
    rows.assign(task_index=rows["task_index"].where(~late, 1 - rows["task_index"])).to_parquet(path, index=False)
    assert lerobot_read.read_table(copy).tasks == lerobot_read.read_table(dataset).tasks
    said = capsys.readouterr().err
    assert "in 1 of 4 episodes the instruction changes on the way (first in episode 2)" in said
    assert said.count("warning") == 1


def test_names_in_a_nested_list_are_names(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"][ACTION]["names"] = [["left", "right"]]
    (copy / "meta/info.json").write_text(json.dumps(info))
    assert open_clips(copy, 32).action_names == ["left", "right"]


def test_actions_are_labelled_where_they_may_be_used(store: ClipStore) -> None:
    labelled = np.arange(store.num_episodes) < 2
    clips = GeneratorClips(store, 8, 17, seed=0, random_start=False, labelled=labelled)
    assert clips.batch(0)["has_actions"].tolist() == [index < 2 for index in clips.draw(0)[0]]


def test_pairs_and_plans_are_two_draws(store: ClipStore) -> None:
    """Plans need labels; pairs have them in proportion, rounded up, and every video takes part."""
    labelled = np.arange(store.num_episodes) == 4
    clips = GeneratorClips(store, 64, 17, seed=0, random_start=False, labelled=labelled, num_joint=lambda _: 13)
    drawn = np.stack([clips.draw(step)[0] for step in range(40)])
    assert (drawn[:, 13:] == 4).all()
    assert ((drawn[:, :13] == 4).sum(axis=1) == math.ceil(13 / store.num_episodes)).all()
    assert len(set((drawn[:, :13] == 4).argmax(axis=1))) > 5  # anywhere among the pairs
    assert set(drawn[:, :13].flat) == set(range(store.num_episodes))
    everything = [GeneratorClips(store, 64, 17, 0, False, num_joint=joint).draw(3)[0] for joint in (lambda _: 13, abs)]
    np.testing.assert_array_equal(*everything)  # where all have labels there is nothing to choose


def test_episodes_are_drawn_by_their_shares(store: ClipStore) -> None:
    shares = np.zeros(store.num_episodes)
    shares[[0, 2]] = 0.25, 0.75
    drawn, _ = GeneratorClips(store, 1000, 17, seed=0, random_start=False, shares=shares).draw(0)
    assert set(drawn) == {0, 2}
    assert (drawn == 2).mean() == pytest.approx(0.75, abs=0.05)


def test_statistics_have_floors(store: ClipStore) -> None:
    statistics = compute_statistics([store])
    np.testing.assert_allclose(statistics[STATE]["mean"], store.states.mean(0), rtol=1e-5)
    assert statistics[IMAGE]["mean"].shape == (3, 1, 1)
    still = describe(np.full((50, 2), 0.3, np.float32), ACTION_FLOOR)
    assert still["std"] == pytest.approx([ACTION_FLOOR] * 2)
    assert (still["q99"] - still["q01"]).min() > 0


def test_a_damaged_video_is_told_in_our_words_alone(
    dataset: Path, tmp_path: Path, moving_square: MakeEpisode, capfd: pytest.CaptureFixture[str]
) -> None:
    """After an episode was encoded too: LeRobot then lets the video library write to the terminal by itself."""
    with EpisodeWriter(tmp_path / "other", 20, ["y", "x"], ["dy", "dx"]) as writer:
        writer.add(moving_square(0))
    refused = 0
    for place in range(8):
        path = tmp_path / str(place)
        shutil.copytree(dataset, path)
        video = next(path.rglob("*.mp4"))
        data = bytearray(video.read_bytes())
        start = len(data) * (place + 1) // 10
        data[start : start + 500] = bytes(range(250)) * 2
        video.write_bytes(data)
        try:
            open_clips(path, 32)
        except UserError:
            refused += 1
    assert refused
    assert " @ 0x" not in capfd.readouterr().err
