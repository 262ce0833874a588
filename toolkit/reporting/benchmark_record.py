"""The dated record of a benchmark: one JSON file that names code, hardware and versions, and a page made from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

from toolkit.base.files import write_json, write_text
from toolkit.base.provenance import git_sha, hardware, versions
from toolkit.base.record import read_record
from toolkit.base.typed_json import to_json
from toolkit.reporting.benchmark_results import BenchmarkRecord, Difference, Ranked, Ratio, Row
from toolkit.reporting.pages import page
from toolkit.reporting.values import Table

Line = Row | Difference | Ratio
COLUMNS = 6
TOO_NARROW = "too narrow"  # how the note of an early row begins whose interval takes runs for independent
BESIDE = ("floor", "shuffled", "real", "mean")  # what a value is read beside, where a row has it


def write_record(
    directory: Path,
    benchmark: str,
    command: str,
    rows: Sequence[Row],
    comparisons: Sequence[Difference | Ratio],
    notes: dict[str, str],
    leaderboards: dict[str, list[Ranked]] | None = None,
) -> BenchmarkRecord:
    """Write `record.json` and `record.md` into `directory` and return the record.

    If other commits, machines or versions of packages made runs below the directory, the notes name them.

    notes: what low and high are, and whatever else a reader needs to judge the numbers. leaderboards: of each suite,
    from the best to the worst.
    """
    stages = [read_record(path.parent) for path in directory.glob("*/**/run.json")]
    for note, by, key, here in (
        ("code", "by commits", "git_sha", git_sha()),
        ("machines", "on", "hardware", hardware()),
    ):
        if (found := {str(stage.get(key)) for stage in stages}) - {here}:
            notes = {**notes, note: f"trainings and evaluations {by} {', '.join(sorted(found))}"}
    packages = {(name, str(version)) for stage in stages for name, version in stage["versions"].items()}
    if other := sorted(packages - versions().items()):
        notes = {**notes, "other_versions": ", ".join(f"{name} {version}" for name, version in other) + " made stages"}
    record = BenchmarkRecord(
        benchmark=benchmark,
        command=command,
        git_sha=git_sha(),
        hardware=hardware(),
        date=datetime.now().date().isoformat(),
        versions=versions(),
        notes=notes,
        rows=list(rows),
        comparisons=list(comparisons),
        leaderboards=leaderboards,
    )
    write_json(directory / "record.json", to_json(record))
    write_text(directory / "record.md", record_page(record))
    return record


def record_page(record: BenchmarkRecord) -> str:
    """A record as one page of Markdown: values with their intervals."""
    boards = [leaderboard_table(suite, board) for suite, board in (record.leaderboards or {}).items()]
    tables = [*boards, *metric_tables(record.rows, "System"), *metric_tables(record.comparisons, "Compared")]
    return page("record.md.j2", record=record, tables=tables)


def leaderboard_table(suite: str, board: Sequence[Ranked]) -> Table:
    columns = [(f"Rank, `{suite}`", True), ("system", False), ("success", True), ("not distinguishable from", False)]
    rates = [f"{_number(row.rate)}{bounds_text(row)}, n = {row.n:,}" for row in board]
    rows = zip(board, rates, strict=True)
    return Table(columns, [("", [str(r.rank), r.system, rate, r.not_distinguishable_from or ""]) for r, rate in rows])


def metric_tables(rows: Sequence[Line], title: str) -> list[Table]:
    """Tables of each suite: a row for each system, a column for each metric, COLUMNS of them beside."""
    tables = []
    for suite in dict.fromkeys(row.suite for row in rows):
        lines = {(system_name(row), row.metric): row for row in rows if row.suite == suite}
        metrics = list(dict.fromkeys(metric for _, metric in lines))
        for first in range(0, len(metrics), COLUMNS):
            some = metrics[first : first + COLUMNS]
            counts = {m: Counter(trials(row) for (_, other), row in lines.items() if other == m) for m in some}
            usual = {m: count.most_common(1)[0][0] for m, count in counts.items()}
            heads = [m.replace("_", " ") + (f" (n = {usual[m]:,})" if usual[m] else "") for m in some]
            cells: dict[str, list[str]] = {system: [] for system, metric in lines if metric in some}
            for system, m in product(cells, some):
                cells[system].append(cell_text(lines[system, m], usual[m]) if (system, m) in lines else "")
            columns = [(f"{title}, `{suite}`", False), *((head, True) for head in heads)]
            tables.append(Table(columns, [("", [system, *texts]) for system, texts in cells.items()]))
    return tables


def trials(row: Line) -> int | None:
    return row.n if isinstance(row, Row) else None


def cell_text(row: Line, usual: int | None) -> str:
    """A value or difference with its intervals and what it is read beside; n too unless it is the usual one."""
    text = _number(row.difference if isinstance(row, Difference) else row.value) + bounds_text(row)
    beside: dict[str, Any] = row.more if isinstance(row, Row) else {}
    told = {key: beside.get(key) for key in BESIDE}
    if isinstance(row, Difference):
        told = {"p of these checkpoints": row.p_these_checkpoints, "largest p of a seed": row.p}
    text += "".join(f", {key} {_number(value)}" for key, value in told.items() if value is not None)
    text += ", one bound at the end of the curve" if beside.get("at_end_of_curve") else ""
    return text if trials(row) in (usual, None) else f"{text}, n = {trials(row):,}"


def bounds_text(row: Line | Ranked, form: str | None = None) -> str:
    """` [low, high]` of systems and `, of these checkpoints [low, high]`, where there are such; form: of numbers."""

    def bounds(low: float | None, high: float | None) -> str:
        if low is None or high is None:
            return ""
        return f" [{format(low, form)}, {format(high, form)}]" if form else f" [{_number(low)}, {_number(high)}]"

    text = bounds(row.low, row.high)
    if isinstance(row, Ratio):
        return text
    if (row.note or "").startswith(TOO_NARROW):
        text += f" {TOO_NARROW}"
    scenes = bounds(row.low_these_checkpoints, row.high_these_checkpoints)
    return text + (f", of these checkpoints{scenes}" if scenes else "")


def system_name(row: Line) -> str:
    """A system with its policy, or the two that are compared."""
    name = row.system if isinstance(row, Row) else f"{row.a} {'/' if isinstance(row, Ratio) else '-'} {row.b}"
    return f"{row.policy}: {name}" if row.policy is not None else name


def _number(value: float) -> str:
    """Three significant digits, or all of a larger number."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
