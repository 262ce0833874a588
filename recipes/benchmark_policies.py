"""`vag benchmark policies`: policies on the same scenes, ranked, with what cannot be told apart.

Checkpoints are rolled out here; outcomes that were judged elsewhere are read from a table.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from policies.generator_kinds import acts_as_generator
from recipes.common import file_id, scenes_text, weights_id
from recipes.compose import command_words
from recipes.engine_options import stages_engine
from recipes.stages import entry, make_stage, needed_result, run_stages
from recipes.study_schema import BenchmarkPoliciesConfig
from recipes.worlds import check_suites, tasks_in, world_of, world_values
from toolkit.base.errors import UserError, warn
from toolkit.base.record import RECORD, read_record
from toolkit.base.run import Run
from toolkit.base.typed_json import to_json
from toolkit.data.formats.lerobot_read import read_table
from toolkit.evaluation.judged import read_judged
from toolkit.evaluation.systems import HOW_TO_READ, Trained, compare_success, measured_success
from toolkit.reporting.benchmark_record import bounds_text, write_record
from toolkit.reporting.benchmark_results import BenchmarkPoliciesResult, Difference, Ranked, Row
from toolkit.reporting.results import RolloutResult

EXTENDABLE = True  # policies that were rolled out are taken as they are, so others can join them
RANKS = (
    "by intervals of systems in a suite where all differences have them, else by those of these checkpoints: then the "
    "next checkpoints may rank otherwise"
)
# By suite and name, arms by name, notes of the record, what failed.
Outcomes = tuple[dict[str, dict[str, Trained]], dict[str, str], dict[str, str], list[str]]
Differences = dict[tuple[str, str], dict[str, Any]]  # (a, b): a minus b, as `compare_success`


def run(config: BenchmarkPoliciesConfig, run: Run) -> BenchmarkPoliciesResult:
    """Write `record.json` and `record.md`, print leaderboard and record; see `rolled_out` and `judged_elsewhere`."""
    outcomes, arms, notes, failed = (judged_elsewhere if config.results is not None else rolled_out)(config, run)
    rows, comparisons, boards = [], list[Difference](), {}
    for suite, systems in outcomes.items():
        for name, system in systems.items():
            rows.append(Row(system=name, suite=suite, metric="success", arm=arms.get(name), **measured_success(system)))
        compared = compare_all(systems)
        for (a, b), difference in compared.items():
            comparisons.append(Difference(a=a, b=b, suite=suite, metric="success", paired=True, **difference))
        boards[suite] = leaderboard(systems, compared)
    command = " ".join(["vag benchmark policies", *command_words("benchmark policies", run.record["config"])])
    record = write_record(run.directory, "policies", command, rows, comparisons, notes, boards)
    for suite, board in boards.items():
        print(board_text(suite, board), flush=True)
    if failed:
        print(f"\ncould not be rolled out: {', '.join(failed)}", flush=True)
    print(json.dumps(to_json(record)), flush=True)
    return BenchmarkPoliciesResult(
        rows=rows, comparisons=comparisons, leaderboards=boards, notes=record.notes, failed=failed
    )


def rolled_out(config: BenchmarkPoliciesConfig, run: Run) -> Outcomes:
    """Every checkpoint rolled out on every suite."""
    checkpoints = checkpoints_of(config)
    world = world_of(config)
    config.tasks = tasks_in("benchmark policies", config.tasks, world)
    check_suites("benchmark policies", config.suites, world, config.new_tasks)
    root = run.directory
    common = {
        **world_values(config),
        "runtime.threads": config.threads,
        "tasks": config.tasks,
        "new_tasks": config.new_tasks,
        "suites": config.suites,
        "episodes_per_task": config.episodes_per_task,
        "first_seed": config.first_seed,
        "seed": config.seed,
    }
    stages = [
        make_stage(f"{name}_{k}", "evaluate", {"checkpoint": path, "arm": name, **common}, rollout_words(config, path))
        for name, paths in checkpoints.items()
        for k, path in enumerate(paths)
    ]
    failed = run_stages(root, stages, config.lanes, keep_going=True, engine=stages_engine(config.engine, root))
    whole = {
        name: len(paths)
        for name, paths in checkpoints.items()
        if not any(f"{name}_{k}" in failed for k in range(len(paths)))
    }
    if not whole:
        raise UserError(f"benchmark policies: no policy could be rolled out ({', '.join(failed)}); see above")
    clusters = {name: list(map(learned_from, checkpoints[name])) for name in whole}
    outcomes = {
        suite: {
            name: Trained(outcome_table(root, name, count, suite), labels_of(checkpoints[name], clusters[name]))
            for name, count in whole.items()
        }
        for suite in config.suites
    }
    notes = notes_of(config, root, checkpoints, whole, failed)
    if unknown := [name for name, found in clusters.items() if None in found]:
        notes["generators"] = (
            f"no run.json tells what {', '.join(unknown)} learned from: counted as if no two shared a generator"
        )
    return outcomes, {}, notes, failed


def judged_elsewhere(config: BenchmarkPoliciesConfig, run: Run) -> Outcomes:
    """Outcomes of a table, such as that of trials on a robot; what is left out of it is said."""
    path = Path(str(config.results))
    if config.checkpoints:
        raise UserError("benchmark policies: got results and checkpoints; give one of them")
    judged = read_judged(path)
    run.add_data(path, file_id(path))
    outcomes, left = judged.tables()
    notes = {
        "outcomes": f"judged elsewhere, read from {path.name}; nothing was rolled out here",
        "scenes": "; ".join(
            f"{next(iter(systems.values())).outcomes.shape[1]} in {suite}, met by all"
            for suite, systems in outcomes.items()
        ),
        "runs": "one of each policy" if judged.runs_by is None else f"told apart by the column '{judged.runs_by}'",
        "generators": "unknown: counted as if no two runs shared a generator",
        "intervals": HOW_TO_READ,
        "ranks": RANKS,
    }
    if judged.discarded:
        notes["discarded"] = ", ".join(f"{count} trials of {name}" for name, count in judged.discarded.items())
    if left:
        notes["left out"] = "; ".join(left)
    if judged.unread:
        notes["columns not read"] = ", ".join(judged.unread)
    several = any(len(runs) > 1 for policies in judged.outcomes.values() for runs in policies.values())
    if several and judged.runs_by != "run":
        warn(
            f"{path}: the column '{judged.runs_by}' is taken to tell trainings of a policy apart; if it belongs to the "
            "scene, make it a part of 'scene', such as push-3"
        )
    for key in ("discarded", "left out", "columns not read"):
        if key in notes:
            print(f"{key}: {notes[key]}", flush=True)
    return outcomes, judged.arms, notes, []


def rollout_words(config: BenchmarkPoliciesConfig, checkpoint: str) -> list[str]:
    """Overrides of the evaluation of a checkpoint."""
    return [*config.evaluate, *(config.evaluate_generators if acts_as_generator(checkpoint) else [])]


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
        **({"generators as policies": " ".join(words)} if (words := config.evaluate_generators) else {}),
        "intervals": HOW_TO_READ,
        "ranks": RANKS,
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


def learned_from(checkpoint: str, named: frozenset[str] = frozenset()) -> frozenset[str] | None:
    """Identities of the generators behind what a policy learned from, and behind that which it goes on from.

    By the run.json beside it; None where there is none, as for checkpoints of the Hub. Of a generator itself it is this
    one, so that it and the policies that it feeds are one cluster. named: checkpoints that were met, so that records
    which name each other end.
    """
    if acts_as_generator(checkpoint):
        return frozenset({weights_id(checkpoint)})
    directory = Path(checkpoint).parent
    if not (directory / RECORD).is_file():
        return None
    record = read_record(directory)
    config, ids = record["config"], {entry["path"]: entry["id"] for entry in record["data"]}
    own = frozenset[str]()
    for path in map(str, config.get("synthetic") or []):
        own |= generators_behind(path) or {ids.get(path, path)}
    for path in map(str, config.get("real") or []):  # of which a merged one holds synthetic episodes too
        own |= generators_behind(path)
    if (before := goes_on_from(config)) is None or before in named:
        return own
    earlier = learned_from(before, named | {before})
    if record["command"] == "pretrain":  # of what lies elsewhere, such as a base model of the hub, no more is asked
        return own | (earlier or frozenset())
    return None if earlier is None else own | earlier


def goes_on_from(config: Mapping[str, Any]) -> str | None:
    """The checkpoint whose weights a training began with, by the config in its record; None for new weights."""
    policy = config.get("policy")
    before = config.get("checkpoint") or (policy.get("path") if isinstance(policy, dict) else None)
    return None if before is None else str(before)


def generators_behind(dataset: str) -> frozenset[str]:
    """Generators that made episodes of a dataset, by its notes; none where it is gone or does not say."""
    try:
        rows = read_table(Path(dataset)).metadata
    except UserError:
        return frozenset()
    made = [row.get("generator_id") for row in rows if row.get("source") == "synthetic"]
    return frozenset(identity for identity in made if isinstance(identity, str) and identity)


def labels_of(checkpoints: Sequence[str], learned: Sequence[frozenset[str] | None]) -> list[Hashable]:
    """What makes a cluster of each checkpoint: its generators, where there are none it alone."""
    return [found or checkpoint for checkpoint, found in zip(checkpoints, learned, strict=True)]


def compare_all(systems: dict[str, Trained]) -> Differences:
    """Each system minus each that follows it."""
    return {(a, b): compare_success(systems[a], systems[b]) for a, b in combinations(systems, 2)}


def leaderboard(systems: dict[str, Trained], compared: Differences) -> list[Ranked]:
    """Systems from best to worst, each with those above it that the data cannot tell from it.

    Two are not distinguishable where the interval of their paired difference holds 0: that of systems where all
    differences have one, else that of these checkpoints. A rank is one more than the number of systems that are
    distinguishably better, and no better than that of any system above.
    """
    order = sorted(systems, key=lambda name: -systems[name].mean)
    of = "" if all(found["low"] is not None for found in compared.values()) else "_these_checkpoints"
    board: list[Ranked] = []
    for place, name in enumerate(order):
        bounds = {other: compared.get((other, name)) or compared[name, other] for other in order[:place]}
        tied = [above for above in order[:place] if bounds[above][f"low{of}"] <= 0 <= bounds[above][f"high{of}"]]
        rank = max([1 + place - len(tied), *(row.rank for row in board)])
        found = measured_success(systems[name])
        counts = {"successes": int(systems[name].outcomes.sum()), "rate": found.pop("value")}
        like = ", ".join(tied) or None
        board.append(Ranked(rank=rank, system=name, **found, **counts, not_distinguishable_from=like))
    return board


def board_text(suite: str, board: Sequence[Ranked]) -> str:
    titles = f"{'rank':<6}{'system':<32}{'success':<10}{'rate':<6}95 % intervals: of systems, of these checkpoints"
    lines = ["", suite, titles]
    for row in board:
        tied = row.not_distinguishable_from
        note = f"  not distinguishable from {tied}" if tied else ""
        counts, bounds = f"{row.successes}/{row.n}", bounds_text(row, ".2f").strip(" ,")
        lines.append(f"{row.rank:<6}{row.system:<32}{counts:<10}{row.rate:<6.2f}{bounds}{note}")
    return "\n".join(lines)


def summary(result: BenchmarkPoliciesResult) -> str:
    return "; ".join(f"{suite}: {first_of(board)}" for suite, board in result.leaderboards.items() if board)


def first_of(board: Sequence[Ranked]) -> str:
    """All that share the first rank, with their rates: the best one alone would read as a winner."""
    return ", ".join(f"{row.system} {row.rate:.2f}" for row in board if row.rank == board[0].rank)
