"""`vag ablate`: does synthetic data help, how much and which? A grid of arms, policies and seeds, with controls.

Every training and evaluation is one of the other commands, with a run directory below this one: a killed study goes
on with `resume=true` and takes finished cells as they are. A cell that fails is marked; the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from recipes.compose import command_words, listed
from recipes.lanes import Lane, check_begun, check_stage, check_stages, entry, run_lanes, stage
from recipes.schema import AblateConfig
from recipes.study import (
    ARMS,
    FEEDS,
    POLICIES,
    Cell,
    cell_lane,
    few_dataset,
    generator_lane,
    generator_seed,
    parse_grid,
    pretraining_lane,
)
from recipes.study_record import (
    FILTER_NOTE,
    exchange_rows,
    filter_rows,
    gather,
    generator_rows,
    measured_suites,
    notes,
    power_sentence,
    rollout_table,
    system_comparisons,
    system_rows,
    task_rows,
    told_commits,
    told_draws,
)
from recipes.synthesize import check_draws
from toolkit.base.errors import UserError, nearest
from toolkit.base.files import atomic_file, discard, write_text
from toolkit.base.run import Run, read_record
from toolkit.base.typed_json import to_json
from toolkit.data.formats.lerobot_read import read_actions
from toolkit.data.selection import parse_rule
from toolkit.envs.metaworld import instructions
from toolkit.envs.shifts import SUITES
from toolkit.reporting.benchmark_record import write_record
from toolkit.reporting.benchmark_results import AblateResult, CellRow
from toolkit.reporting.plots import figure_file
from toolkit.reporting.results import CollectResult
from toolkit.reporting.success import arm_figures, fraction_figures

NO_RATE = dict.fromkeys(("successes", "n", "rate", "low", "high"))
BETWEEN_ROUNDS = ("replay_success", "score_flow_loss", "draw", "random")  # what is known of episodes by then
EXTENDABLE = True  # cells that are there are taken as they are, so a grid can grow


def run(config: AblateConfig, run: Run) -> AblateResult:
    """Collect, train, evaluate all cells; write their tables, `arms.svg`, `figure.svg`, `record.json`, `record.md`.

    The tables are `cells.parquet`, and `rollouts.parquet` with every outcome. Print the record as the last line.
    """
    import pandas as pd

    cells = parse_grid(config)
    check(config, cells)
    root = run.directory
    print(f"ablate: {len(cells)} cells; {power_sentence(config, cells)}", flush=True)
    lanes: dict[str, Lane] = {}
    after: dict[str, str] = {}
    for feed, seed in dict.fromkeys((c.feed, generator_seed(config, c)) for c in cells if c.needs_generator):
        episodes = max(c.synthetic_per_task for c in cells if c.needs_generator)
        lanes[f"generator_{feed}_{seed}"] = generator_lane(config, root, feed, seed, episodes)
    for cell in cells:
        first_lane = cell.name
        if ARMS[cell.arm].finetuned:
            first_lane = after[cell.name] = cell.pretraining
            lanes.setdefault(first_lane, pretraining_lane(config, root, cell))
        if cell.needs_generator:
            after[first_lane] = f"generator_{cell.feed}_{generator_seed(config, cell)}"
        lanes[cell.name] = cell_lane(config, root, cell)
    first = {cell.group: cell.name for cell in reversed(cells)}  # the others differ in their seeds alone
    check_stages([("collect", [f"tasks={listed(config.tasks)}", *config.collect])])
    check_lanes(root, lanes, {*first.values(), *after.values()})
    collect(config, cells, root)
    check_nested(root)
    stopped = run_lanes(root, lanes, config.lanes, after, keep_going=True)
    failed = [cell.name for cell in cells if cell.name in stopped]
    table = cell_rows(config, root, cells, failed)
    measured = [cell for cell in cells if cell.name not in failed]
    for name, content in (("cells", pd.DataFrame(to_json(table))), ("rollouts", rollout_table(root, measured))):
        with atomic_file(root / f"{name}.parquet") as temporary:
            content.to_parquet(temporary, index=False)
    outcomes = gather(root, measured)
    if not outcomes:
        raise UserError(f"ablate: all {len(cells)} cells failed; their messages stand above and in {root}")
    rows, comparisons = system_rows(outcomes), system_comparisons(outcomes)
    rows += exchange_rows(config, outcomes) + task_rows(root, cells, outcomes)
    rows += generator_rows(root, cells, config) + filter_rows(root, cells, config)
    command = " ".join(["vag ablate", *command_words("ablate", run.record["config"])])
    told = {**notes(config, cells, failed, {row.metric for row in rows}), "policies": told_commits(root, cells)}
    if any(row.suite.startswith("filters") for row in rows):
        told["filters by threshold"] = FILTER_NOTE
    if draws := told_draws(config, root, cells):
        told["plans tried in the simulator"] = f"{draws}. The first that solves a scene becomes its episode"
    record = write_record(root, "ablation", command, rows, comparisons, told)
    for name, figures in (("arms", arm_figures(rows)), ("figure", fraction_figures(rows))):
        path = root / f"{name}.svg"
        if figures:
            write_text(path, figure_file(figures))
        else:
            discard(path)
    print(json.dumps(to_json(record)), flush=True)
    return AblateResult(rows=rows, comparisons=comparisons, notes=record.notes, failed=failed, cells=table)


def check(config: AblateConfig, cells: Sequence[Cell]) -> None:
    """Raise UserError for what cannot be run or would mislead, before anything is recorded or trained."""
    for key in ("suites", "generator_seeds"):
        if not (values := getattr(config, key)):
            raise UserError(f"ablate: {key}=[] is empty")
        if len(set(values)) < len(values):
            raise UserError(f"ablate: {key}={values} names one twice")
    for key in ("policy_steps", "policy_train", "policy_finetune"):
        for policy in getattr(config, key):
            if policy not in POLICIES:
                raise UserError(f"ablate: {key}: unknown policy '{policy}'. {nearest(policy, POLICIES)}")
    for key in ("feed_synthesize", "rounds"):
        for feed in getattr(config, key):
            if feed not in FEEDS:
                raise UserError(f"ablate: {key}: unknown feed '{feed}'. {nearest(feed, FEEDS)}")
    check_rounds(config)
    for suite in config.suites:
        if suite not in SUITES:
            raise UserError(f"ablate: unknown suite '{suite}'. {nearest(suite, SUITES)}")
        if SUITES[suite].new_tasks and not config.new_tasks:
            raise UserError(
                f"ablate: suite '{suite}' needs new_tasks=[...], tasks of which only real_all gets real demos"
            )
    check_tasks(config)
    scenes = {"first_seed": config.real_per_task, "held_out_seed": config.scenes_per_task}
    scenes["synthetic_seed"] = max(cell.synthetic_per_task for cell in cells) * max(config.rounds.values(), default=1)
    for (low, name), (high, other) in pairwise(sorted((getattr(config, name), name) for name in scenes)):
        room = max(10_000, 10 * scenes[name])  # some scenes are passed over
        if high - low < room:
            raise UserError(
                f"ablate: {name}={low} and {other}={high}: training, synthetic and evaluation scenes would overlap; "
                f"keep {room:,} seeds between them"
            )
    for rule in [rule for rules in [*config.filters.values(), config.round_select] for rule in rules]:
        parse_rule(rule)
    if len(set(config.gap)) != 2 or not all(0 < rate < 1 for rate in config.gap) or not 0 < config.power < 1:
        raise UserError(f"ablate: gap={config.gap}, power={config.power}: expected two different rates and one below 1")
    for cell in cells:
        if ARMS[cell.arm].shuffled and cell.synthetic_per_task < 2:
            raise UserError(f"ablate: '{cell.system}': a single episode has no other one to take actions from")
        if cell.feed == "fair" and not [*config.other_tasks, *config.new_tasks]:
            raise UserError("ablate: feed=fair needs other_tasks=[...], of which its generator sees all real episodes")
        if cell.feed == "fair" and ARMS[cell.arm].real == "few" and cell.few != config.fed_few:
            raise UserError(
                f"ablate: '{cell.system}': a fair generator has seen fed_few={config.fed_few} real episodes of each "
                f"task, the policy would get {cell.few}; expected the same"
            )


def check_rounds(config: AblateConfig) -> None:
    """Raise UserError for what would stop a generator's second round, hours after the first."""
    if max(config.rounds.values(), default=1) == 1:
        return
    for word in config.train_generator:
        if word.partition("=")[0] in ("dataset_shares", "tokenizer_from", "video_from"):
            raise UserError(f"ablate: train_generator: '{word}' does not fit generators that learn in rounds")
    for rule in config.round_select:
        if parse_rule(rule)[0] not in BETWEEN_ROUNDS:
            raise UserError(f"ablate: round_select: '{rule}': between rounds there are {', '.join(BETWEEN_ROUNDS)}")


def check_tasks(config: AblateConfig) -> None:
    """Raise UserError for a task that is unknown, named twice, or told in the words of another.

    Its instruction is all that generators and policies know of a task.
    """
    known = instructions()
    taken: dict[str, str] = {}
    for role in ("tasks", "new_tasks", "other_tasks"):
        for task in (name.removesuffix("-v3") for name in getattr(config, role)):
            if task not in known:
                raise UserError(f"ablate: {role}: unknown task '{task}'. {nearest(task, known)}")
            if other := taken.get(known[task]):
                raise UserError(f"ablate: {role}: '{task}' is told as '{known[task]}', and so is {other}; drop one")
            taken[known[task]] = f"'{task}' of {role}"


def check_nested(root: Path) -> None:
    """Raise UserError unless what the policies get of the real episodes is part of all there are."""

    def scenes(dataset: Path) -> set[tuple[Any, Any]]:
        return {(row["task_name"], row["seed"]) for row, _ in read_actions(dataset)}

    if not (root / "real_all").exists():
        return
    everything = scenes(root / "real_all/dataset")
    for dataset in sorted(root.glob("real_few*/dataset")):
        if lost := scenes(dataset) - everything:
            task, seed = min(lost)
            raise UserError(
                f"ablate: {dataset.parent.name} holds {len(lost)} episodes that real_all lacks (first: {task}, seed "
                f"{seed}); raise real_per_task"
            )


def check_lanes(root: Path, lanes: Mapping[str, Lane], composed: Container[str]) -> None:
    """Raise UserError, before hours of work, for a stage that was begun otherwise or, of some lanes, does not compose.

    composed: names of lanes that stand for all that are alike but for their seeds.
    """
    for lane_name, lane in lanes.items():
        for name, command, overrides in lane:
            if (root / name / "run.json").exists():
                check_begun(root / name, command, overrides)
            elif lane_name in composed:
                config = check_stage(command, overrides)
                if command == "synthesize" and config.draws > 1:
                    check_draws(config, config.sampler.order or "actions_first")


def collect(config: AblateConfig, cells: Sequence[Cell], root: Path) -> None:
    """Record what the policies and generators learn from; the few are among all."""
    seed = [f"first_seed={config.first_seed}", f"seed={config.seed}", *config.collect]

    def record(name: str, tasks: Sequence[str], episodes: int, *more: str) -> None:
        words = [f"tasks={listed(tasks)}", f"episodes_per_task={episodes}", *more, *seed]
        stage(root / name, "collect", words, CollectResult)

    feeds = {cell.feed for cell in cells if cell.needs_generator or ARMS[cell.arm].real == "all"}
    counts = {max(cell.few, config.fed_few) for cell in cells if ARMS[cell.arm].real == "few"}
    for few in sorted(counts | ({config.fed_few} if "fair" in feeds else set())):
        record(few_dataset(config, few), config.tasks, few, "positions=inner")
    if "paper" in feeds:
        record("real_all", [*config.tasks, *config.new_tasks], config.real_per_task)
    if "fair" in feeds:
        record("real_others", [*config.new_tasks, *config.other_tasks], config.real_per_task)


def cell_rows(config: AblateConfig, root: Path, cells: Sequence[Cell], failed: Sequence[str]) -> list[CellRow]:
    """One row for each cell and suite: axes, successes, interval, status and, where it failed, the message."""
    rows = []
    for cell in cells:
        suites = {} if cell.name in failed else measured_suites(root, cell)
        error = None if suites else first_error(config, root, cell)
        for suite in config.suites:
            rate = vars(entry(root / cell.name / "evaluate", "suites", suites, suite).alone) if suites else NO_RATE
            status = "finished" if suites else "failed"
            rows.append(CellRow(axes=asdict(cell), suite=suite, **rate, status=status, error=error))
    return rows


def first_error(config: AblateConfig, root: Path, cell: Cell) -> str:
    """What the first stage that failed for a cell said."""
    before = generator_lane(config, root, cell.feed, generator_seed(config, cell), 1) if cell.needs_generator else []
    before += pretraining_lane(config, root, cell) if ARMS[cell.arm].finetuned else []
    for name, _, _ in [*before, *cell_lane(config, root, cell)]:
        if (root / name / "run.json").exists() and (record := read_record(root / name))["status"] != "finished":
            return f"{name}: {record.get('error', 'ended without a message, as when killed or out of memory')}"
    return "did not run"


def summary(result: AblateResult) -> str:
    """How many cells, and the largest lift of synthetic episodes: a choice made on the scenes it is told for."""
    text = f"{len(result.cells)} rows, {len(result.failed)} cells failed"
    arms = [name for name, arm in ARMS.items() if arm.synthetic and not arm.shuffled]
    lifts = [c for c in result.comparisons if c.control == "real_few" and c.arm in arms]
    for suite in dict.fromkeys(lift.suite for lift in lifts if lift.suite in ("unseen", "task")):
        found = [lift for lift in lifts if lift.suite == suite]
        best = max(found, key=lambda c: c.difference)
        span = f"{best.difference:+.3f} [{best.low:+.3f}, {best.high:+.3f}]"
        text += f"; largest lift of {len(found)} over real_few on {suite}: {best.a} ({best.policy}) {span}"
    return text
