"""Whether a checkpoint is a generator, by its config.json alone; imports no LeRobot."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vag_core.checkpoint import read_config

GENERATOR, POLICY_TYPE = "vag_generator", "vag_policy"  # as train-generator writes it, and as a policy


def kind_of_checkpoint(directory: str | Path) -> str | None:
    """`type` in the config.json of a directory; None where there is none that can be read."""
    with suppress(ValueError):
        kind = read_config(Path(directory) / "config.json").get("type")
        return kind if isinstance(kind, str) else None
    return None


def acts_as_generator(directory: str | Path) -> bool:
    """Whether a checkpoint is a generator, or one that was written as a policy."""
    return kind_of_checkpoint(directory) in (GENERATOR, POLICY_TYPE)
