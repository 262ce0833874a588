"""What a study found: the rows, comparisons and notes of its record."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.stages import entry, finished_result, is_finished
from recipes.study import ARMS, GENERATOR_POLICY, POLICIES, Cell, generator_name, generator_seed, outcome_runs
from recipes.study_schema import AblateConfig
from toolkit.data.formats.lerobot_read import noted_episodes
from toolkit.data.selection import HIGHER_IS_BETTER, column
from toolkit.envs.shifts import SUITES
from toolkit.evaluation.exchange import exchange_rate
from toolkit.evaluation.rates import RolloutRates
from toolkit.evaluation.systems import Trained, compare_success, measured_quantity, measured_success
from toolkit.reporting.benchmark_results import Difference, Row
from toolkit.reporting.results import ReplayResult, RolloutResult

SHARES = (10, 25, 50, 75, 100)  # per cent of the episodes of a task that a filter keeps
ROW_AXES = ("arm", "policy", "generator_data", "few", "synthetic_fraction", "synthetic_per_task", "weight_by")
Outcomes = dict[tuple[Cell, str], dict[int, list[bool]]]  # (cell with seed 0, suite): training seed: scenes


def measured_suites(root: Path, cell: Cell) -> dict[str, RolloutRates]:
    """By suite what `vag evaluate` found of a cell; empty if it was not evaluated."""
    result = finished_result(root / cell.name / "evaluate", RolloutResult)
    return {} if result is None else result.suites


def gather(root: Path, cells: Sequence[Cell]) -> Outcomes:
    """Outcomes of every rollout, policy by policy; scenes in the same order for all."""
    outcomes: Outcomes = {}
    for cell in sorted(cells, key=lambda cell: [*POLICIES, GENERATOR_POLICY].index(cell.policy)):
        for suite, measured in measured_suites(root, cell).items():
            seeds = outcomes.setdefault((cell.group, suite), {})
            seeds[cell.seed] = [bool(success) for _, _, success in measured.outcomes]
    return outcomes


def rollout_table(config: AblateConfig, root: Path, cells: Sequence[Cell]) -> Any:
    """One row for each rollout: axes of its cell, the seed of its generator, suite, task, seed of the scene, success.

    Enough for other intervals and pairs, without the large directory of the study: `recipes/recompute.py`.
    """
    import pandas as pd

    def generator(cell: Cell) -> int | None:
        return generator_seed(config, cell) if cell.needs_generator else None

    rows = [
        [*asdict(cell).values(), generator(cell), suite, task, scene, success]
        for cell in cells
        for suite, measured in measured_suites(root, cell).items()
        for task, scene, success in measured.outcomes
    ]
    others = ("generator", "suite", "task", "scene", "success")
    return pd.DataFrame(rows, columns=[*(axis.name for axis in fields(Cell)), *others]).astype({"generator": "Int64"})


def scene_tasks(root: Path, cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Of each suite the task of each scene, in the order that all cells share."""
    return {
        suite: [task for task, _, _ in measured.outcomes]
        for cell in cells
        for suite, measured in measured_suites(root, cell).items()
    }


def trained(
    config: AblateConfig, cell: Cell, seeds: dict[int, list[bool]], common: Container[int] | None = None
) -> Trained:
    """Outcomes of a cell and the generator behind each training seed, of all or of some seeds."""
    chosen = [seed for seed in sorted(seeds) if common is None or seed in common]
    generators = [(cell.generator_data, generator_seed(config, replace(cell, seed=seed))) for seed in chosen]
    outcomes = np.array([seeds[seed] for seed in chosen], dtype=float)
    return Trained(outcomes, generators if cell.needs_generator else None)


def place(cell: Cell, suite: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a row of the record says of a cell: its name in tables and the axes that a row has, then the other axes."""
    axes = {key: value for key, value in asdict(cell).items() if key != "seed"}
    own = {key: axes.pop(key) for key in ROW_AXES}
    return {"system": cell.system, "suite": suite, **own}, axes


def few_alone(cell: Cell, outcomes: Outcomes, suite: str) -> Cell | None:
    """The control with as many real episodes as a cell has; with the fewest there are if it has none."""
    found = [c for c, s in outcomes if s == suite and c.arm == "real_few" and c.policy == cell.policy]
    if ARMS[cell.arm].real == "few":
        found = [c for c in found if c.few == cell.few]
    return min(found, key=lambda c: c.few, default=None)


def share_of_gap(means: np.ndarray) -> np.ndarray:
    """(system - few) / (all - few) of means (N, 3) of these three; NaN where all are not above few."""
    gain, gap = means[:, 0] - means[:, 1], means[:, 2] - means[:, 1]
    return np.divide(gain, gap, out=np.full(len(means), np.nan), where=gap > 0)


def system_rows(config: AblateConfig, outcomes: Outcomes) -> list[Row]:
    """Success of each system, policy and suite over all training seeds; how much of the gap to real_all it closes."""
    rows = []
    for (cell, suite), seeds in outcomes.items():
        system = trained(config, cell, seeds)
        where, axes = place(cell, suite)
        by_seed = {"successes_by_seed": [int(scenes.sum()) for scenes in system.outcomes]}
        rows.append(Row(**where, metric="success", **measured_success(system), more=axes | by_seed))
        few = few_alone(cell, outcomes, suite)
        everything = outcomes.get(
            (Cell("real_all", cell.policy), suite)
        )  # of the same tasks, whatever the generator has seen
        if few is None or everything is None or cell == few or ARMS[cell.arm].real == "all":
            continue
        bars = [
            trained(config, few, outcomes[few, suite]),
            trained(config, Cell("real_all", cell.policy), everything),
        ]
        gap = measured_quantity(bars, lambda means: means[:, 1] - means[:, 0])
        if gap["low_these_checkpoints"] > 0:  # else a share of what may be nothing
            closed = measured_quantity([system, *bars], share_of_gap)
            counts: Any = {"n": system.outcomes.size, "seeds": len(seeds)}
            rows.append(Row(**where, metric="gap_closed", more=axes, **closed, **counts))
    return rows


def task_rows(config: AblateConfig, outcomes: Outcomes, tasks: dict[str, list[str]]) -> list[Row]:
    """Success of each system, policy and suite by task; tasks: as `scene_tasks`."""
    rows = []
    for (cell, suite), seeds in outcomes.items():
        names = np.array(tasks[suite])
        where, axes = place(cell, f"{suite} by task")
        system = trained(config, cell, seeds)
        for task in dict.fromkeys(tasks[suite]):
            part = replace(system, outcomes=system.outcomes[:, names == task])
            rows.append(Row(**where, metric=task, **measured_success(part), more=axes))
    return rows


def controls(cell: Cell, outcomes: Outcomes, suite: str) -> list[Cell]:
    """What a cell is compared with, as far as it was tried.

    The same few real episodes alone; for synthetic episodes also all real ones that their generator has seen, the same
    with shuffled actions, the generator itself in closed loop, and beside real ones the same synthetic ones alone; and
    the same without its filter, weights or augmentation, or fine-tuned as by default.
    """
    arm, found = ARMS[cell.arm], [few_alone(cell, outcomes, suite)]
    if arm.synthetic and not arm.shuffled:
        found.append(Cell("real_all", cell.policy, cell.generator_data))
        found.append(replace(cell, arm=f"{cell.arm}_shuffled"))
        own = [c for c, s in outcomes if s == suite and c.arm == "generator"]
        found += [c for c in own if c.generator_data == cell.generator_data]
    if arm.synthetic and arm.real and not (arm.shuffled or arm.filtered or arm.augmented):
        alone = Cell("synthetic_only", cell.policy, cell.generator_data)
        found.append(replace(alone, synthetic_per_task=cell.synthetic_per_task, weight_by=cell.weight_by))
    if arm.filtered:
        found.append(replace(cell, arm=cell.arm.replace("_filtered", ""), filter="none"))
    if arm.augmented:
        found.append(replace(cell, arm=cell.arm.removesuffix("_augmented")))
    if cell.weight_by != "none":
        found.append(replace(cell, weight_by="none"))
    if arm.finetuned:
        axes = ("finetune", "finetune_share", "finetune_fraction")
        found.append(replace(cell, **{axis: getattr(Cell(cell.arm), axis) for axis in axes}))
    tried = [c for c in found if c is not None and c != cell and (c, suite) in outcomes]
    return list(dict.fromkeys(tried))


def system_comparisons(config: AblateConfig, outcomes: Outcomes) -> list[Difference]:
    """Every system minus its controls, paired by scene."""
    comparisons = []
    for (cell, suite), seeds in outcomes.items():
        for control in controls(cell, outcomes, suite):
            others = outcomes[control, suite]
            common = seeds.keys() & others.keys()  # where a cell has failed there are fewer
            if not common:
                continue
            sides = [trained(config, one, found, common) for one, found in ((cell, seeds), (control, others))]
            comparisons.append(
                Difference(
                    a=cell.system,
                    b=control.system,
                    policy=cell.policy,
                    suite=suite,
                    arm=cell.arm,
                    control=control.arm,
                    metric="success",
                    paired=True,
                    seeds=len(common),
                    **compare_success(*sides),
                )
            )
    return comparisons


def generator_rows(root: Path, cells: Sequence[Cell], config: AblateConfig) -> list[Row]:
    """How good the synthetic episodes are: how many succeed when their actions are replayed, in all and by task.

    A row for all generators of a generator_data whose episodes were replayed, one for each where there are several;
    the same for the rounds before the last, whose episodes no policy gets.
    """
    rows = []
    rounds = {
        data: config.rounds.get(data, 1) for data in dict.fromkeys(c.generator_data for c in cells if c.needs_generator)
    }
    for data, turn in [(data, turn) for data, last in rounds.items() for turn in range(1, last + 1)]:
        seeds = {generator_seed(config, cell) for cell in cells if cell.needs_generator and cell.generator_data == data}
        found: dict[int, dict[tuple[str, int], bool]] = {}  # generator: scene: success
        for seed in sorted(seeds):
            directory = root / f"replay_{generator_name(config, data, seed, turn)}"
            if (result := finished_result(directory, ReplayResult)) is None:
                continue
            replayed = entry(directory, "systems", result.systems, "vag")
            found[seed] = {(task, scene): success for task, scene, success in replayed.outcomes}
        named = f"synthetic generator_data={data}" + (f" round={turn}" if turn < rounds[data] else "")
        groups = {named: list(found.values())} if found else {}
        if len(found) > 1:
            groups |= {f"{named} generator={seed}": [outcomes] for seed, outcomes in found.items()}
        for system, generators in groups.items():
            where: Any = {"system": system, "policy": "replay", "suite": "synthetic scenes"}
            for task in ["", *sorted({task for task, _ in generators[0]})]:
                scenes = [scene for scene in generators[0] if task in ("", scene[0])]
                table = np.array([[outcomes[scene] for scene in scenes] for outcomes in generators], dtype=float)
                rows.append(Row(**where, metric=f"success {task}".strip(), **measured_success(Trained(table))))
    return rows


def filter_rows(root: Path, cells: Sequence[Cell], config: AblateConfig) -> list[Row]:
    """What scores that need no simulator are worth as filters: how many succeed of what they keep, by its share.

    Of each generator whose episodes were scored and replayed; of each task the best by a score, at random where equal.
    """
    rows = []
    for data, seed in dict.fromkeys((c.generator_data, generator_seed(config, c)) for c in cells if c.needs_generator):
        name = generator_name(config, data, seed)
        if not all(map(is_finished, outcome_runs(root, name))):
            continue
        dataset = root / f"synthetic_{name}/dataset"
        episodes = noted_episodes(dataset, outcome_runs(root, name))
        tasks = np.unique([row["task_name"] for row in episodes], return_inverse=True)[1]
        solved = np.array([row["replay_success"] for row in episodes], dtype=float)
        chance = np.random.default_rng(seed).random(len(episodes))
        for score in sorted(key for key in episodes[0] if key.startswith("score_")):
            values = column(score, episodes, str(dataset)) * (-1 if score in HIGHER_IS_BETTER else 1)
            parts = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
            ranked = [part[np.lexsort((chance[part], values[part]))] for part in parts]
            where: Any = {
                "system": score,
                "policy": "replay",
                "suite": f"filters, generator_data={data} generator={seed}",
            }
            for share in SHARES:
                kept = np.concatenate([part[: math.ceil(share / 100 * len(part))] for part in ranked])
                found = measured_success(Trained(solved[None, kept]))
                rows.append(Row(**where, metric=f"success of the best {share} %", **found))
    return rows


def exchange_rows(config: AblateConfig, outcomes: Outcomes) -> list[Row]:
    """How many real episodes a synthetic one replaces, and how many of each task all of them are worth, net.

    Read off the learning curve of real episodes: all of them are its end. Net of what the generator has seen of each
    task beyond what the policy gets; episodes of other tasks are not counted. Not on `position` nor `task`: the few
    real episodes of the curve never cover them, however many there are. Nothing where there are new tasks: along the
    curve both the episodes of a task and the tasks would then grow.
    """
    rows: list[Row] = []
    if config.new_tasks:
        return rows
    for (cell, suite), seeds in outcomes.items():
        arm = ARMS[cell.arm]
        never_covered = SUITES[suite].positions == "outer" or SUITES[suite].new_tasks
        if not arm.synthetic or arm.real != "few" or arm.shuffled or never_covered:
            continue
        curve = {
            other.few: trained(config, other, found)
            for (other, s), found in outcomes.items()
            if (other.arm, other.policy, s) == ("real_few", cell.policy, suite) and other.few >= cell.few
        }
        if everything := outcomes.get((Cell("real_all", cell.policy), suite)):
            curve[config.real_per_task] = trained(config, Cell("real_all", cell.policy), everything)
        if len(curve) < 2 or cell.few not in curve:
            continue
        system = trained(config, cell, seeds)
        where, axes = place(cell, suite)
        found = exchange_rate(system, curve, cell.few, cell.synthetic_per_task)
        axes["at_end_of_curve"] = found.pop("at_end_of_curve")
        seen = config.real_per_task - cell.few if cell.generator_data == "same_tasks" else 0
        worth = exchange_metrics(found, cell.synthetic_per_task, seen)
        counts: Any = {"n": system.outcomes.size, "seeds": len(seeds)}
        rows += [Row(**where, metric=metric, **numbers, **counts, more=axes) for metric, numbers in worth.items()]
    return rows


def exchange_metrics(found: dict[str, Any], synthetic: int, seen: int) -> dict[str, dict[str, Any]]:
    """`real_per_synthetic` as found, its inverse where it is surely above 0, and what all synthetic episodes are worth.

    Less what the generator has seen beyond the policy's own.
    """
    worth = {"real_per_synthetic": found}
    if found["low_these_checkpoints"] > 0:
        swapped = {key: "high" + key.removeprefix("low") for key in found if key.startswith("low")}
        swapped |= {high: low for low, high in swapped.items()}
        inverse = {key: found[swapped.get(key, key)] for key in found}
        worth["synthetic_per_real"] = {k: 1 / v if isinstance(v, float) and v else v for k, v in inverse.items()}
    worth["net_real_episodes"] = {
        key: round(value * synthetic - seen, 6) + 0.0 if isinstance(value, float) else value
        for key, value in found.items()
    }
    return worth
