"""Which episodes of real and synthetic datasets take part, for what trains on them and for what writes them as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from toolkit.base.errors import UserError, warn
from toolkit.data.selection import balanced, first_of_each, select, weights_by


class Choice(Protocol):
    """The options of `vag pretrain` and `vag mix` that choose synthetic episodes."""

    synthetic_per_task: int | None
    select: list[str]
    weight_by: str | None
    seed: int


def check_sides(fraction: float | None, real: bool, synthetic: bool) -> None:
    """Raise UserError where there are no data, or none of a side that the fraction needs."""
    if not real and not synthetic:
        raise UserError("no data: give real=[DATASET] and/or synthetic=[DATASET]")
    if (fraction or 0) > 0 and not synthetic:
        raise UserError(f"synthetic_fraction={fraction} needs synthetic=[DATASET]")
    if fraction is not None and fraction < 1 and not real:
        raise UserError(f"synthetic_fraction={fraction} needs real=[DATASET]")


def synthetic_episodes(metadata: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """(E,) True for the synthetic episodes of a dataset that was given as real, as a merged one has; says so.

    Raises UserError if all are synthetic.
    """
    synthetic = np.array([row.get("source") == "synthetic" for row in metadata])
    if synthetic.all():
        raise UserError(f"real=[{name}]: all its episodes are synthetic; give it as synthetic=[...]")
    if synthetic.any():
        warn(f"real=[{name}]: {synthetic.sum()} of {len(synthetic)} episodes are synthetic, and count as such")
    return synthetic


def choose_synthetic(
    config: Choice, metadata: Sequence[dict[str, Any]], tasks: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """The synthetic episodes that take part, and their weights if they are not drawn alike; tasks: (E,) numbers."""
    weights, episodes = None, np.arange(len(metadata))
    if config.synthetic_per_task is not None:
        episodes = first_of_each(tasks, config.synthetic_per_task)
    if config.select or config.weight_by:
        rows = [metadata[int(i)] for i in episodes]
        kept = select(config.select, rows, tasks[episodes], name, config.seed)
        episodes = episodes[kept]
        weights = balanced(tasks[episodes])  # a rule that few episodes of a task meet starves no task
        if config.weight_by:
            chosen = [metadata[int(i)] for i in episodes]
            weights *= weights_by(config.weight_by, chosen, tasks[episodes], name)
    return episodes, weights
