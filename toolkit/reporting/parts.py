"""What the report shows of each command, between the sentences about its runs and its media."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.reading import read_json
from toolkit.reporting import plots
from toolkit.reporting.benchmark_record import cell_text, system_name
from toolkit.reporting.markup import (
    as_dict,
    as_list,
    distinct,
    escaped,
    finite,
    framed,
    inspection,
    rows_table,
    shown,
    side_by_side,
    spaced,
)
from toolkit.reporting.success import (
    arm_figures,
    fraction_figures,
    glossary,
    only_rates,
    rates_table,
    success_counts,
    success_parts,
    verdicts,
)

COUNTS = ("n", "successes", "rate", "low", "high")


# What a record is made of. What is of another kind is left out, which the page says.
KINDS: dict[str, tuple[type, ...]] = {
    "command": (str,),
    "status": (str,),
    "config": (dict,),
    "git_sha": (str,),
    "versions": (dict,),
    "hardware": (str,),
    "seed": (int,),
    "data": (list,),
    "started": (str,),
    "wall_seconds": (int, float),
    "result": (dict,),
    "error": (str,),
}
LONGEST_RUN = 1e10  # seconds
MOST = 1e100  # beyond it figures have no axis


@dataclass(frozen=True)
class RunPage:
    """One run directory: its name on the page, its record, and what of that is left out because it is not sound."""

    name: str
    path: Path
    record: dict[str, Any]
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
            kinds = KINDS.get(key)
            if kinds is not None and value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                left_out.append(f"'{key}', which is a {type(value).__name__}")
            else:
                record[key] = sound(value)
        seconds = finite(record.get("wall_seconds"))
        if seconds is not None and not 0 <= seconds < LONGEST_RUN:
            left_out.append("'wall_seconds', which cannot be")
            del record["wall_seconds"]
        return cls(directory.resolve().name, directory, record, tuple(left_out))

    @property
    def command(self) -> str:
        return str(self.record["command"])

    @property
    def result(self) -> dict[str, Any]:
        return as_dict(self.record.get("result"))


def sound(value: Any) -> Any:
    """JSON in which every number is finite and fits a float; others become null, which the page shows as a dash."""
    if isinstance(value, dict):
        return {key: sound(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [sound(inner) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if -MOST < value < MOST else None
    return value


def systems(run: RunPage) -> list[dict[str, Any]]:
    """Rates of a replay, a row for each system."""
    return [{"system": name, **as_dict(row)} for name, row in as_dict(run.result.get("systems")).items()]


def suites(run: RunPage) -> list[dict[str, Any]]:
    """Rates of an evaluation, a row for each suite."""
    who = {"policy": run.result.get("policy", run.name), "arm": run.result.get("arm", "")}
    return [{**who, "suite": name, **as_dict(row)} for name, row in as_dict(run.result.get("suites")).items()]


def _demo(runs: list[RunPage], has_demo: bool) -> list[str]:
    parts = []
    for run in runs:
        policies = [as_dict(row) for row in as_list(run.result.get("policies"))]
        parts += success_parts(policies, ("policy", "arm"), "Policies on unseen scenes")
        generated = map(as_dict, as_list(as_dict(run.result.get("generator")).get("systems")))
        rows = [{**row, **as_dict(row.get("replay_success"))} for row in generated]
        measured = distinct(k for row in rows for k, v in row.items() if finite(v) is not None and k not in COUNTS)
        if rows:
            parts.append("<h3>Generator on held-out scenes</h3>")
            parts.append(rates_table(rows, ("system",), measured))
            parts.append(verdicts(rows, ("system",)) + glossary(rows))
        stages = [
            (str(s.get("name")), finite(s.get("seconds"))) for s in map(as_dict, as_list(run.result.get("stages")))
        ]
        if timed := [(name, seconds) for name, seconds in stages if seconds is not None]:
            caption = "Stages of different policies may run side by side, so the whole takes less than their sum."
            parts.append("<h3>Time per stage</h3>" + framed(plots.duration_bars(timed), caption))
    return parts


def _collect(runs: list[RunPage], has_demo: bool) -> list[str]:
    rows = []
    for run in runs:
        for task, counts in as_dict(run.result.get("tasks")).items():
            rows.append({"run": run.name, "task": task, **as_dict(counts)})
    return [rows_table(rows)] if rows else []


def _synthesize(runs: list[RunPage], has_demo: bool) -> list[str]:
    rows = [{"run": run.name, **run.result["metrics"]} for run in runs if as_dict(run.result.get("metrics"))]
    return [
        "<h3>Generated against recorded, same first picture</h3>" + rows_table(rows) if rows else "",
    ]


def _inspect(runs: list[RunPage], has_demo: bool) -> list[str]:
    return [part for run in runs for part in inspection(run.name, run.result)]


def _evaluate_generator(runs: list[RunPage], has_demo: bool) -> list[str]:
    replays = [{"system": run.name, **as_dict(run.result.get("replay"))} for run in runs]
    parts = success_parts([row for row in replays if "n" in row], ("system",), "Replay success of generated actions")
    rows = [{"run": run.name, **as_dict(run.result.get("metrics"))} for run in runs]
    parts.append("<h3>Generated against recorded, same first picture</h3>" + rows_table(rows))
    lines = {}
    for run in runs:
        curve = as_dict(run.result.get("success_curve"))
        if curve:
            lines[run.name] = as_list(curve.get("thresholds")), as_list(curve.get("success"))
    if lines:
        figure = plots.curves(lines, "Pairs within an action distance", xlabel="action distance")
        parts.append(framed(figure, "Share of the pairs whose mean action distance is at most the threshold."))
    return parts


def _benchmark_generators(runs: list[RunPage], has_demo: bool) -> list[str]:
    """Every suite: replay success, all other metrics, what was compared, and what its clip distance is worth."""
    parts = []
    for run in runs:
        rows = [row for row in map(as_dict, as_list(run.result.get("rows"))) if {"system", "metric"} <= set(row)]
        rows = [row for row in rows if finite(row.get("value")) is not None]
        comparisons = [as_dict(row) for row in as_list(run.result.get("comparisons"))]
        for suite in distinct(row.get("suite") for row in rows):
            chosen = [row for row in rows if row.get("suite") == suite]
            bars = [
                {**row, "label": row["system"], "rate": row["value"], "successes": round(row["value"] * row["n"])}
                for row in chosen
                if row["metric"] == "replay_success" and finite(row.get("n")) is not None
            ]
            table: dict[str, dict[str, Any]] = {}
            for row in chosen:
                table.setdefault(row["system"], {"system": row["system"]})[row["metric"]] = row["value"]
            card = as_dict(as_dict(run.result.get("validity_cards")).get(suite))
            parts.append(f"<h3>Suite <code>{escaped(suite)}</code></h3>")
            figures = [framed(plots.success_bars(bars, f"Replay success, {suite}"), "")] if bars else []
            if card:
                caption = "Dashed: the distance of recorded clips to each other. A useful distance rises."
                figures.append(framed(plots.validity_lines(card), caption))
            parts.append(side_by_side(figures))
            parts.append(rows_table(list(table.values())) + glossary(chosen))
            if compared := [row for row in comparisons if row.get("suite") == suite]:
                parts.append("<h3>Paired differences, a minus b</h3>" + rows_table(compared))
    return parts


def _ablate(runs: list[RunPage], has_demo: bool) -> list[str]:
    """Every suite: success of all systems, success against the synthetic fraction, differences, cells that failed."""
    parts = []
    for run in runs:
        rows = [row for row in map(as_dict, as_list(run.result.get("rows"))) if finite(row.get("value")) is not None]
        cells = [as_dict(cell) for cell in as_list(run.result.get("cells"))]
        comparisons = [as_dict(row) for row in as_list(run.result.get("comparisons"))]
        for suite in distinct(row.get("suite") for row in rows):
            chosen = [row for row in rows if row.get("suite") == suite and row.get("n")]
            figures = [framed(figure, "") for figure in arm_figures(chosen)]
            for figure in fraction_figures(chosen):
                caption = "0: the few real episodes alone; 1: synthetic episodes alone; between: co-training."
                figures.append(framed(figure, f"{caption} Dashed: all real episodes, where they were tried."))
            parts += [f"<h3>Suite <code>{escaped(suite)}</code></h3>", side_by_side(figures)]
            if rates := success_counts(chosen):
                parts.append(rates_table(rates, ("policy", "system"), intervals=""))
            parts.append(metrics_table([row for row in chosen if row.get("metric") != "success"]))
            if compared := [row for row in comparisons if row.get("suite") == suite]:
                parts.append("<h3>Paired differences, a minus b</h3>" + rows_table(compared))
            parts.append(glossary(chosen))
        if failed := [cell for cell in cells if cell.get("status") == "failed"]:
            parts.append("<h3>Cells that failed</h3>" + rows_table(failed))
        parts.append(notes(run))
    return parts


def metrics_table(rows: list[dict[str, Any]]) -> str:
    """A row for each system, a column for each metric: values with their intervals. Nothing for no rows."""
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        name, bounded = system_name(row), all(finite(row.get(key)) is not None for key in ("low", "high"))
        cell = cell_text(row, row.get("n")) if bounded else shown(row["value"])
        table.setdefault(name, {"system": name})[spaced(str(row.get("metric")))] = cell
    return rows_table(list(table.values())) if table else ""


def notes(run: RunPage) -> str:
    """What a record says besides its numbers: how the intervals were made, what was seen, and the like."""
    told = as_dict(run.result.get("notes"))
    lines = [f"<li><b>{escaped(spaced(name))}</b>: {escaped(text)}</li>" for name, text in told.items()]
    return f"<h3>How to read it</h3><ul>{''.join(lines)}</ul>" if lines else ""


def _benchmark_policies(runs: list[RunPage], has_demo: bool) -> list[str]:
    """Every suite: a leaderboard, whose ranks follow the paired differences below it."""
    parts = []
    for run in runs:
        comparisons = [as_dict(row) for row in as_list(run.result.get("comparisons"))]
        for suite, board in as_dict(run.result.get("leaderboards")).items():
            ranked = [as_dict(row) for row in as_list(board)]
            bars = [{**row, "group": "", "label": row.get("system", "")} for row in only_rates(ranked)]
            figure = framed(plots.success_bars(bars, f"Success, {suite}"), "") if bars else ""
            parts += [f"<h3>Suite <code>{escaped(suite)}</code></h3>", side_by_side([figure, rows_table(ranked)])]
            if compared := [row for row in comparisons if row.get("suite") == suite]:
                parts.append("<h3>Paired differences, a minus b</h3>" + rows_table(compared))
        parts.append(notes(run))
    return parts


def _replay(runs: list[RunPage], has_demo: bool) -> list[str]:
    return success_parts([row for run in runs for row in systems(run)], ("system",), "Replay success")


def _evaluate(runs: list[RunPage], has_demo: bool) -> list[str]:
    parts = []
    rows = [row for run in runs for row in suites(run)]
    for suite in distinct(row["suite"] for row in rows):
        chosen = [row for row in rows if row["suite"] == suite]
        # The summary of a demo already shows this figure.
        parts += success_parts(chosen, ("policy", "arm"), f"Policy success, {suite} scenes", figure=not has_demo)
    return parts


PARTS: dict[str, Callable[[list[RunPage], bool], list[str]]] = {
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
