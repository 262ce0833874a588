"""Intervals of records anew, without running anything: `python -m recipes.recompute recipes/benchmarks/*.json`.

Where the rollouts of a study stand beside its record, in a Parquet file of the same name, intervals and p are computed
from them. Where there are none, intervals that take several training seeds for independent are marked as too narrow,
and those of a single training are called what they are: of these checkpoints. Measured values stay as they are.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recipes.compose import compose_config
from recipes.generator_rows import SCENE_METRICS
from recipes.study import Cell
from recipes.study_record import Outcomes, exchange_rows, system_comparisons, system_rows, task_rows
from recipes.study_schema import AblateConfig
from toolkit.base.errors import UserError
from toolkit.base.files import write_json, write_text
from toolkit.base.reading import read_json
from toolkit.base.typed_json import from_json, to_json
from toolkit.evaluation.systems import FEWEST_CLUSTERS, HOW_TO_READ
from toolkit.reporting.benchmark_record import TOO_NARROW, record_page
from toolkit.reporting.benchmark_results import BenchmarkRecord, Difference, Ranked, Ratio, Row

INTERVAL = ("low", "high", "low_these_checkpoints", "high_these_checkpoints", "note")
UNCERTAIN = {"ablation": None, "policies": None, "generators": ("replay_success", *SCENE_METRICS)}  # None: all metrics
NO_ROLLOUTS = f"{TOO_NARROW}: see the notes of the record"
TO_READ = (
    "rows whose note says so have low and high of an early method: a bootstrap over training seeds and scenes, or "
    "Wilson's interval over all rollouts. It takes training seeds for independent, however few and whatever generators "
    "and scenes they share: with two generators behind three seeds it covers .79 of rates and .87 of differences. No "
    "rollouts are kept to compute it again. p there is the largest of McNemar's test of a single training seed: no "
    "test of systems"
)


def main(paths: Sequence[str]) -> None:
    for path in map(Path, paths):
        record = from_json(BenchmarkRecord, read_json(path), path, "record")
        rollouts = path.with_suffix(".parquet")
        made = recomputed(record, rollouts) if rollouts.exists() else marked(record)
        write_json(path, to_json(made))
        write_text(path.with_suffix(".md"), record_page(made))


def recomputed(record: BenchmarkRecord, rollouts: Path) -> BenchmarkRecord:
    """The record of a study with intervals from its rollouts; raises UserError if they give other measured values."""
    words = shlex.split(record.command)[2:]  # vag ablate
    made_of: Any = OmegaConf.to_object(compose_config("ablate", words))
    config: AblateConfig = made_of
    outcomes, tasks = read_rollouts(rollouts)
    rows = system_rows(config, outcomes) + exchange_rows(config, outcomes) + task_rows(config, outcomes, tasks)
    new: dict[tuple[Any, ...], Row | Difference] = {identity(row): row for row in rows}
    new |= {identity(found): found for found in system_comparisons(config, outcomes)}
    early = marked(record)
    made = [(old, new.get(identity(old))) for old in [*early.rows, *early.comparisons] if not isinstance(old, Ratio)]
    lines = [renewed(old, found, rollouts) if found else old for old, found in made]
    told = f"intervals and p were computed again from the rollouts in {rollouts.name}"
    left = {line.suite for line in lines if (line.note or "").startswith(TOO_NARROW)}
    notes = {**record.notes, "intervals": HOW_TO_READ, "computed again": told}
    notes |= {TOO_NARROW: f"in {', '.join(sorted(left))}: {TO_READ}"} if left else {}
    count = len(set(config.generator_seeds))
    if "generators" in notes and count < FEWEST_CLUSTERS:
        behind = notes["generators"].partition(";")[0].partition(":")[0]
        notes["generators"] = f"{behind}: too few for an interval of systems of what they taught"
    return replace(
        record,
        notes=notes,
        rows=[line for line in lines if isinstance(line, Row)],
        comparisons=[line for line in lines if isinstance(line, Difference)],
    )


def read_rollouts(path: Path) -> tuple[Outcomes, dict[str, list[str]]]:
    """Outcomes of each cell and suite, and of each suite the task of each scene. Raises UserError for other scenes."""
    import pandas as pd

    table = pd.read_parquet(path)
    axes = [field.name for field in fields(Cell)]
    for field in fields(Cell):
        if field.name not in table:  # of a study that is older than an axis
            table[field.name] = field.default
    outcomes: Outcomes = {}
    scenes: dict[str, list[tuple[str, int]]] = {}
    for key, part in table.groupby([*axes, "suite"], sort=False):
        *values, suite = (value.item() if hasattr(value, "item") else value for value in key)
        cell = Cell(**dict(zip(axes, values, strict=True)))
        met = list(zip(part["task"], part["scene"], strict=True))
        if scenes.setdefault(suite, met) != met:
            raise UserError(f"{path}: '{cell.name}' met other scenes of '{suite}' than the first cell")
        outcomes.setdefault((cell.group, suite), {})[cell.seed] = part["success"].tolist()
    return outcomes, {suite: [task for task, _ in met] for suite, met in scenes.items()}


def identity(line: Row | Difference | Ratio) -> tuple[Any, ...]:
    """What a row or comparison is of."""
    names = (line.system,) if isinstance(line, Row) else (line.a, line.b)
    return (*names, line.suite, line.metric, line.policy)


def renewed(old: Row | Difference, new: Row | Difference, rollouts: Path) -> Row | Difference:
    """The old one with the intervals of the new."""
    values = [line.value if isinstance(line, Row) else line.difference for line in (old, new)]
    if abs(values[0] - values[1]) > 1e-6:
        raise UserError(
            f"{rollouts}: {identity(old)} is {values[1]:.6g} by these rollouts, {values[0]:.6g} in the record"
        )
    changes: dict[str, Any] = {key: getattr(new, key) for key in INTERVAL}
    if isinstance(old, Difference) and isinstance(new, Difference):
        changes |= {"p": None, "p_these_checkpoints": new.p_these_checkpoints}
    elif isinstance(old, Row) and isinstance(new, Row):
        changes["more"] = {key: new.more.get(key, value) for key, value in old.more.items()}
    return replace(old, **changes)


def marked(record: BenchmarkRecord) -> BenchmarkRecord:
    """The record with its intervals called what they are; those of times, and of sets of clips, stay."""
    metrics = UNCERTAIN.get(record.benchmark, ())
    seeds = {(row.system, row.suite): row.seeds or 0 for row in record.rows if metrics is None or row.metric in metrics}

    def named(line: Any, count: int) -> Any:
        if count == 0 or line.note is not None or line.low_these_checkpoints is not None:
            return line
        if count > 1:
            return replace(line, note=NO_ROLLOUTS)
        note = f"no interval of systems: 1 training run, it takes {FEWEST_CLUSTERS}"
        scenes = {"low_these_checkpoints": line.low, "high_these_checkpoints": line.high, "low": None, "high": None}
        test = {"p": None, "p_these_checkpoints": line.p} if isinstance(line, Difference) else {}
        return replace(line, note=note, **scenes, **test)

    def of_row(row: Row) -> Row:
        made: Row = named(row, row.seeds or 0 if metrics is None or row.metric in metrics else 0)
        return made

    def of_comparison(line: Difference | Ratio) -> Difference | Ratio:
        if isinstance(line, Ratio):
            return line
        made: Difference = named(line, line.seeds or seeds.get((line.a, line.suite), 0))
        return made

    def of_rank(row: Ranked) -> Ranked:
        made: Ranked = named(row, row.seeds)
        return made

    rows, comparisons = list(map(of_row, record.rows)), list(map(of_comparison, record.comparisons))
    boards = record.leaderboards and {suite: list(map(of_rank, board)) for suite, board in record.leaderboards.items()}
    early = any(
        (line.note or "").startswith(TOO_NARROW) for line in [*rows, *comparisons] if not isinstance(line, Ratio)
    )
    notes = record.notes | ({TOO_NARROW: TO_READ} if early else {})
    return replace(record, notes=notes, rows=rows, comparisons=comparisons, leaderboards=boards)


if __name__ == "__main__":
    main(sys.argv[1:])
