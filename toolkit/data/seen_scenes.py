"""Initial scenes that data or weights have seen: `seen_scenes.json` beside them, so that "unseen" can be checked.

A scene is a task and the seed it was reset with. A task of Meta-World has its bare name, one of another world that
world's in front: `lerobot:aloha/AlohaTransferCube-v0`. In the place of a task `*` says that there are others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.files import write_json
from toolkit.base.reading import read_json

FILE = "seen_scenes.json"
UNKNOWN = "*"
MOST_SEEDS = 2**32  # what simulators take
SeenScenes = dict[str, list[int]]


def scenes_of(metadata: Iterable[dict[str, Any]], where: str = "dataset") -> SeenScenes:
    """SeenScenes that episodes start from, by their columns `task_name` and `seed`; UNKNOWN where one lacks them.

    Raises UserError, with `where` in front, for an episode whose seed is none.
    """
    found = [scene_of(row, f"{where}: episode {episode}") for episode, row in enumerate(metadata)]
    parts: list[SeenScenes] = [{UNKNOWN: []} if scene is None else {scene[0]: [scene[1]]} for scene in found]
    return merge(*parts)


def scene_of(row: dict[str, Any], where: str) -> tuple[str, int] | None:
    """(task, seed) of what is noted of an episode, the task with its world, None if it lacks one.

    Raises UserError for what is no seed.
    """
    task, seed = row.get("task_name"), row.get("seed")
    if is_hole(task) or is_hole(seed):
        return None
    if not isinstance(task, str) or not task:
        raise UserError(f"{where}: 'task_name' is {task!r:.100}; expected the name of a task")
    return scene_name(row.get("world"), task), seed_from(seed, f"{where}: 'seed'")


def scene_name(world: Any, task: str) -> str:
    """A task's name in lists of scenes and streams of noise: with its world, unless that is Meta-World or a hole."""
    return task if not isinstance(world, str) or world in ("", "metaworld") else f"{world}/{task}"


def is_hole(value: Any) -> bool:
    """True for a cell without a value: pandas reads a hole in a column, as merged datasets have, as NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def seed_from(value: Any, where: str) -> int:
    """A whole number from 0 to 2^32 - 1, whatever its type. Raises UserError, with `where` in front, for others."""
    value = value.item() if hasattr(value, "item") else value
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST_SEEDS
    if not number or value != int(value):
        raise UserError(f"{where} is {value!r:.100}; expected a whole number from 0 to {MOST_SEEDS - 1}")
    return int(value)


def merge(*parts: SeenScenes) -> SeenScenes:
    """Union, sorted."""
    tasks = sorted({task for part in parts for task in part})
    return {task: sorted({seed for part in parts for seed in part.get(task, [])}) for task in tasks}


def write_scenes(directory: str | Path, scenes: SeenScenes) -> None:
    """Write `seen_scenes.json` into a directory that is still under its temporary name."""
    write_json(Path(directory) / FILE, scenes)


def scenes_behind(directory: str | Path) -> SeenScenes:
    """As `read_scenes`, UNKNOWN if the directory does not say."""
    scenes = read_scenes(directory)
    return {UNKNOWN: []} if scenes is None else scenes


def read_scenes(directory: str | Path) -> SeenScenes | None:
    """What the data or weights in a directory have seen; None if it does not say. Raises UserError if damaged."""
    path = Path(directory) / FILE
    return scenes_from(read_json(path), str(path)) if os.path.lexists(path) else None


def scenes_from(value: Any, where: str) -> SeenScenes:
    """Task names with lists of seeds. Raises UserError, with `where` in front, for anything else."""
    if not isinstance(value, dict) or not all(isinstance(seeds, list) for seeds in value.values()):
        raise UserError(f"{where}: damaged; expected task names with lists of seeds")
    return {task: [seed_from(seed, f"{where}: a seed of '{task}'") for seed in seeds] for task, seeds in value.items()}
