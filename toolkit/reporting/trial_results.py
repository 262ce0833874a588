"""What trials on a robot found."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.evaluation.trials import Verdict
from toolkit.reporting.benchmark_results import Difference, Row


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """policies: name and the id of its weights. judged: trials with success or failure; discarded, lost: attempts
    that do not count. actions: sent in all attempts, of which so many were clipped. ended: why there are no more."""

    robot: str
    task: str
    policies: dict[str, str]
    placements: int
    judged: int
    discarded: int
    lost: int
    actions: int
    clipped: int
    ended: str
    schedule_id: str
    rows: list[Row]
    comparisons: list[Difference]
    verdicts: list[Verdict]
    notes: dict[str, str]
    dataset: str
