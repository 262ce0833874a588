"""What the report shows of each command, between the sentences about its runs and its media."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.reading import read_json
from toolkit.base.typed_json import MOST, MisfitError, read_as, to_json
from toolkit.reporting import plots
from toolkit.reporting.benchmark_record import cell_text, system_name
from toolkit.reporting.benchmark_results import (
    AblateResult,
    BenchmarkGeneratorsResult,
    BenchmarkPoliciesResult,
    Difference,
    Row,
)
from toolkit.reporting.markup import distinct, escaped, framed, rows_table, side_by_side, spaced
from toolkit.reporting.results import (
    RESULTS,
    CollectResult,
    DataEntry,
    DemoResult,
    EvaluateGeneratorResult,
    InspectResult,
    PolicyRate,
    ReplayResult,
    RolloutResult,
    SynthesizeResult,
)
from toolkit.reporting.success import (
    RateRow,
    arm_figures,
    fraction_figures,
    glossary,
    rates_table,
    row_names,
    success_parts,
    successes,
    verdicts,
)

# What a record is made of. What is of another kind is left out, which the page says.
KINDS: dict[str, Any] = {
    "config": dict[str, Any],
    "git_sha": str,
    "versions": dict[str, str],
    "hardware": str,
    "seed": int | None,
    "data": list[DataEntry],
    "started": str,
    "wall_seconds": float,
    "error": str,
}
LONGEST_RUN = 1e10  # seconds
type Results[Kind] = Sequence[tuple[str, Kind]]  # name of a run, what it found


@dataclass(frozen=True)
class RunPage:
    """One run directory: its name on the page, its record, and what of that is left out because it is not sound.

    result: None where the run found nothing yet, or its record holds no result of its command.
    """

    name: str
    path: Path
    record: dict[str, Any]
    result: Any = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> RunPage:
        """The record of a run, whoever wrote it. Raises UserError if there is none, or it is none of a vag command."""
        path = directory / "run.json"
        found = read_json(path)
        for key in ("command", "status"):
            if not isinstance(found.get(key), str) or not found[key].strip():
                raise UserError(f"{path}: '{key}' is {found.get(key)!r:.60}; expected the record of a vag command")
        record: dict[str, Any] = {}
        left_out = []
        for key, value in found.items():
            try:
                read_as(KINDS.get(key, Any), value, key)
                record[key] = sound(value)
            except MisfitError as error:
                left_out.append(str(error))
        if not 0 <= record.get("wall_seconds", 0) < LONGEST_RUN:
            left_out.append(f"'wall_seconds' is {record.pop('wall_seconds')}, which cannot be")
        result = None
        try:
            result = read_as(RESULTS.get(found["command"], dict[str, Any]), found.get("result"), "result")
        except MisfitError as error:
            if found["status"] == "finished" or not isinstance(found.get("result"), dict):
                left_out.append(str(error))
        return cls(directory.resolve().name, directory, record, result, tuple(left_out))

    @property
    def command(self) -> str:
        return str(self.record["command"])

    @property
    def raw(self) -> dict[str, Any]:
        """The result as it is recorded: of an unfinished run what there is, of another program whatever it wrote."""
        found = self.record.get("result")
        return found if isinstance(found, dict) else {}


def sound(value: Any) -> Any:
    """JSON in which every number is finite and fits a float; others become null, which the page shows as a dash."""
    if isinstance(value, dict):
        return {key: sound(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [sound(inner) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if -MOST < value < MOST else None
    return value


def replayed(result: ReplayResult) -> list[RateRow]:
    """Rates of a replay, a row for each system."""
    return [RateRow({"system": name}, rate) for name, rate in result.systems.items()]


def rollouts(result: RolloutResult) -> dict[str, RateRow]:
    """Rates of an evaluation, by suite."""
    names = {"policy": result.policy, "arm": result.arm}
    return {suite: RateRow(names, rate) for suite, rate in result.suites.items()}


def _demo(runs: Results[DemoResult], has_demo: bool) -> list[str]:
    parts = []
    for _, result in runs:
        rates = [row for row in result.policies if isinstance(row, PolicyRate)]
        rows = [RateRow({"policy": row.policy, "arm": row.arm}, row) for row in rates]
        parts += success_parts(rows, "Policies on unseen scenes")
        made = result.generator.systems
        if rows := [RateRow({"system": one.system}, one.replay_success, one.metrics) for one in made]:
            names = glossary(one.system for one in made)
            parts += ["<h3>Generator on held-out scenes</h3>", rates_table(rows), verdicts(rows) + names]
        if timed := [(stage.name, stage.seconds) for stage in result.stages]:
            caption = "Stages of different policies may run side by side, so the whole takes less than their sum."
            parts.append("<h3>Time per stage</h3>" + framed(plots.duration_bars(timed), caption))
    return parts


def _collect(runs: Results[CollectResult], has_demo: bool) -> list[str]:
    rows = [{"run": name, "task": task, **to_json(one)} for name, result in runs for task, one in result.tasks.items()]
    return [rows_table(rows)] if rows else []


def _synthesize(runs: Results[SynthesizeResult], has_demo: bool) -> list[str]:
    rows = [{"run": name, **result.metrics} for name, result in runs if result.metrics]
    return ["<h3>Generated against recorded, same first picture</h3>" + rows_table(rows)] if rows else []


def _inspect(runs: Results[InspectResult], has_demo: bool) -> list[str]:
    """Lists of lines, then the features of each dataset."""
    parts = []
    for name, result in runs:
        code = f"<code>{escaped(name)}</code>"
        for title, lines in (
            ("Problems before the repair", result.found),
            ("Repair", result.fixed),
            ("Problems", result.problems),
            ("Warnings", result.warnings),
        ):
            if lines or title == "Problems":
                items = "".join(f"<li>{escaped(line)}</li>" for line in lines or [])
                body = f"<ul>{items}</ul>" if items else '<p class="note">none</p>'
                parts.append(f"<h3>{title}: {code}</h3>{body}")
        if result.features:
            parts.append(f"<h3>Features: {code}</h3>{rows_table(result.features)}")
    return parts


def _evaluate_generator(runs: Results[EvaluateGeneratorResult], has_demo: bool) -> list[str]:
    replays = [RateRow({"system": name}, result.replay) for name, result in runs if result.replay is not None]
    parts = success_parts(replays, "Replay success of generated actions")
    rows = [{"run": name, **result.metrics} for name, result in runs]
    parts.append("<h3>Generated against recorded, same first picture</h3>" + rows_table(rows))
    curves = {name: result.success_curve for name, result in runs}
    if lines := {name: (curve.thresholds, curve.success) for name, curve in curves.items() if curve is not None}:
        figure = plots.curves(lines, "Pairs within an action distance", xlabel="action distance")
        parts.append(framed(figure, "Share of the pairs whose mean action distance is at most the threshold."))
    return parts


def _benchmark_generators(runs: Results[BenchmarkGeneratorsResult], has_demo: bool) -> list[str]:
    """Every suite: replay success, all other metrics, what was compared, and what its clip distance is worth."""
    parts = []
    for _, result in runs:
        for suite in distinct(row.suite for row in result.rows):
            chosen = [row for row in result.rows if row.suite == suite]
            bars = [plots.Bar(row.system, row.rate) for row in chosen if row.metric == "replay_success"]
            table: dict[str, dict[str, Any]] = {}
            for row in chosen:
                table.setdefault(row.system, {"system": row.system})[row.metric] = row.value
            parts.append(f"<h3>Suite <code>{escaped(suite)}</code></h3>")
            figures = [framed(plots.success_bars(bars, f"Replay success, {suite}"), "")] if bars else []
            if card := result.validity_cards.get(suite):
                caption = "Dashed: the distance of recorded clips to each other. A useful distance rises."
                figures.append(framed(plots.validity_lines(card), caption))
            parts.append(side_by_side(figures))
            parts.append(rows_table(list(table.values())) + glossary(row_names(chosen)))
            parts += differences(result.comparisons, suite)
    return parts


def _ablate(runs: Results[AblateResult], has_demo: bool) -> list[str]:
    """Every suite: success of all systems, success against the synthetic fraction, differences, cells that failed."""
    parts = []
    for _, result in runs:
        for suite in distinct(row.suite for row in result.rows):
            chosen = [row for row in result.rows if row.suite == suite]
            figures = [framed(figure, "") for figure in arm_figures(chosen)]
            for figure in fraction_figures(chosen):
                caption = "0: the few real episodes alone; 1: synthetic episodes alone; between: co-training."
                figures.append(framed(figure, f"{caption} Dashed: all real episodes, where they were tried."))
            parts += [f"<h3>Suite <code>{escaped(suite)}</code></h3>", side_by_side(figures)]
            if rates := successes(chosen):
                rows = [RateRow({"policy": row.policy or "", "system": row.system}, row.rate) for row in rates]
                parts.append(rates_table(rows, intervals=""))
            parts.append(metrics_table([row for row in chosen if row.metric != "success"]))
            parts += [*differences(result.comparisons, suite), glossary(row_names(chosen))]
        if failed := [to_json(cell) for cell in result.cells if cell.status == "failed"]:
            parts.append("<h3>Cells that failed</h3>" + rows_table(failed))
        parts.append(notes(result.notes))
    return parts


def differences(comparisons: Sequence[Difference], suite: str) -> list[str]:
    rows = [to_json(one) for one in comparisons if one.suite == suite]
    return ["<h3>Paired differences, a minus b</h3>" + rows_table(rows)] if rows else []


def metrics_table(rows: Sequence[Row]) -> str:
    """A row for each system, a column for each metric: values with their intervals. Nothing for no rows."""
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = system_name(row)
        table.setdefault(name, {"system": name})[spaced(row.metric)] = cell_text(row, row.n)
    return rows_table(list(table.values())) if table else ""


def notes(found: dict[str, str]) -> str:
    """What a record says besides its numbers: how the intervals were made, what was seen, and the like."""
    lines = [f"<li><b>{escaped(spaced(name))}</b>: {escaped(text)}</li>" for name, text in found.items()]
    return f"<h3>How to read it</h3><ul>{''.join(lines)}</ul>" if lines else ""


def _benchmark_policies(runs: Results[BenchmarkPoliciesResult], has_demo: bool) -> list[str]:
    """Every suite: a leaderboard, whose ranks follow the paired differences below it."""
    parts = []
    for _, result in runs:
        for suite, board in result.leaderboards.items():
            figure = plots.success_bars([plots.Bar(row.system, row) for row in board], f"Success, {suite}")
            pair = side_by_side([framed(figure, ""), rows_table([to_json(row) for row in board])])
            parts += [f"<h3>Suite <code>{escaped(suite)}</code></h3>", pair, *differences(result.comparisons, suite)]
        parts.append(notes(result.notes))
    return parts


def _replay(runs: Results[ReplayResult], has_demo: bool) -> list[str]:
    return success_parts([row for _, result in runs for row in replayed(result)], "Replay success")


def _evaluate(runs: Results[Any], has_demo: bool) -> list[str]:
    parts = []
    tables = [rollouts(result) for _, result in runs if isinstance(result, RolloutResult)]
    for suite in distinct(suite for table in tables for suite in table):
        chosen = [table[suite] for table in tables if suite in table]
        # The summary of a demo already shows this figure.
        parts += success_parts(chosen, f"Policy success, {suite} scenes", figure=not has_demo)
    return parts


PARTS: dict[str, Callable[[Results[Any], bool], list[str]]] = {
    "demo": _demo,
    "collect": _collect,
    "inspect": _inspect,
    "synthesize": _synthesize,
    "evaluate-generator": _evaluate_generator,
    "benchmark generators": _benchmark_generators,
    "ablate": _ablate,
    "benchmark policies": _benchmark_policies,
    "replay": _replay,
    "evaluate": _evaluate,
}
