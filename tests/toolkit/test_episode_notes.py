"""Notes on episodes: joined by what the episodes are, also after LeRobot's tools have edited the dataset."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from toolkit.base.errors import UserError
from toolkit.data.cache import open_clips, open_merged
from toolkit.data.clips import ClipStore
from toolkit.data.episode import Episode
from toolkit.data.episode_notes import FILE, Notes, add_notes, check_used, episode_id, read_notes, write_notes
from toolkit.data.formats.lerobot_read import OWN_NOTES, noted_episodes, open_notes, read_table
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.inspection.validate import inspect_dataset
from toolkit.data.selection import select

MakeEpisode = Callable[..., Episode]


def write(path: Path, *episodes: Episode) -> Path:
    with EpisodeWriter(path, 20, ["y", "x"], ["dy", "dx"]) as writer:
        for episode in episodes:
            writer.add(episode)
    return path


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def opened(path: Path) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset(f"local/{path.name}", root=path)


def run_of(path: Path, dataset: Path, **columns: list[Any]) -> Path:
    """The run directory of a command that notes something of every episode of a dataset."""
    path.mkdir()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    write_notes(path / FILE, read_table(dataset).ids, rows)
    return path


def seeds_kept(dataset: Path, rule: str, *runs: Path) -> list[int]:
    """What identifies the episodes that a rule keeps, by their actions: edited datasets hold no seeds."""
    rows, table = noted_episodes(dataset, runs), read_table(dataset)
    kept = select([rule], rows, np.zeros(len(rows)), "data")
    firsts = table.actions[np.cumsum(table.lengths) - table.lengths]
    return [originals[tuple(first)] for first in firsts[kept]]


originals: dict[tuple[float, ...], int] = {}


@pytest.fixture(autouse=True)
def _originals(moving_square: MakeEpisode) -> None:
    originals.update({tuple(moving_square(seed).actions[0]): seed for seed in range(8)})


def test_an_episode_has_the_same_id_wherever_it_is_read(
    dataset: Path, store: ClipStore, episodes: list[Episode]
) -> None:
    ids = read_table(dataset).ids
    assert ids == open_clips(dataset, 32).episode_ids
    assert len(set(ids)) == 4
    assert store.episode_ids == [episode_id(episode.states, episode.actions) for episode in episodes]
    states, actions = episodes[0].states, episodes[0].actions
    assert store.episode_ids[0] == episode_id(states.astype(np.float64), actions.astype(">f4"))
    for changed in ((states + 1e-6, actions), (states, actions[:, ::-1]), (states[1:], actions[1:]), (actions, states)):
        assert episode_id(*changed) != store.episode_ids[0]


def test_notes_find_their_episodes_after_lerobot_has_deleted_some(dataset: Path, tmp_path: Path) -> None:
    from lerobot.datasets.dataset_tools import delete_episodes

    run = run_of(tmp_path / "score", dataset, score=[0.4, 0.1, 0.3, 0.2])
    assert seeds_kept(dataset, "score<=40%", run) == [1, 3]
    delete_episodes(opened(dataset), [0, 3], output_dir=tmp_path / "fewer")
    assert not (tmp_path / "fewer" / OWN_NOTES).exists()
    assert seeds_kept(tmp_path / "fewer", "score<=0.35", run) == [1, 2]
    assert seeds_kept(tmp_path / "fewer", "score<=40%", run) == [1]
    assert [row["seed"] for row in noted_episodes(tmp_path / "fewer", [dataset, run])] == [1, 2]  # as the origin says
    assert "seed" not in noted_episodes(tmp_path / "fewer", [run])[0]


def test_notes_find_their_episodes_after_lerobot_has_split_and_merged(
    dataset: Path, tmp_path: Path, moving_square: MakeEpisode
) -> None:
    from lerobot.datasets.dataset_tools import merge_datasets, split_dataset

    others = write(tmp_path / "others", moving_square(6), moving_square(7))
    runs = [
        run_of(tmp_path / "one", dataset, score=[4, 1, 3, 2], draw=[0, 0, 1, 1]),
        run_of(tmp_path / "two", others, score=[0.5, 5]),
    ]
    split_dataset(opened(dataset), {"a": [1, 3], "b": [0, 2]}, output_dir=tmp_path / "parts")
    assert seeds_kept(tmp_path / "parts/b", "score<=40%", runs[0]) == [2]
    parts = [opened(tmp_path / "parts/b"), opened(others), opened(tmp_path / "parts/a")]
    merge_datasets(parts, "local/all", output_dir=tmp_path / "all")
    assert seeds_kept(tmp_path / "all", "score<=2", *runs) == [6, 1, 3]
    assert [row.get("draw") for row in noted_episodes(tmp_path / "all", runs)] == [0, 1, None, None, 0, 1]
    with pytest.raises(UserError, match=r"episode 2 has no number 'draw'.* notes=\[RUN\]"):
        seeds_kept(tmp_path / "all", "draw==0", *runs)


def test_notes_stay_where_lerobot_renames_tasks_in_place(copy: Path) -> None:
    from lerobot.datasets.dataset_tools import modify_tasks

    before = read_table(copy)
    modify_tasks(opened(copy), new_task="sweep the square")
    after = read_table(copy)
    assert set(after.tasks) == {"sweep the square"}
    assert (after.ids, after.metadata) == (before.ids, before.metadata)


def test_equal_episodes_have_notes_of_their_own_until_some_are_deleted(
    tmp_path: Path, moving_square: MakeEpisode
) -> None:
    from lerobot.datasets.dataset_tools import delete_episodes

    twins = [replace(moving_square(0), metadata={"seed": seed, "task_name": "push"}) for seed in (5, 6)]
    dataset = write(tmp_path / "dataset", twins[0], moving_square(1), twins[1])
    assert [row["seed"] for row in read_table(dataset).metadata] == [5, 1, 6]
    run = run_of(tmp_path / "score", dataset, score=[1.0, 2.0, 3.0])
    assert [row["score"] for row in noted_episodes(dataset, [run])] == [1, 2, 3]
    delete_episodes(opened(dataset), [0], output_dir=tmp_path / "fewer")
    noted = noted_episodes(tmp_path / "fewer", [dataset, run])
    assert noted[0] == {"seed": 1, "task_name": "pull", "score": 2}
    assert noted[1] == {"task_name": "push"}  # which of the two it is, nobody knows


def test_columns_of_version_01_are_read_as_notes_are(copy: Path, tmp_path: Path) -> None:
    """It wrote all into the episode table; a replay or score of now counts more."""
    (copy / OWN_NOTES).unlink()
    path = next(copy.glob("meta/episodes/**/*.parquet"))
    table = pd.read_parquet(path)
    table["seed"], table["score"], table["replay_success"] = (
        range(4),
        [0.3, np.nan, 0.1, 0.2],
        [True, False, True, None],
    )
    table.to_parquet(path)
    assert [row["seed"] for row in noted_episodes(copy, [])] == [0, 1, 2, 3]
    assert open_clips(copy, 32).metadata[2] == {"seed": 2, "score": 0.1, "replay_success": True}
    run = run_of(tmp_path / "score", copy, score=[1.0, 2.0, 3.0, 4.0])
    assert [row["score"] for row in noted_episodes(copy, [run])] == [1, 2, 3, 4]
    notes = open_notes(copy)
    assert notes.rows[read_table(copy).ids[1]] == [{"seed": 1, "replay_success": False}]


def test_the_last_notes_count(dataset: Path, tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / name, dataset, score=scores) for name, scores in (("a", [1, 2, 3, 4]), ("b", [4, 3, 2, 1]))
    ]
    assert [row["score"] for row in noted_episodes(dataset, runs)] == [4, 3, 2, 1]
    assert [row["score"] for row in noted_episodes(dataset, runs[::-1])] == [1, 2, 3, 4]


def test_joined_stores_hold_the_notes_of_now(dataset: Path, tmp_path: Path, moving_square: MakeEpisode) -> None:
    stores = [open_clips(path, 32) for path in (dataset, write(tmp_path / "others", moving_square(6)))]
    assert [row["seed"] for row in open_merged(stores).metadata] == [0, 1, 2, 3, 6]
    noted = replace(stores[1], metadata=[{"seed": 9}])
    assert open_merged([stores[0], noted]).metadata[-1] == {"seed": 9}


def test_a_dataset_without_notes_is_one_like_any_other(copy: Path) -> None:
    with_notes = read_table(copy)
    (copy / OWN_NOTES).unlink()
    assert read_table(copy).metadata == [{}] * 4
    assert read_table(copy).ids == with_notes.ids
    assert inspect_dataset(copy).problems == []


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        add_notes([], [], [open_notes(path)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("where", ["run", "dataset"])
def test_notes_that_are_damaged_or_foreign_are_one_line(where: str, copy: Path, tmp_path: Path) -> None:
    path = copy / OWN_NOTES
    if where == "run":
        path = run_of(tmp_path / "run", copy, score=[1, 2, 3, 4]) / FILE
    folder = copy if where == "dataset" else tmp_path / "run"
    whole, table = path.read_bytes(), pd.read_parquet(path)
    for content in (b"", whole[: len(whole) // 2], b"PAR1" + bytes(100)):
        path.write_bytes(content)
        assert f"{FILE}: not readable as Parquet" in refused(folder)
    for changed, text in (
        (table.drop(columns="vag_episode"), "'vag_episode' is missing or no text"),
        (table.assign(vag_episode=range(4)), "'vag_episode' is missing or no text"),
        (table.assign(score=[[1]] * 4), "'score' is [1]; expected a text, a number or true or false"),
        (table.assign(score=[b"x"] * 4), "'score' is b'x'"),
    ):
        changed.to_parquet(path)
        assert text in refused(folder)
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert f"{FILE}' leads out of the directory" in refused(folder)
    if where == "dataset":
        assert any(FILE in line for line in [*inspect_refusal(copy)])


def inspect_refusal(dataset: Path) -> list[str]:
    try:
        return inspect_dataset(dataset).problems
    except UserError as error:
        return [str(error)]


def test_notes_of_another_dataset_are_refused(
    copy: Path, dataset: Path, tmp_path: Path, moving_square: MakeEpisode
) -> None:
    others = write(tmp_path / "others", moving_square(6))
    shutil.copyfile(others / OWN_NOTES, copy / OWN_NOTES)
    assert f"copy/{OWN_NOTES}: is about the episodes of another dataset; delete it" in refused(copy)
    assert any("another dataset" in line for line in inspect_dataset(copy).problems)
    notes = [
        open_notes(run_of(tmp_path / name, path, score=[1.0] * n))
        for name, path, n in (("ours", dataset, 4), ("theirs", others, 1))
    ]
    add_notes(read_table(dataset).metadata, read_table(dataset).ids, notes)
    with pytest.raises(UserError, match="theirs/vag_episodes.parquet: is about none of the episodes"):
        check_used(notes)
    check_used(notes[:1])
    assert "nowhere: no 'vag_episodes.parquet'; expected the run directory" in refused(tmp_path / "nowhere")


def test_equal_rows_are_shared_out_in_order() -> None:
    notes = Notes(Path("x"), {"a": [{"k": 1, "same": 0}, {"k": 2, "same": 0}], "b": [{"k": 3}]})
    assert notes.of(["a", "c", "a"]) == [{"k": 1, "same": 0}, {}, {"k": 2, "same": 0}]
    assert notes.of(["a", "b", "b"]) == [{"same": 0}, {"k": 3}, {"k": 3}]
    assert Notes(Path("x"), {"a": [{"k": 1}]}).of(["b"]) is None


def test_notes_keep_types_and_leave_holes_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"seed": np.int64(2**60 + 1), "name": "ä", "good": np.bool_(True), "episode_id": 3},
        {"seed": 1, "score": np.float32(0.5)},
    ]
    write_notes(tmp_path / FILE, ["a", "b"], rows)
    found = read_notes(tmp_path / FILE).rows
    assert found["a"] == [{"seed": 2**60 + 1, "name": "ä", "good": True, "episode_id": 3}]
    assert found["b"] == [{"seed": 1, "score": 0.5}]
    assert json.dumps(found)
