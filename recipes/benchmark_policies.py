"""`vag benchmark policies`: any policy checkpoints on the same scenes, ranked, with what cannot be told apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from recipes.common import scenes_text
from recipes.compose import command_words, listed, typed
from recipes.lanes import Lane, check_stages, run_lanes
from recipes.schema import BenchmarkPoliciesConfig
from toolkit.base.errors import UserError
from toolkit.base.run import Run, read_record
from toolkit.envs.shifts import SUITES
from toolkit.evaluation.statistics import compare_systems, measured_success, table_rate
from toolkit.reporting.benchmark_record import write_record

EXTENDABLE = True  # policies that were rolled out are taken as they are, so others can join them
Differences = dict[tuple[str, str], dict[str, float]]  # (a, b): a minus b, as `compare_systems`


def run(config: BenchmarkPoliciesConfig, run: Run) -> None:
    """Roll every checkpoint out on every suite; write `record.json` and `record.md`, print leaderboard and record."""
    checkpoints = checkpoints_of(config)
    if not config.suites:
        raise UserError(f"benchmark policies: suites=[] is empty; choose from {', '.join(SUITES)}")
    root = run.directory
    tasks = [f"tasks={listed(config.tasks)}", f"new_tasks={listed(config.new_tasks)}"]
    scenes = [f"suites={listed(config.suites)}", f"episodes_per_task={config.episodes_per_task}"]
    common = [*tasks, *scenes, f"first_seed={config.first_seed}", f"seed={config.seed}", *config.evaluate]
    lanes: dict[str, Lane] = {}
    for name, paths in checkpoints.items():
        for k, path in enumerate(paths):
            words = [f"checkpoint={typed(path)}", f"arm={typed(name)}", f"runtime.threads={config.threads}", *common]
            lanes[f"{name}_{k}"] = [(f"{name}_{k}", "evaluate", words)]
    check_stages((command, overrides) for lane in lanes.values() for _, command, overrides in lane)
    failed = run_lanes(root, lanes, config.lanes, keep_going=True)
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
    rows, comparisons, boards = [], [], {}
    for suite, tables in outcomes.items():
        for name, table in tables.items():
            rows.append({"system": name, "suite": suite, "metric": "success", **measured_success(table)})
        compared = compare_all(tables)
        for (a, b), difference in compared.items():
            comparisons.append({"a": a, "b": b, "suite": suite, "metric": "success", "paired": True} | difference)
        boards[suite] = leaderboard(tables, compared)
    notes = {
        "scenes": scenes_text(config.suites, config.episodes_per_task, config.tasks, config.new_tasks)
        + f"; all from seed {config.first_seed} on, the same for all policies",
        "rollouts": " ".join(config.evaluate) or "as `vag evaluate` does by default",
        "intervals": "95 %, over checkpoints and scenes: the outer bounds of Wilson's interval and a bootstrap for "
        "success, a bootstrap for differences; p is McNemar's exact test for the checkpoint where it is largest",
        "checkpoints": "; ".join(f"{name}: {', '.join(paths)}" for name, paths in checkpoints.items()),
    }
    if unknown := [name for name, count in whole.items() if not all_scenes_known(root, name, count)]:
        notes["training scenes"] = f"not told by all checkpoints of {', '.join(unknown)}: they may have seen these"
    if failed:
        notes["failed"] = ", ".join(failed)
    command = " ".join(["vag benchmark policies", *command_words("benchmark policies", run.record["config"])])
    record = write_record(root, "policies", command, rows, comparisons, notes, boards)
    run.result.update(rows=rows, comparisons=comparisons, leaderboards=boards, notes=record["notes"], failed=failed)
    for suite, board in boards.items():
        print(board_text(suite, board), flush=True)
    if failed:
        print(f"\ncould not be rolled out: {', '.join(failed)}", flush=True)
    print(json.dumps(record), flush=True)


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
    results = [read_record(root / f"{name}_{k}")["result"]["suites"][suite] for k in range(checkpoints)]
    return np.array([[success for _, _, success in result["outcomes"]] for result in results], dtype=float)


def all_scenes_known(root: Path, name: str, checkpoints: int) -> bool:
    """If all checkpoints of a system say which scenes they were trained on, and so were checked against these."""
    return all(read_record(root / f"{name}_{k}")["result"]["seen_scenes"] is not None for k in range(checkpoints))


def compare_all(tables: dict[str, np.ndarray]) -> Differences:
    """Each system minus each that follows it."""
    return {(a, b): compare_systems(tables[a], tables[b]) for a, b in combinations(tables, 2)}


def leaderboard(tables: dict[str, np.ndarray], compared: Differences) -> list[dict[str, Any]]:
    """Systems from best to worst, each with those above it that the data cannot tell from it.

    Two are not distinguishable where the interval of their paired difference holds 0. A rank is one more than the
    number of systems that are distinguishably better, and no better than that of any system above.
    """
    order = sorted(tables, key=lambda name: -tables[name].mean())
    board: list[dict[str, Any]] = []
    for place, name in enumerate(order):
        bounds = {other: compared.get((other, name)) or compared[name, other] for other in order[:place]}
        tied = [above for above in order[:place] if bounds[above]["low"] <= 0 <= bounds[above]["high"]]
        rank = max([1 + place - len(tied), *(row["rank"] for row in board)])
        row = {"rank": rank, "system": name, **table_rate(tables[name])}
        board.append(row | {"seeds": len(tables[name]), "not_distinguishable_from": ", ".join(tied) or None})
    return board


def board_text(suite: str, board: Sequence[dict[str, Any]]) -> str:
    lines = ["", f"{suite:<6}{'system':<32}{'success':<10}{'rate':<6}95 % interval"]
    for row in board:
        tied = row["not_distinguishable_from"]
        note = f"  not distinguishable from {tied}" if tied else ""
        counts = f"{row['successes']}/{row['n']}"
        bounds = f"[{row['low']:.2f}, {row['high']:.2f}]"
        lines.append(f"{row['rank']:<6}{row['system']:<32}{counts:<10}{row['rate']:<6.2f}{bounds}{note}")
    return "\n".join(lines)


def summary(result: dict[str, Any]) -> str:
    best = {suite: board[0] for suite, board in result["leaderboards"].items()}
    return "; ".join(f"{suite}: {row['system']} {row['rate']:.2f}" for suite, row in best.items())
