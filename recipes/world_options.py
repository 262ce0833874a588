"""Options that say in which world a command acts, shared by all commands that have one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolkit.base.options import option

# Of modules that import a simulator; a test compares them.
POSITIONS = ("all", "inner", "outer")
SUITES = ("unseen", "position", "visual", "language", "task", "perturbed")
WHICH_SUITES = "which scenes: unseen ones, other positions, looks, words, tasks, or with something going wrong"
PICTURE_SIZE = "pixels of the pictures' longer side, or [h,w]; null = as the world shows them"


@dataclass
class WorldConfig:
    """See docs/worlds.md."""

    env: str | None = option(
        None,
        "world: metaworld, lerobot:<type of a LeRobot EnvConfig>, gymnasium:<id>; null = that of the episodes, or "
        "metaworld",
    )
    env_options: dict[str, Any] = option({}, "fields of the EnvConfig, or keywords of gymnasium.make")
    success_key: str | None = option(
        None, "key of `info` that says if the task is solved; null = is_success, success or succeed"
    )
    env_instruction: str | None = option(None, "instruction in place of the world's own")
