"""`vag ablate`: does synthetic data help, how much and which? A grid of arms, policies and seeds, with controls.

Every training and evaluation is one of the other commands, with a run directory below this one: a killed study goes
on with `resume=true` and takes finished cells as they are. A cell that fails is marked; the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recipes.lanes import Lane, run_lanes, stage
from recipes.schema import AblateConfig
from recipes.study import ARMS, Cell, cell_lane, generator_lane, generator_seed, parse_grid
from toolkit.envs.shifts import SUITES
from toolkit.errors import UserError, nearest
from toolkit.evaluation.exchange import exchange_rate
from toolkit.evaluation.statistics import (
    bootstrap_means,
    compare_systems,
    counted_rate,
    percentile_interval,
    two_proportion_sample_size,
    wilson_interval,
)
from toolkit.reporting.benchmark_record import write_record
from toolkit.reporting.media import atomic
from toolkit.reporting.run_record import Run, read_record

Outcomes = dict[tuple[str, str, str], dict[int, list[bool]]]  # (system, policy, suite): training seed: scenes


def run(config: AblateConfig, run: Run) -> None:
    """Collect, train, evaluate all cells; write `cells.parquet`, `record.json`, `record.md`; print the record."""
    cells = parse_grid(config)
    check(config)
    root = run.directory
    scenes = config.scenes_per_task * len(config.tasks)
    seeds = len({cell.seed for cell in cells})
    power = power_sentence(config)
    print(f"ablate: {len(cells)} cells; {power}; here are {scenes} scenes x {seeds} training seeds", flush=True)
    collect(config, cells, root)
    lanes: dict[str, Lane] = {}
    after: dict[str, str] = {}
    for feed, seed in dict.fromkeys((c.feed, generator_seed(config, c)) for c in cells if c.needs_generator):
        episodes = max(c.synthetic_per_task for c in cells if c.needs_generator)
        lanes[f"generator_{feed}_{seed}"] = generator_lane(config, root, feed, seed, episodes)
    for cell in cells:
        lanes[cell.name] = cell_lane(config, root, cell)
        if cell.needs_generator:
            after[cell.name] = f"generator_{cell.feed}_{generator_seed(config, cell)}"
    failed = run_lanes(root, lanes, config.lanes, after, keep_going=True)
    table = cell_table(config, root, cells)
    with atomic(root / "cells.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    outcomes = gather(root, [cell for cell in cells if cell.name not in failed])
    if not outcomes:
        raise UserError(f"ablate: all {len(cells)} cells failed; their messages stand above and in {root}")
    rows, comparisons = system_rows(outcomes), system_comparisons(outcomes)
    generators = generator_rows(root, cells, config)
    rows += generators + exchange_rows(config, root, cells, outcomes)
    record = write_record(root, "ablation", command(config), rows, comparisons, notes(config, cells, failed))
    run.result.update(
        rows=rows, comparisons=comparisons, failed=failed, cells=json.loads(table.to_json(orient="records"))
    )
    print(json.dumps(record), flush=True)


def check(config: AblateConfig) -> None:
    """Raise UserError for a suite that is not known or has no tasks, and for scenes that would be seen twice."""
    for suite in config.suites:
        if suite not in SUITES:
            raise UserError(f"ablate: unknown suite '{suite}'. {nearest(suite, SUITES)}")
        if SUITES[suite].new_tasks and not config.new_tasks:
            raise UserError(
                f"ablate: suite '{suite}' needs new_tasks=[...], tasks of which the policy gets no real demo"
            )
    if twice := set(config.tasks) & {*config.new_tasks, *config.other_tasks}:
        raise UserError(f"ablate: '{min(twice)}' is among tasks and new_tasks or other_tasks")
    starts = sorted((getattr(config, name), name) for name in ("first_seed", "synthetic_seed", "held_out_seed"))
    for (low, name), (high, other) in pairwise(starts):
        if high - low < 10_000:
            raise UserError(
                f"ablate: {name}={low} and {other}={high}: training, synthetic and evaluation scenes would overlap; "
                "keep 10,000 seeds between them"
            )


def collect(config: AblateConfig, cells: Sequence[Cell], root: Path) -> None:
    """Record what the policies and generators learn from; the few are among all."""
    seed = [f"first_seed={config.first_seed}", f"seed={config.seed}", *config.collect]

    def record(name: str, tasks: Sequence[str], episodes: int, *more: str) -> None:
        stage(root / name, "collect", [f"tasks=[{','.join(tasks)}]", f"episodes_per_task={episodes}", *more, *seed])

    feeds = {cell.feed for cell in cells if cell.needs_generator or ARMS[cell.arm].real == "all"}
    record("real_few", config.tasks, max(cell.few for cell in cells), "positions=inner")
    if "paper" in feeds:
        record("real_all", [*config.tasks, *config.new_tasks], config.real_per_task)
    if "fair" in feeds:
        record("real_few_fed", config.tasks, config.fed_few, "positions=inner")
        if others := [*config.new_tasks, *config.other_tasks]:
            record("real_others", others, config.real_per_task)


def cell_table(config: AblateConfig, root: Path, cells: Sequence[Cell]) -> Any:
    """One row for each cell and suite: axes, successes, interval, status and, where it failed, the message."""
    import pandas as pd

    rows = []
    for cell in cells:
        evaluation = finished(root / cell.name / "evaluate")
        status = {"status": "failed" if evaluation is None else "finished", "error": None}
        if evaluation is None:
            status["error"] = first_error(config, root, cell)
        for suite in config.suites:
            measured = dict.fromkeys(("successes", "n", "rate", "low", "high"))
            if evaluation is not None:
                measured = {key: evaluation["suites"][suite][key] for key in measured}
            rows.append({**asdict(cell), "suite": suite, **measured, **status})
    return pd.DataFrame(rows)


def finished(directory: Path) -> dict[str, Any] | None:
    """The result of a run, None if it is not there or did not finish."""
    if not (directory / "run.json").exists():
        return None
    record = read_record(directory)
    return record["result"] if record["status"] == "finished" else None


def first_error(config: AblateConfig, root: Path, cell: Cell) -> str:
    """What the first stage that failed for a cell said."""
    generator = generator_lane(config, root, cell.feed, generator_seed(config, cell), 1) if cell.needs_generator else []
    for name, _, _ in [*generator, *cell_lane(config, root, cell)]:
        if (root / name / "run.json").exists() and "error" in (record := read_record(root / name)):
            return f"{name}: {record['error']}"
    return "did not run"


def gather(root: Path, cells: Sequence[Cell]) -> Outcomes:
    """Outcomes of every rollout, scenes in the same order for all."""
    outcomes: Outcomes = {}
    for cell in cells:
        evaluation = finished(root / cell.name / "evaluate")
        for suite, measured in (evaluation or {"suites": {}})["suites"].items():
            seeds = outcomes.setdefault((cell.system, cell.policy, suite), {})
            seeds[cell.seed] = [bool(success) for _, _, success in measured["outcomes"]]
    return outcomes


def matrix(seeds: dict[int, list[bool]]) -> np.ndarray:
    """(training seeds, scenes)."""
    return np.array([seeds[seed] for seed in sorted(seeds)], dtype=float)


def system_rows(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Success of each system, policy and suite over all training seeds; how much of the gap to real_all it closes."""
    rows = []
    for (system, policy, suite), seeds in outcomes.items():
        table = matrix(seeds)
        low, high = wilson_interval(int(table.sum()), table.size)
        place = {"system": system, "policy": policy, "suite": suite}
        success = {"metric": "success", "value": float(table.mean()), "low": low, "high": high}
        rows.append({**place, **success, "n": table.size, "seeds": len(table)})
        few, everything = (outcomes.get((name, policy, suite)) for name in ("real_few", real_all_for(system)))
        if few is None or everything is None or ARMS[system.split()[0]].real == "all" or system == "real_few":
            continue
        means = bootstrap_means([table, matrix(few), matrix(everything)])
        gap = matrix(everything).mean() - matrix(few).mean()
        if (means[:, 2] - means[:, 1]).min() > 0:  # else a share of nothing
            closed = percentile_interval(
                (table.mean() - matrix(few).mean()) / gap, (means[:, 0] - means[:, 1]) / (means[:, 2] - means[:, 1])
            )
            rows.append({**place, "metric": "gap_closed", **closed, "n": table.size, "seeds": len(table)})
    return rows


def real_all_for(system: str) -> str:
    """The control that has everything the generator behind a system has seen."""
    return "real_all feed=fair" if "feed=fair" in system else "real_all"


def system_comparisons(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Every system minus real_few, paired by scene."""
    comparisons = []
    for (system, policy, suite), seeds in outcomes.items():
        few = outcomes.get(("real_few", policy, suite))
        if system == "real_few" or few is None:
            continue
        place = {"a": system, "b": "real_few", "policy": policy, "suite": suite, "metric": "success", "paired": True}
        comparisons.append(place | compare_systems(matrix(seeds), matrix(few)))
    return comparisons


def generator_rows(root: Path, cells: Sequence[Cell], config: AblateConfig) -> list[dict[str, Any]]:
    """How good the synthetic episodes are: how many of them succeed when their actions are replayed."""
    rows = []
    for feed in dict.fromkeys(cell.feed for cell in cells if cell.needs_generator):
        seeds = {generator_seed(config, cell) for cell in cells if cell.needs_generator and cell.feed == feed}
        results = [finished(root / f"replay_{feed}_{seed}") for seed in sorted(seeds)]
        found = [result["systems"]["vag"] for result in results if result is not None]
        if found:
            total = counted_rate(sum(f["successes"] for f in found), sum(f["n"] for f in found))
            row = {"system": f"synthetic feed={feed}", "policy": "replay", "suite": "synthetic scenes"}
            bounds = {"value": total["rate"], "low": total["low"], "high": total["high"]}
            rows.append({**row, "metric": "success", **bounds, "n": total["n"], "seeds": len(found)})
    return rows


def exchange_rows(config: AblateConfig, root: Path, cells: Sequence[Cell], outcomes: Outcomes) -> list[dict[str, Any]]:
    """How many real episodes a synthetic one replaces, where the grid has a learning curve of real episodes."""
    rows = []
    by_system = {cell.system: cell for cell in cells}
    for (system, policy, suite), seeds in outcomes.items():
        cell = by_system[system]
        arm = ARMS[cell.arm]
        if not arm.synthetic or arm.real != "few" or arm.shuffled:
            continue
        curve = {
            by_system[other].few: matrix(found)
            for (other, p, s), found in outcomes.items()
            if (p, s) == (policy, suite) and by_system[other].arm == "real_few" and by_system[other].few >= cell.few
        }
        if len(curve) < 2 or cell.few not in curve:
            continue
        place = {"system": system, "policy": policy, "suite": suite, "n": matrix(seeds).size, "seeds": len(seeds)}
        rate = exchange_rate(matrix(seeds), curve, cell.few, cell.synthetic_per_task)
        rows.append({**place, "metric": "real_per_synthetic", **rate})
    return rows


def command(config: AblateConfig) -> str:
    return " ".join(["vag ablate", *(f"'{line}'" for line in config.grid)])


def power_sentence(config: AblateConfig) -> str:
    few, many = config.gap
    needed = two_proportion_sample_size(few, many, config.power)
    return f"to tell {few} from {many} apart with power {config.power} takes {needed} rollouts an arm"


def notes(config: AblateConfig, cells: Sequence[Cell], failed: Sequence[str]) -> dict[str, str]:
    """What a reader needs to judge the numbers."""
    everything, others = [*config.tasks, *config.new_tasks], [*config.new_tasks, *config.other_tasks]
    episodes = {"paper": f"{config.real_per_task} real episodes of each of {', '.join(everything)}"}
    episodes["fair"] = f"{config.fed_few} real episodes of each of {', '.join(config.tasks)}"
    if others:
        episodes["fair"] += f", {config.real_per_task} of each of {', '.join(others)}"
    feeds = dict.fromkeys(cell.feed for cell in cells if cell.needs_generator)
    found = {
        "scenes": f"{config.scenes_per_task} of each of {', '.join(config.tasks)} in every suite, from seed "
        f"{config.held_out_seed} on; the same for all cells",
        "intervals": "95 %: Wilson over all rollouts for success; a bootstrap over training seeds and scenes for "
        "differences, gap_closed = (system - real_few) / (real_all - real_few) and real_per_synthetic. p is McNemar's "
        "exact test for the training seed where it is largest. Generators behind the policies' seeds: "
        f"{len(config.generator_seeds)}",
        "training": f"{config.steps} gradient steps in every arm; {config.real_per_task} real episodes a task are all",
        "power": power_sentence(config),
    }
    found |= {f"generator of feed={feed}": f"has seen {episodes[feed]}" for feed in feeds}
    if failed:
        found["failed"] = ", ".join(failed)
    return found


def summary(result: dict[str, Any]) -> str:
    lifts = [c for c in result["comparisons"] if c["suite"] == "unseen"]
    best = max(lifts, key=lambda c: c["difference"], default=None)
    text = f"{len(result['cells'])} rows, {len(result['failed'])} cells failed"
    if best is None:
        return text
    span = f"{best['difference']:+.3f} [{best['low']:+.3f}, {best['high']:+.3f}]"
    return f"{text}; largest lift over real_few on unseen: {best['a']} ({best['policy']}) {span}"
