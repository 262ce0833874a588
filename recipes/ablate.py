"""`vag ablate`: does synthetic data help, how much and which? A grid of arms, policies and seeds, with controls.

Every training and evaluation is one of the other commands, with a run directory below this one: a killed study goes
on with `resume=true` and takes finished cells as they are. A cell that fails is marked; the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recipes.compose import command_words, compose_config
from recipes.lanes import Lane, check_same, run_lanes, stage
from recipes.schema import AblateConfig
from recipes.study import (
    ARMS,
    FEEDS,
    POLICIES,
    Cell,
    cell_lane,
    few_dataset,
    generator_lane,
    generator_name,
    generator_seed,
    parse_grid,
    total_steps,
)
from toolkit.data.lerobot_io import read_actions
from toolkit.data.selection import parse_rule
from toolkit.envs.metaworld import instructions
from toolkit.envs.shifts import SUITES
from toolkit.errors import UserError, nearest
from toolkit.evaluation.exchange import exchange_rate
from toolkit.evaluation.statistics import (
    bootstrap_means,
    compare_systems,
    design_power,
    measured_success,
    percentile_interval,
    two_proportion_sample_size,
)
from toolkit.reporting.benchmark_record import write_record
from toolkit.reporting.media import atomic
from toolkit.reporting.plots import figure_file
from toolkit.reporting.run_record import Run, read_record
from toolkit.reporting.success import arm_figures, fraction_figures

Outcomes = dict[tuple[Cell, str], dict[int, list[bool]]]  # (cell with seed 0, suite): training seed: scenes

EXTENDABLE = True  # cells that are there are taken as they are, so a grid can grow


def run(config: AblateConfig, run: Run) -> None:
    """Collect, train, evaluate all cells; write `cells.parquet`, `arms.svg`, `figure.svg`, `record.json`, `record.md`.

    Print the record as the last line.
    """
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
        lanes[cell.name] = cell_lane(config, root, cell)
        if cell.needs_generator:
            after[cell.name] = f"generator_{cell.feed}_{generator_seed(config, cell)}"
    first = {cell.group: cell.name for cell in reversed(cells)}  # the others differ in their seeds alone
    check_lanes(root, lanes, {*first.values(), *after.values()})
    collect(config, cells, root)
    check_nested(root)
    failed = run_lanes(root, lanes, config.lanes, after, keep_going=True)
    table = cell_table(config, root, cells, failed)
    with atomic(root / "cells.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    outcomes = gather(root, [cell for cell in cells if cell.name not in failed])
    if not outcomes:
        raise UserError(f"ablate: all {len(cells)} cells failed; their messages stand above and in {root}")
    rows, comparisons = system_rows(outcomes), system_comparisons(outcomes)
    rows += generator_rows(root, cells, config) + exchange_rows(config, outcomes)
    command = " ".join(["vag ablate", *command_words("ablate", run.record["config"])])
    told = {**notes(config, cells, failed), "policies": told_commits(root, cells)}
    record = write_record(root, "ablation", command, rows, comparisons, told)
    for name, figures in (("arms", arm_figures(rows)), ("figure", fraction_figures(rows))):
        path = root / f"{name}.svg"
        path.unlink(missing_ok=True)
        if figures:
            with atomic(path) as temporary:
                temporary.write_text(figure_file(figures))
    run.result.update(
        rows=rows, comparisons=comparisons, failed=failed, cells=json.loads(table.to_json(orient="records"))
    )
    print(json.dumps(record), flush=True)


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
    if wrong := [f"{policy}:{steps}" for policy, steps in config.policy_steps.items() if steps < 1]:
        raise UserError(f"ablate: policy_steps={{{wrong[0]}}}: expected at least 1")
    for key in ("feed_synthesize", "rounds"):
        for feed in getattr(config, key):
            if feed not in FEEDS:
                raise UserError(f"ablate: {key}: unknown feed '{feed}'. {nearest(feed, FEEDS)}")
    if wrong := [f"{feed}:{rounds}" for feed, rounds in config.rounds.items() if rounds < 1]:
        raise UserError(f"ablate: rounds={{{wrong[0]}}}: expected at least 1")
    for suite in config.suites:
        if suite not in SUITES:
            raise UserError(f"ablate: unknown suite '{suite}'. {nearest(suite, SUITES)}")
        if SUITES[suite].new_tasks and not config.new_tasks:
            raise UserError(
                f"ablate: suite '{suite}' needs new_tasks=[...], tasks of which the policy gets no real demo"
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
                check_same(root / name, read_record(root / name)["config"], command, overrides)
            elif lane_name in composed:
                compose_config(command, overrides)


def collect(config: AblateConfig, cells: Sequence[Cell], root: Path) -> None:
    """Record what the policies and generators learn from; the few are among all."""
    seed = [f"first_seed={config.first_seed}", f"seed={config.seed}", *config.collect]

    def record(name: str, tasks: Sequence[str], episodes: int, *more: str) -> None:
        stage(root / name, "collect", [f"tasks=[{','.join(tasks)}]", f"episodes_per_task={episodes}", *more, *seed])

    feeds = {cell.feed for cell in cells if cell.needs_generator or ARMS[cell.arm].real == "all"}
    counts = {max(cell.few, config.fed_few) for cell in cells if ARMS[cell.arm].real == "few"}
    for few in sorted(counts | ({config.fed_few} if "fair" in feeds else set())):
        record(few_dataset(config, few), config.tasks, few, "positions=inner")
    if "paper" in feeds:
        record("real_all", [*config.tasks, *config.new_tasks], config.real_per_task)
    if "fair" in feeds:
        record("real_others", [*config.new_tasks, *config.other_tasks], config.real_per_task)


def cell_table(config: AblateConfig, root: Path, cells: Sequence[Cell], failed: Sequence[str]) -> Any:
    """One row for each cell and suite: axes, successes, interval, status and, where it failed, the message."""
    import pandas as pd

    rows = []
    for cell in cells:
        evaluation = None if cell.name in failed else finished(root / cell.name / "evaluate")
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
    """Outcomes of every rollout, policy by policy; scenes in the same order for all."""
    outcomes: Outcomes = {}
    for cell in sorted(cells, key=lambda cell: POLICIES.index(cell.policy)):
        evaluation = finished(root / cell.name / "evaluate")
        for suite, measured in (evaluation or {"suites": {}})["suites"].items():
            seeds = outcomes.setdefault((cell.group, suite), {})
            seeds[cell.seed] = [bool(success) for _, _, success in measured["outcomes"]]
    return outcomes


def matrix(seeds: dict[int, list[bool]]) -> np.ndarray:
    """(training seeds, scenes)."""
    return np.array([seeds[seed] for seed in sorted(seeds)], dtype=float)


def place(cell: Cell, suite: str) -> dict[str, Any]:
    """What a row of the record says of a cell: its name in tables, and its axes."""
    axes = {key: value for key, value in asdict(cell).items() if key != "seed"}
    return {"system": cell.system, "suite": suite, **axes}


def few_alone(cell: Cell, outcomes: Outcomes, suite: str) -> Cell | None:
    """The control with as many real episodes as a cell has; with the fewest there are if it has none."""
    found = [c for c, s in outcomes if s == suite and c.arm == "real_few" and c.policy == cell.policy]
    if ARMS[cell.arm].real == "few":
        found = [c for c in found if c.few == cell.few]
    return min(found, key=lambda c: c.few, default=None)


def system_rows(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Success of each system, policy and suite over all training seeds; how much of the gap to real_all it closes."""
    rows = []
    for (cell, suite), seeds in outcomes.items():
        table = matrix(seeds)
        rows.append({**place(cell, suite), "metric": "success", **measured_success(table)})
        few = few_alone(cell, outcomes, suite)
        everything = outcomes.get((Cell("real_all", cell.policy, cell.feed), suite))
        if few is None or everything is None or cell == few or ARMS[cell.arm].real == "all":
            continue
        tables = [table, matrix(outcomes[few, suite]), matrix(everything)]
        means = bootstrap_means(tables)
        gain, gap = means[:, 0] - means[:, 1], means[:, 2] - means[:, 1]
        if percentile_interval(0, gap)["low"] > 0:  # else a share of what may be nothing
            share = (tables[0].mean() - tables[1].mean()) / (tables[2].mean() - tables[1].mean())
            closed = percentile_interval(share, gain[gap > 0] / gap[gap > 0])
            rows.append({**place(cell, suite), "metric": "gap_closed", **closed, "n": table.size, "seeds": len(table)})
    return rows


def controls(cell: Cell, outcomes: Outcomes, suite: str) -> list[Cell]:
    """What a cell is compared with, as far as it was tried.

    The same few real episodes alone; for synthetic episodes also all real ones that their generator has seen; and the
    same without its filter, weights or augmentation, or fine-tuned as by default.
    """
    arm, found = ARMS[cell.arm], [few_alone(cell, outcomes, suite)]
    if arm.synthetic and not arm.shuffled:
        found.append(Cell("real_all", cell.policy, cell.feed))
    if arm.filtered:
        found.append(replace(cell, arm=cell.arm.removesuffix("_filtered"), filter="none"))
    if arm.augmented:
        found.append(replace(cell, arm=cell.arm.removesuffix("_augmented")))
    if cell.weight_by != "none":
        found.append(replace(cell, weight_by="none"))
    if arm.finetuned:
        axes = ("finetune", "finetune_share", "finetune_fraction")
        found.append(replace(cell, **{axis: getattr(Cell(cell.arm), axis) for axis in axes}))
    return [c for c in found if c is not None and c != cell and (c, suite) in outcomes]


def system_comparisons(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Every system minus its controls, paired by scene."""
    comparisons = []
    for (cell, suite), seeds in outcomes.items():
        for control in controls(cell, outcomes, suite):
            others = outcomes[control, suite]
            common = sorted(seeds.keys() & others.keys())  # where a cell has failed there are fewer
            if not common:
                continue
            pair = {"a": cell.system, "b": control.system, "policy": cell.policy, "suite": suite}
            arms = {"arm": cell.arm, "control": control.arm, "metric": "success", "paired": True, "seeds": len(common)}
            tables = [matrix({seed: side[seed] for seed in common}) for side in (seeds, others)]
            comparisons.append({**pair, **arms, **compare_systems(*tables)})
    return comparisons


def generator_rows(root: Path, cells: Sequence[Cell], config: AblateConfig) -> list[dict[str, Any]]:
    """How good the synthetic episodes are: how many succeed when their actions are replayed, in all and by task.

    A row for all generators of a feed whose episodes were replayed, and one for each where there are several; the same
    for the rounds before the last, whose episodes no policy gets. Raises UserError for a replay without outcomes.
    """
    rows = []
    rounds = {feed: config.rounds.get(feed, 1) for feed in dict.fromkeys(c.feed for c in cells if c.needs_generator)}
    for feed, turn in [(feed, turn) for feed, last in rounds.items() for turn in range(1, last + 1)]:
        seeds = {generator_seed(config, cell) for cell in cells if cell.needs_generator and cell.feed == feed}
        found: dict[int, dict[tuple[str, int], bool]] = {}  # generator: scene: success
        for seed in sorted(seeds):
            directory = root / f"replay_{generator_name(config, feed, seed, turn)}"
            if (result := finished(directory)) is None:
                continue
            if "outcomes" not in (replayed := result["systems"]["vag"]):
                raise UserError(f"{directory}: of an earlier version; delete it to have it made again")
            found[seed] = {(task, scene): success for task, scene, success in replayed["outcomes"]}
        named = f"synthetic feed={feed}" + (f" round={turn}" if turn < rounds[feed] else "")
        groups = {named: list(found.values())} if found else {}
        if len(found) > 1:
            groups |= {f"{named} generator={seed}": [outcomes] for seed, outcomes in found.items()}
        for system, generators in groups.items():
            where = {"system": system, "policy": "replay", "suite": "synthetic scenes"}
            for task in ["", *sorted({task for task, _ in generators[0]})]:
                scenes = [scene for scene in generators[0] if task in ("", scene[0])]
                table = np.array([[outcomes[scene] for scene in scenes] for outcomes in generators], dtype=float)
                rows.append({**where, "metric": f"success {task}".strip(), **measured_success(table)})
    return rows


def exchange_rows(config: AblateConfig, outcomes: Outcomes) -> list[dict[str, Any]]:
    """How many real episodes a synthetic one replaces, and how many of each task all of them are worth, net.

    Read off the learning curve of real episodes: all of them are its end. Net of what the generator has seen of each
    task beyond what the policy gets; episodes of other tasks are not counted. Not on `position` nor `task`: the few
    real episodes of the curve never cover them, however many there are.
    """
    rows = []
    for (cell, suite), seeds in outcomes.items():
        arm = ARMS[cell.arm]
        never_covered = SUITES[suite].positions == "outer" or SUITES[suite].new_tasks
        if not arm.synthetic or arm.real != "few" or arm.shuffled or never_covered:
            continue
        curve = {
            other.few: matrix(found)
            for (other, s), found in outcomes.items()
            if (other.arm, other.policy, s) == ("real_few", cell.policy, suite) and other.few >= cell.few
        }
        if everything := outcomes.get((Cell("real_all", cell.policy), suite)):
            curve[config.real_per_task] = matrix(everything)
        if len(curve) < 2 or cell.few not in curve:
            continue
        table = matrix(seeds)
        where = {**place(cell, suite), "n": table.size, "seeds": len(seeds)}
        rate = exchange_rate(table, curve, cell.few, cell.synthetic_per_task)
        rows.append({**where, "metric": "real_per_synthetic", **rate})
        if rate["low"] > 0:
            inverse = {"value": 1 / rate["value"], "low": 1 / rate["high"], "high": 1 / rate["low"]}
            rows.append({**where, "metric": "synthetic_per_real", **rate, **inverse})
        seen = config.real_per_task - cell.few if cell.feed == "paper" else 0
        net = {key: round(rate[key] * cell.synthetic_per_task - seen, 6) + 0.0 for key in ("value", "low", "high")}
        rows.append({**where, "metric": "net_real_episodes", **rate, **net})
    return rows


def power_sentence(config: AblateConfig, cells: Sequence[Cell]) -> str:
    few, many = config.gap
    needed = two_proportion_sample_size(few, many, config.power)
    scenes, seeds = config.scenes_per_task * len(config.tasks), len({cell.seed for cell in cells})
    found = design_power(few, many, scenes, seeds, config.seed_deviation)
    return (
        f"to tell {few} from {many} apart with power {config.power} takes {needed} independent rollouts an arm; "
        f"{scenes} scenes x {seeds} training seeds have power {found:.2f} if the rate differs by "
        f"{config.seed_deviation} from seed to seed"
    )


def told_training(config: AblateConfig, policy: str) -> str:
    """Overrides of a policy's training; of those for the same key the last one, which counts."""
    words = [f"optim.steps={total_steps(config, policy)}", *config.train, *config.policy_train.get(policy, [])]
    return " ".join([policy, *{word.partition("=")[0]: word for word in words}.values()])


def told_commits(root: Path, cells: Sequence[Cell]) -> str:
    """Which commit trained the policies: of each kind, and of which arms where they differ."""
    commits: dict[str, dict[str, dict[str, None]]] = {}  # policy: commit: systems
    for cell in cells:
        if (root / cell.name / "train/run.json").exists():
            sha = read_record(root / cell.name / "train")["git_sha"]
            commits.setdefault(cell.policy, {}).setdefault(sha, {})[cell.system] = None
    return "; ".join(
        f"{policy} trained by commit {sha}" + (f": {', '.join(systems)}" if len(found) > 1 else "")
        for policy, found in commits.items()
        for sha, systems in found.items()
    )


def notes(config: AblateConfig, cells: Sequence[Cell], failed: Sequence[str]) -> dict[str, str]:
    """What a reader needs to judge the numbers."""
    everything, others = [*config.tasks, *config.new_tasks], [*config.new_tasks, *config.other_tasks]
    episodes = {"paper": f"{config.real_per_task} real episodes of each of {', '.join(everything)}"}
    episodes["fair"] = f"{config.fed_few} real episodes of each of {', '.join(config.tasks)}"
    if others:
        episodes["fair"] += f", {config.real_per_task} of each of {', '.join(others)}"
    feeds = dict.fromkeys(cell.feed for cell in cells if cell.needs_generator)
    default, used = Cell("cotrain"), sorted({cell.filter for cell in cells} - {"none"})
    found = {
        "arms": f"where their names say nothing else, with few={default.few} real episodes a task, "
        f"synthetic_per_task={default.synthetic_per_task} synthetic ones, synthetic_fraction="
        f"{default.synthetic_fraction} of the clips while both take part",
        "scenes": f"{config.scenes_per_task} of each of {', '.join(config.tasks)} in every suite"
        + (f", of {', '.join(config.new_tasks)} in task" if "task" in config.suites else "")
        + f", from seed {config.held_out_seed} on; the same for all cells. Objects stand where those of the few real "
        "episodes may, in `position` where they may not",
        "intervals": "95 %, over training seeds (for synthetic scenes those of the generators) and scenes: the outer "
        "bounds of Wilson's interval and a bootstrap for success, a bootstrap for differences, gap_closed = (system - "
        "real_few) / (real_all - real_few), told where that gap is surely above 0, and real_per_synthetic, a lower "
        "bound where at_end_of_curve. p is McNemar's exact test for the training seed where it is largest, not "
        "corrected for the number of comparisons",
        "generators": f"{len(config.generator_seeds)} behind {len({cell.seed for cell in cells})} training seeds of "
        "the policies; intervals know the policies' seeds alone, so where a generator is shared they are rather too "
        "narrow",
        "exchange": "a synthetic episode is worth real_per_synthetic real ones if what its generator saw is free; "
        "net_real_episodes: what all synthetic ones of a task are worth, less what the generator has seen of it beyond "
        "the policy's own. The curve ends at all real episodes, so with feed=paper no more than 0 can be found",
        "training": f"{config.real_per_task} real episodes a task are all. The same in every arm: "
        + "; ".join(told_training(config, p) for p in dict.fromkeys(cell.policy for cell in cells)),
        "power": power_sentence(config, cells),
    }
    if any(ARMS[cell.arm].finetuned for cell in cells):
        found["fine-tuning"] = " ".join(config.finetune)
    if used:
        found["filters"] = "; ".join(f"{name}: {' and '.join(config.filters[name])}" for name in used)
    if config.evaluate:
        found["rollouts"] = " ".join(config.evaluate)
    for feed in feeds:
        seen = f"has seen {episodes[feed]}"
        if (rounds := config.rounds.get(feed, 1)) > 1:
            seen += (
                f"; after round 1 also of its earlier episodes those with {' and '.join(config.round_select)}, in "
                f"{rounds} rounds. Each round generates from new scenes; policies get episodes of the last"
            )
        if make := [*config.synthesize, *config.feed_synthesize.get(feed, [])]:
            seen += f". Generates with {' '.join(make)}"
        found[f"generator of feed={feed}"] = seen
    if failed:
        found["failed"] = ", ".join(failed)
    return found


def summary(result: dict[str, Any]) -> str:
    """How many cells, and the largest lift of synthetic episodes: a choice made on the scenes it is told for."""
    text = f"{len(result['cells'])} rows, {len(result['failed'])} cells failed"
    arms = [name for name, arm in ARMS.items() if arm.synthetic and not arm.shuffled]
    lifts = [
        c for c in result["comparisons"] if (c["suite"], c["control"]) == ("unseen", "real_few") and c["arm"] in arms
    ]
    if not lifts:
        return text
    best = max(lifts, key=lambda c: c["difference"])
    span = f"{best['difference']:+.3f} [{best['low']:+.3f}, {best['high']:+.3f}]"
    return f"{text}; largest lift of {len(lifts)} over real_few on unseen: {best['a']} ({best['policy']}) {span}"
