"""Initial scenes that data or weights have seen: `seen_scenes.json` beside them, so that "unseen" can be checked.

A scene is a Meta-World task and the seed it was reset with. In the place of a task `*` says that there are others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.base.files import read_json
from toolkit.errors import UserError

FILE = "seen_scenes.json"
UNKNOWN = "*"
Scenes = dict[str, list[int]]


def scenes_of(metadata: Iterable[dict[str, Any]]) -> Scenes:
    """Scenes that episodes start from, by their columns `task_name` and `seed`; UNKNOWN where one lacks them."""
    parts: list[Scenes] = []
    for row in metadata:
        task, seed = row.get("task_name"), row.get("seed")
        parts.append({UNKNOWN: []} if task is None or seed is None else {str(task): [int(seed)]})
    return merge(*parts)


def merge(*parts: Scenes) -> Scenes:
    """Union, sorted."""
    tasks = sorted({task for part in parts for task in part})
    return {task: sorted({seed for part in parts for seed in part.get(task, [])}) for task in tasks}


def write_scenes(directory: str | Path, scenes: Scenes) -> None:
    """Write `seen_scenes.json` into a directory that is still under its temporary name."""
    (Path(directory) / FILE).write_text(json.dumps(scenes) + "\n")


def told_scenes(directory: str | Path) -> Scenes:
    """As `read_scenes`, UNKNOWN if the directory does not say."""
    scenes = read_scenes(directory)
    return {UNKNOWN: []} if scenes is None else scenes


def read_scenes(directory: str | Path) -> Scenes | None:
    """What the data or weights in a directory have seen; None if it does not say. Raises UserError if damaged."""
    path = Path(directory) / FILE
    if not os.path.lexists(path):
        return None
    scenes = read_json(path)
    try:
        return {str(task): [int(seed) for seed in seeds] for task, seeds in scenes.items()}
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: damaged ({error}); expected task names with lists of seeds") from error
