"""Numbers for a card, out of the records of runs: each with what it is of, its n and its interval.

A number without an interval in the record gets none here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.record import RECORD, read_record
from toolkit.base.typed_json import from_json
from toolkit.evaluation.rates import Rate
from toolkit.evaluation.systems import scene_mean_interval
from toolkit.reporting.benchmark_results import BenchmarkPoliciesResult, Row
from toolkit.reporting.generator_results import EvaluateGeneratorResult, ScoreResult
from toolkit.reporting.results import RESULTS, GateResult, OpenLoopResult, ReplayResult, RolloutResult

MEASURING = ("evaluate", "replay", "score", "evaluate-generator", "gate", "benchmark policies")


@dataclass(frozen=True)
class Number:
    """low, high: of a 95 % interval, None for none; note: what the interval is of, and what is read beside it."""

    of: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """What a run has measured. subject: identities of datasets and weights that it read, None where outcomes were
    judged elsewhere and name policies alone."""

    directory: Path
    record: dict[str, Any]
    numbers: list[Number]
    subject: frozenset[str] | None


def measured(directory: str | Path) -> Measured:
    """The numbers of a finished run. Raises UserError for another command's, or one that is damaged."""
    path = Path(directory)
    record = read_record(path)
    if (command := record["command"]) not in MEASURING:
        raise UserError(f"metrics: {path}: is a run of 'vag {command}'; expected one of {', '.join(MEASURING)}")
    if record["status"] != "finished":
        raise UserError(f"metrics: {path}: its run is {record['status']}; finish it with resume=true")
    result: Any = from_json(RESULTS[command], record["result"], path / RECORD)
    ids = {str(entry["id"]) for entry in record["data"]}
    if isinstance(own := getattr(result, "checkpoint_id", None), str):
        ids.add(own)
    judged = isinstance(result, BenchmarkPoliciesResult) and record["config"].get("results") is not None
    if isinstance(result, BenchmarkPoliciesResult):
        ids.update(rolled_out_in(path))
    return Measured(path, record, list(numbers_of(result)), None if judged else frozenset(ids))


def rolled_out_in(directory: Path) -> Iterator[str]:
    """Identities of the checkpoints whose rollouts a benchmark keeps, one folder for each."""
    for path in sorted(directory.glob(f"*/{RECORD}")):
        identity = read_record(path.parent)["result"].get("checkpoint_id")
        if isinstance(identity, str):
            yield identity


def numbers_of(result: Any) -> Iterator[Number]:
    """Of the result of one of MEASURING."""
    if isinstance(result, RolloutResult):
        for suite, rates in result.suites.items():
            yield of_rate(f"{result.arm}, suite {suite}", "success of rollouts", rates, OF_CHECKPOINT)
            for task, rate in rates.tasks.items():
                yield of_rate(f"{result.arm}, suite {suite}, task {task}", "success of rollouts", rate, OF_CHECKPOINT)
    elif isinstance(result, OpenLoopResult):
        loop = result.open_loop
        beside = f"over episodes; {loop.mean:.3g} for the episodes' own mean action"
        low, high = (loop.low, loop.high) if loop.n > 1 else (None, None)  # which for one episode are its own error
        yield Number(result.arm, "distance of predicted actions", loop.action_distance, low, high, loop.n, beside)
    elif isinstance(result, ReplayResult):
        for system, rates in result.systems.items():
            yield of_rate(system, "success of replayed actions", rates, "over episodes")
    elif isinstance(result, ScoreResult):
        if result.trust is not None:
            for name in ("episodes", "recorded", "still", "other"):
                if (rate := getattr(result.trust, name)) is not None:
                    yield of_rate(
                        TRUSTED[name], "no score worse than those of recorded episodes", rate, "over episodes"
                    )
        for score, spread in result.scores.items():
            beside = f"median, from {spread.least:.3g} to {spread.most:.3g}"
            if spread.recorded is not None:
                beside += f"; {spread.recorded:.3g} for recorded episodes"
            yield Number("episodes", score, spread.median, None, None, None, beside)
    elif isinstance(result, EvaluateGeneratorResult):
        if result.replay is not None:
            yield of_rate("generated pairs", "success of replayed actions", result.replay, "over scenes")
        for metric, value in result.metrics.items():
            yield of_scenes(result, metric, value)
    elif isinstance(result, GateResult | BenchmarkPoliciesResult):
        yield from map(of_row, result.rows)


OF_CHECKPOINT = "of this checkpoint, over scenes; knows nothing of another training"
TRUSTED = {
    "episodes": "synthetic episodes",
    "recorded": "recorded episodes themselves",
    "still": "first pictures that stay",
    "other": "episodes with the actions of others",
}


def of_rate(of: str, metric: str, rate: Rate, note: str) -> Number:
    return Number(of, metric, rate.rate, rate.low, rate.high, rate.n, f"{rate.successes} of {rate.n}; {note}")


def of_row(row: Row) -> Number:
    """With the interval of systems where the row has one, else that of these checkpoints."""
    of = ", ".join(str(part) for part in (row.policy, row.system, row.suite) if part)
    if row.low is not None:
        return Number(
            of, row.metric, row.value, row.low, row.high, row.n, f"of systems, {row.seeds or 1} training runs"
        )
    return Number(
        of, row.metric, row.value, row.low_these_checkpoints, row.high_these_checkpoints, row.n, "of these checkpoints"
    )


def of_scenes(result: EvaluateGeneratorResult, metric: str, value: float) -> Number:
    """A mean over scenes, with the interval of the values of scenes where the record holds them."""
    beside = f"given {result.given}"
    if metric in result.still:
        beside += f"; {result.still[metric]:.3g} for first pictures that stay, under the mean action"
    scores = result.scenes.metrics.get(metric, [])
    if len(scores) < 2:
        return Number("generated pairs", metric, value, None, None, None, beside)
    low, high = scene_mean_interval(np.array(scores, dtype=float))
    return Number("generated pairs", metric, value, low, high, len(scores), f"over scenes; {beside}")
