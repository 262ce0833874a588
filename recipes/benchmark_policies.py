"""`vag benchmark policies`: any policy checkpoints on the same scenes, ranked, with what cannot be told apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from recipes.common import scenes_text
from recipes.compose import command_words
from recipes.stages import entry, make_stage, needed_result, run_stages
from recipes.study_schema import BenchmarkPoliciesConfig
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.base.typed_json import to_json
from toolkit.envs.shifts import SUITES
from toolkit.evaluation.statistics import compare_systems, measured_success, table_rate
from toolkit.reporting.benchmark_record import write_record
from toolkit.reporting.benchmark_results import BenchmarkPoliciesResult, Difference, Ranked, Row
from toolkit.reporting.results import RolloutResult

EXTENDABLE = True  # policies that were rolled out are taken as they are, so others can join them
Differences = dict[tuple[str, str], dict[str, Any]]  # (a, b): a minus b, as `compare_systems`


def run(config: BenchmarkPoliciesConfig, run: Run) -> BenchmarkPoliciesResult:
    """Roll every checkpoint out on every suite; write `record.json` and `record.md`, print leaderboard and record."""
    checkpoints = checkpoints_of(config)
    if not config.suites:
        raise UserError(f"benchmark policies: suites=[] is empty; choose from {', '.join(SUITES)}")
    root = run.directory
    common = {
        "runtime.threads": config.threads,
        "tasks": config.tasks,
        "new_tasks": config.new_tasks,
        "suites": config.suites,
        "episodes_per_task": config.episodes_per_task,
        "first_seed": config.first_seed,
        "seed": config.seed,
    }
    stages = [
        make_stage(f"{name}_{k}", "evaluate", {"checkpoint": path, "arm": name, **common}, config.evaluate)
        for name, paths in checkpoints.items()
        for k, path in enumerate(paths)
    ]
    failed = run_stages(root, stages, config.lanes, keep_going=True)
    whole = {
        name: len(paths)
        for name, paths in checkpoints.items()
        if not any(f"{name}_{k}" in failed for k in range(len(paths)))
    }
    if not whole:
        raise UserError(f"benchmark policies: no policy could be rolled out ({', '.join(failed)}); see above")
    outcomes = {
        suite: {name: outcome_table(root, name, count, suite) for name, count in whole.items()}
        for suite in config.suites
    }
    rows, comparisons, boards = [], list[Difference](), {}
    for suite, tables in outcomes.items():
        for name, table in tables.items():
            rows.append(Row(system=name, suite=suite, metric="success", **measured_success(table)))
        compared = compare_all(tables)
        for (a, b), difference in compared.items():
            comparisons.append(Difference(a=a, b=b, suite=suite, metric="success", paired=True, **difference))
        boards[suite] = leaderboard(tables, compared)
    notes = notes_of(config, root, checkpoints, whole, failed)
    command = " ".join(["vag benchmark policies", *command_words("benchmark policies", run.record["config"])])
    record = write_record(root, "policies", command, rows, comparisons, notes, boards)
    for suite, board in boards.items():
        print(board_text(suite, board), flush=True)
    if failed:
        print(f"\ncould not be rolled out: {', '.join(failed)}", flush=True)
    print(json.dumps(to_json(record)), flush=True)
    return BenchmarkPoliciesResult(
        rows=rows, comparisons=comparisons, leaderboards=boards, notes=record.notes, failed=failed
    )


def notes_of(
    config: BenchmarkPoliciesConfig,
    root: Path,
    checkpoints: dict[str, list[str]],
    whole: dict[str, int],
    failed: list[str],
) -> dict[str, str]:
    """What a reader needs to judge the numbers; whole: name -> checkpoints of those that were all rolled out."""
    notes = {
        "scenes": scenes_text(config.suites, config.episodes_per_task, config.tasks, config.new_tasks)
        + f"; all from seed {config.first_seed} on, the same for all policies, and so is the noise of a scene's chunks",
        "rollouts": " ".join(config.evaluate) or "as `vag evaluate` does by default",
        "intervals": "95 %, over checkpoints and scenes: the outer bounds of Wilson's interval and a bootstrap for "
        "success, a bootstrap for differences; p is McNemar's exact test for the checkpoint where it is largest",
        "checkpoints": "; ".join(f"{name}: {', '.join(paths)}" for name, paths in checkpoints.items()),
    }
    if unknown := [name for name, count in whole.items() if not all_scenes_known(root, name, count)]:
        notes["training scenes"] = f"not told by all checkpoints of {', '.join(unknown)}: they may have seen these"
    if failed:
        notes["failed"] = ", ".join(failed)
    return notes


def checkpoints_of(config: BenchmarkPoliciesConfig) -> dict[str, list[str]]:
    """Name -> checkpoints, one for each training seed. Raises UserError for none, or one that is given twice."""
    found: dict[str, list[str]] = {}
    for name, given in config.checkpoints.items():
        found[str(name)] = [given] if isinstance(given, str) else [str(path) for path in given or []]
        if not found[str(name)]:
            raise UserError(f"benchmark policies: checkpoints.{name} is empty; expected a directory, or several")
    paths = [path for given in found.values() for path in given]
    if not paths:
        raise UserError("benchmark policies: checkpoints={} is empty; expected such as {ours:[a,b],other:c}")
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise UserError(f"benchmark policies: {twice} is given twice; it would count as two training seeds")
    return found


def outcome_table(root: Path, name: str, checkpoints: int, suite: str) -> np.ndarray:
    """(checkpoints, scenes)."""
    directories = [root / f"{name}_{k}" for k in range(checkpoints)]
    found = [entry(at, "suites", needed_result(at, RolloutResult).suites, suite).outcomes for at in directories]
    return np.array([[success for _, _, success in outcomes] for outcomes in found], dtype=float)


def all_scenes_known(root: Path, name: str, checkpoints: int) -> bool:
    """If all checkpoints of a system say which scenes they were trained on, and so were checked against these."""
    found = (needed_result(root / f"{name}_{k}", RolloutResult) for k in range(checkpoints))
    return all(result.seen_scenes is not None for result in found)


def compare_all(tables: dict[str, np.ndarray]) -> Differences:
    """Each system minus each that follows it."""
    return {(a, b): compare_systems(tables[a], tables[b]) for a, b in combinations(tables, 2)}


def leaderboard(tables: dict[str, np.ndarray], compared: Differences) -> list[Ranked]:
    """Systems from best to worst, each with those above it that the data cannot tell from it.

    Two are not distinguishable where the interval of their paired difference holds 0. A rank is one more than the
    number of systems that are distinguishably better, and no better than that of any system above.
    """
    order = sorted(tables, key=lambda name: -tables[name].mean())
    board: list[Ranked] = []
    for place, name in enumerate(order):
        bounds = {other: compared.get((other, name)) or compared[name, other] for other in order[:place]}
        tied = [above for above in order[:place] if bounds[above]["low"] <= 0 <= bounds[above]["high"]]
        rank = max([1 + place - len(tied), *(row.rank for row in board)])
        rate, like = vars(table_rate(tables[name])), ", ".join(tied) or None
        board.append(Ranked(rank=rank, system=name, **rate, seeds=len(tables[name]), not_distinguishable_from=like))
    return board


def board_text(suite: str, board: Sequence[Ranked]) -> str:
    lines = ["", f"{suite:<6}{'system':<32}{'success':<10}{'rate':<6}95 % interval"]
    for row in board:
        tied = row.not_distinguishable_from
        note = f"  not distinguishable from {tied}" if tied else ""
        counts, bounds = f"{row.successes}/{row.n}", f"[{row.low:.2f}, {row.high:.2f}]"
        lines.append(f"{row.rank:<6}{row.system:<32}{counts:<10}{row.rate:<6.2f}{bounds}{note}")
    return "\n".join(lines)


def summary(result: BenchmarkPoliciesResult) -> str:
    best = {suite: board[0] for suite, board in result.leaderboards.items() if board}
    return "; ".join(f"{suite}: {row.system} {row.rate:.2f}" for suite, row in best.items())
