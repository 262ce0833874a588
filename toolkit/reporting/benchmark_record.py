"""The dated record of a benchmark: one JSON file that names code, hardware and versions, and a page made from it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from toolkit.reporting.media import atomic
from toolkit.reporting.run_record import git_sha, hardware, versions, write_json


def write_record(
    directory: Path,
    benchmark: str,
    command: str,
    rows: list[dict[str, Any]],
    comparisons: list[dict[str, Any]],
    notes: dict[str, str],
) -> dict[str, Any]:
    """Write `record.json` and `record.md` into `directory` and return the record.

    rows: system, suite, metric, value, low, high, n, and policy where that is another thing. comparisons: a, b, suite,
    metric, then difference (a minus b) or, for metric `speed_ratio`, value (a over b, larger is better), low, high.
    notes: what low and high are, and whatever
    else a reader needs to judge the numbers.
    """
    record = {
        "benchmark": benchmark,
        "command": command,
        "git_sha": git_sha(),
        "hardware": hardware(),
        "date": datetime.now().date().isoformat(),
        "versions": versions(),
        "notes": notes,
        "rows": rows,
        "comparisons": comparisons,
    }
    write_json(directory / "record.json", record)
    with atomic(directory / "record.md") as temporary:
        temporary.write_text(record_page(record))
    return record


def record_page(record: dict[str, Any]) -> str:
    """A record as one page of Markdown."""
    lines = [
        f"# Benchmark: {record['benchmark']}",
        "",
        f"`{record['command']}` on {record['hardware']}, {record['date']}, commit `{record['git_sha']}`.",
        "",
        *(f"- {name.replace('_', ' ')}: {text}" for name, text in record["notes"].items()),
        f"- versions: {', '.join(f'{name} {version}' for name, version in record['versions'].items())}",
        *overview(record["rows"]),
        "",
        "| System | Suite | Metric | Value | Low | High | n |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        numbers = " | ".join(_number(row[key]) for key in ("value", "low", "high", "n"))
        lines.append(f"| {_system(row)} | {row['suite']} | {row['metric']} | {numbers} |")
    tested = any("p" in row for row in record["comparisons"])
    heads, rule = (" p |", " ---: |") if tested else ("", "")
    lines += ["", f"| Compared | Suite | Metric | Value | Low | High |{heads}"]
    lines.append(f"| --- | --- | --- | ---: | ---: | ---: |{rule}")
    for row in record["comparisons"]:
        sign, value = ("/", row["value"]) if "value" in row else ("-", row["difference"])
        numbers = " | ".join(_number(number) for number in (value, row["low"], row["high"]))
        p = f" {_number(row['p']) if 'p' in row else ''} |" if tested else ""
        pair = _system({**row, "system": f"{row['a']} {sign} {row['b']}"})
        lines.append(f"| {pair} | {row['suite']} | {row['metric']} | {numbers} |{p}")
    return "\n".join(lines) + "\n"


def overview(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table for each suite that has many metrics: a row for each system, a column for each metric."""
    lines: list[str] = []
    for suite in dict.fromkeys(row["suite"] for row in rows):
        values = {(_system(row), row["metric"]): row["value"] for row in rows if row["suite"] == suite}
        systems, metrics = (list(dict.fromkeys(key[i] for key in values)) for i in (0, 1))
        if len(systems) < 2 or len(metrics) < 3:
            continue
        names = " | ".join(metric.replace("_", " ") for metric in metrics)
        lines += ["", f"Suite `{suite}`:", "", f"| System | {names} |", f"| --- |{' ---: |' * len(metrics)}"]
        for system in systems:
            cells = (_number(values[system, m]) if (system, m) in values else "" for m in metrics)
            lines.append(f"| {system} | {' | '.join(cells)} |")
    return lines


def _system(row: dict[str, Any]) -> str:
    return f"{row['policy']}: {row['system']}" if "policy" in row else str(row["system"])


def _number(value: float) -> str:
    """Three significant digits, or all of a larger number."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
