"""`vag ablate`: does synthetic data help, how much and which? A grid of arms, policies and seeds, with controls.

Every training and evaluation is one of the other commands, with a run directory below this one: a killed study goes
on with `resume=true` and takes finished cells as they are. A cell that fails is marked; the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from recipes.compose import command_words
from recipes.engine_options import stages_engine
from recipes.plans import check_draws
from recipes.stages import Stage, check_begun, entry, finished_result, run_stage, run_stages
from recipes.study import (
    ARMS,
    GENERATOR_DATA,
    POLICIES,
    Cell,
    cell_stages,
    collect_stages,
    generator_seed,
    generator_stages,
    parse_grid,
    pretraining_stage,
    training_alone,
)
from recipes.study_notes import FILTER_NOTE, describe_commits, describe_draws, notes, power_sentence
from recipes.study_record import (
    exchange_rows,
    filter_rows,
    gather,
    generator_rows,
    rollout_table,
    scene_tasks,
    system_comparisons,
    system_rows,
    task_rows,
)
from recipes.study_schema import AblateConfig
from recipes.worlds import world_of
from toolkit.base.errors import UserError, nearest
from toolkit.base.files import atomic_file, discard, write_text
from toolkit.base.record import RECORD, read_record
from toolkit.base.run import Run
from toolkit.base.typed_json import to_json
from toolkit.data.formats.lerobot_read import read_actions
from toolkit.data.selection import parse_rule
from toolkit.reporting.benchmark_record import bounds_text, write_record
from toolkit.reporting.benchmark_results import AblateResult, CellRow
from toolkit.reporting.plots import figure_file
from toolkit.reporting.results import CollectResult, RolloutResult
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
    collected, stages = collect_stages(config, root, cells), study_stages(config, root, cells)
    check_stages(root, [*collected, *stages])
    engine = stages_engine(config.engine, root)
    for stage in collected:
        run_stage(root, stage, CollectResult)
    check_nested(root)
    stopped = run_stages(root, stages, config.lanes, keep_going=True, engine=engine)
    failed = [cell.name for cell in cells if f"{cell.name}/evaluate" in stopped]
    table = cell_rows(config, root, cells, failed, stages)
    measured = [cell for cell in cells if cell.name not in failed]
    for name, content in (("cells", pd.DataFrame(to_json(table))), ("rollouts", rollout_table(config, root, measured))):
        with atomic_file(root / f"{name}.parquet") as temporary:
            content.to_parquet(temporary, index=False)
    outcomes = gather(root, measured)
    if not outcomes:
        raise UserError(f"ablate: all {len(cells)} cells failed; their messages stand above and in {root}")
    rows, comparisons = system_rows(config, outcomes), system_comparisons(config, outcomes)
    rows += exchange_rows(config, outcomes) + task_rows(config, outcomes, scene_tasks(root, cells))
    rows += generator_rows(root, cells, config) + filter_rows(root, cells, config)
    command = " ".join(["vag ablate", *command_words("ablate", run.record["config"])])
    told = {**notes(config, cells, failed, {row.metric for row in rows}), "policies": describe_commits(root, cells)}
    if any(row.suite.startswith("filters") for row in rows):
        told["filters by threshold"] = FILTER_NOTE
    if draws := describe_draws(config, root, cells):
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
    for key in ("synthesize_by_generator_data", "rounds"):
        for data in getattr(config, key):
            if data not in GENERATOR_DATA:
                raise UserError(f"ablate: {key}: unknown generator_data '{data}'. {nearest(data, GENERATOR_DATA)}")
    check_rounds(config)
    world = world_of(config)
    for suite in config.suites:
        if suite not in world.suites:
            raise UserError(f"ablate: unknown suite '{suite}' of env={world.name}. {nearest(suite, world.suites)}")
        if world.suites[suite].new_tasks and not config.new_tasks:
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
        if cell.generator_data == "other_tasks" and not [*config.other_tasks, *config.new_tasks]:
            raise UserError(
                "ablate: generator_data=other_tasks needs other_tasks=[...], which its generator sees whole"
            )
        if cell.generator_data == "other_tasks" and ARMS[cell.arm].real == "few" and cell.few != config.generator_few:
            raise UserError(
                f"ablate: '{cell.system}': its generator saw generator_few={config.generator_few} real episodes of "
                f"each task, the policy would get {cell.few}; expected the same"
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
    world, taken = world_of(config), dict[str, str]()
    for role in ("tasks", "new_tasks", "other_tasks"):
        for name in getattr(config, role):
            try:
                task, text = world.task_name(name), world.instruction(name)
            except UserError as error:
                raise UserError(f"ablate: {role}: {error}") from error
            if other := taken.get(text):
                raise UserError(f"ablate: {role}: '{task}' is told as '{text}', and so is {other}; drop one")
            taken[text] = f"'{task}' of {role}"


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


def study_stages(config: AblateConfig, root: Path, cells: Sequence[Cell]) -> list[Stage]:
    """The generators, then the cells, each pretraining before the first cell that goes on from it."""
    stages: list[Stage] = []
    for data, seed in dict.fromkeys((c.generator_data, generator_seed(config, c)) for c in cells if c.needs_generator):
        episodes = max(c.synthetic_per_task for c in cells if c.needs_generator)
        made = generator_stages(config, root, data, seed, episodes)
        taught = any(
            ARMS[c.arm].synthetic and (c.generator_data, generator_seed(config, c)) == (data, seed) for c in cells
        )
        stages += made if taught else training_alone(made)
    pretrained: set[str] = set()
    for cell in cells:
        if ARMS[cell.arm].finetuned and cell.pretraining not in pretrained:
            stages.append(pretraining_stage(config, root, cell))
            pretrained.add(cell.pretraining)
        stages += cell_stages(config, root, cell)
    return stages


def check_stages(root: Path, stages: Sequence[Stage]) -> None:
    """Raise UserError, before hours of work, for a stage that was begun otherwise, and for draws that cannot be."""
    for stage in stages:
        if (root / stage.name / RECORD).exists():
            check_begun(root, stage)
        elif stage.command == "synthesize" and stage.config.draws > 1:
            check_draws(stage.config, stage.config.sampler.order or "actions_first")


def cell_rows(
    config: AblateConfig, root: Path, cells: Sequence[Cell], failed: Sequence[str], stages: Sequence[Stage]
) -> list[CellRow]:
    """One row for each cell and suite: axes, successes, interval, status and, where it failed, the message."""
    rows, named = [], {stage.name: stage for stage in stages}
    for cell in cells:
        directory = root / cell.name / "evaluate"
        result = None if cell.name in failed else finished_result(directory, RolloutResult)
        status: Any = {"status": "finished", "error": None}
        if result is None:
            status = {"status": "failed", "error": first_error(root, named, f"{cell.name}/evaluate") or "did not run"}
        for suite in config.suites:
            rate = NO_RATE if result is None else vars(entry(directory, "suites", result.suites, suite).alone)
            rows.append(CellRow(axes=asdict(cell), suite=suite, **rate, **status))
    return rows


def first_error(root: Path, stages: Mapping[str, Stage], name: str) -> str | None:
    """What the first stage that failed said, of those that a stage needs and itself; None if none has."""
    for need in stages[name].needs:
        if (error := first_error(root, stages, need)) is not None:
            return error
    if (root / name / RECORD).exists() and (record := read_record(root / name))["status"] != "finished":
        return f"{name}: {record.get('error', 'ended without a message, as when killed or out of memory')}"
    return None


def summary(result: AblateResult) -> str:
    """How many cells, and the largest lift of synthetic episodes: a choice made on the scenes it is told for."""
    text = f"{len(result.cells)} rows, {len(result.failed)} cells failed"
    arms = [name for name, arm in ARMS.items() if arm.synthetic and not arm.shuffled]
    lifts = [c for c in result.comparisons if c.control == "real_few" and c.arm in arms]
    for suite in dict.fromkeys(lift.suite for lift in lifts if lift.suite in ("unseen", "task")):
        found = [lift for lift in lifts if lift.suite == suite]
        best = max(found, key=lambda c: c.difference)
        span = f"{best.difference:+.3f}{bounds_text(best, '+.3f')}"
        text += f"; largest lift of {len(found)} over real_few on {suite}: {best.a} ({best.policy}) {span}"
    return text
