"""Success rates on a page: figures, tables and what their intervals allow to say, from rows of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from toolkit.evaluation.statistics import compare_systems
from toolkit.reporting import plots
from toolkit.reporting.markup import (
    as_dict,
    as_list,
    distinct,
    escaped,
    finite,
    fraction,
    framed,
    interval,
    shown,
    side_by_side,
    spaced,
)
from toolkit.reporting.story import ARMS, INTERVALS


def only_rates(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that have a rate, or counts to compute it from."""
    kept = []
    for row in rows:
        rate, n, successes = (finite(row.get(key)) for key in ("rate", "n", "successes"))
        if rate is None and n and successes is not None:
            rate = successes / n
        if rate is not None and 0 <= rate <= 1:
            kept.append({**row, "rate": rate})
    return kept


def success_parts(rows: list[dict[str, Any]], keys: tuple[str, ...], title: str, figure: bool = True) -> list[str]:
    """Figure, table with every task, and what the intervals allow to say."""
    if not (bars := only_rates(rows)):
        return []
    table = rates_table(rows, keys) + verdicts(rows, keys) + glossary(rows)
    if not figure:
        return [f"<h3>{escaped(title)}</h3>", table]
    drawn = [
        {**row, "group": row.get(keys[0], "") if len(keys) > 1 else "", "label": row.get(keys[-1], "")} for row in bars
    ]
    return [
        f"<h3>{escaped(title)}</h3>",
        side_by_side([framed(plots.success_bars(drawn, title), ""), f"<div>{table}</div>"]),
    ]


def rates_table(
    rows: list[dict[str, Any]], keys: tuple[str, ...], more: Sequence[str] = (), intervals: str = INTERVALS
) -> str:
    """A row for each of `rows`, their tasks below; columns `keys`, then the numbers named by `more`, then the rate."""
    head = "".join(f"<th>{escaped(spaced(key))}</th>" for key in keys)
    head += "".join(f'<th class="number">{escaped(spaced(key))}</th>' for key in more)
    head += '<th class="number">success</th><th class="number">rate</th><th class="number">95 % interval</th>'
    lines = []
    for row in rows:
        tasks = [{**as_dict(part), keys[0]: name} for name, part in as_dict(row.get("tasks")).items()]
        for part, kind in [
            (row, ' class="total"' if tasks else ""),
            *((task, ' class="part"') for task in tasks),
        ]:
            rated = (only_rates([part]) or [part])[0]
            rate = f"{plots.percent(rated['rate'])} %" if finite(rated.get("rate")) is not None else "–"
            cells = [f"<td>{escaped(part.get(key, ''))}</td>" for key in keys]
            cells += [f'<td class="number">{shown(part.get(key))}</td>' for key in more]
            cells += [f'<td class="number">{cell}</td>' for cell in (fraction(part), rate, interval(part) or "–")]
            lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    note = f'<p class="note">{intervals}</p>' if intervals else ""
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>{note}'


def verdicts(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> str:
    """Which pairs can be told apart, by scene where that is known; pairs are formed in a group, with its first row."""
    lines = []
    bounded = [r for r in only_rates(rows) if finite(r.get("low")) is not None and finite(r.get("high")) is not None]
    for group in distinct(row.get(keys[0]) for row in bounded) if len(keys) > 1 else [None]:
        members = [row for row in bounded if group is None or row.get(keys[0]) == group]
        prefix = f"<b>{escaped(group)}</b>: " if group is not None else ""
        for other in members[1:]:
            low, high = sorted((members[0], other), key=lambda row: row["rate"])
            names = [f"<code>{escaped(row.get(keys[-1], ''))}</code> {interval(row)}" for row in (low, high)]
            if paired := on_the_same_scenes(high, low):
                clear = paired["low"] > 0
                points = [plots.percent(paired[key]) for key in ("difference", "low", "high")]
                why = f"{points[0]} [{points[1]}, {points[2]}] points, paired by scene"
            else:
                clear = low["high"] < high["low"]
                why = "their intervals do not overlap" if clear else "their intervals overlap, which alone says little"
            text = f"{names[1]} is above {names[0]}" if clear else f"{names[0]} and {names[1]} are not told apart"
            lines.append(f"<li{'' if clear else ' class="unclear"'}>{prefix}{text}: {why}.</li>")
    return f'<ul class="verdicts">{"".join(lines)}</ul>' if lines else ""


def on_the_same_scenes(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float] | None:
    """First minus second, scene by scene, where the rows have the outcomes of the same scenes; else None."""
    tables = []
    for row in (first, second):
        rollouts = [found for found in map(as_list, as_list(row.get("outcomes"))) if len(found) == 3]
        tables.append({(str(task), str(seed)): bool(success) for task, seed, success in rollouts})
    if not tables[0] or tables[0].keys() != tables[1].keys():
        return None
    return compare_systems(*(np.array([[table[scene] for scene in tables[0]]], dtype=float) for table in tables))


def glossary(rows: list[dict[str, Any]]) -> str:
    """What the arms and systems named in the rows are, where the story tells."""
    names = distinct(row.get(key) for row in rows for key in ("arm", "system"))
    known = []
    for name in map(str, names):
        base = name.replace("_filtered", "")
        if base in ARMS:
            known.append(f"<code>{escaped(name)}</code> {ARMS[base]}{', after filtering' if base != name else ''}")
    return f'<p class="note">{"; ".join(known)}.</p>' if known else ""


def success_counts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the metric success, with the rate and the number of successes."""
    rates = [row for row in rows if row.get("metric") == "success" and row.get("n")]
    return [{**row, "rate": row["value"], "successes": round(row["value"] * row["n"])} for row in rates]


def arm_figures(rows: list[dict[str, Any]]) -> list[str]:
    """Success of all systems, an SVG for every suite."""
    figures = []
    for suite in distinct(row.get("suite") for row in rows):
        bars = [
            {**row, "group": f"{row.get('policy', '')}, {suite}", "label": row.get("system", "")}
            for row in success_counts(rows)
            if row.get("suite") == suite
        ]
        if bars:
            figures.append(plots.success_bars(bars, f"Success, {suite}"))
    return figures


def fraction_figures(rows: list[dict[str, Any]]) -> list[str]:
    """Success against the synthetic fraction, an SVG for every suite that has such points."""
    figures = []
    for suite in distinct(row.get("suite") for row in rows):
        if lines := fraction_points([row for row in rows if row.get("suite") == suite]):
            figures.append(plots.fraction_lines(lines, f"Success by synthetic fraction, {suite}"))
    return figures


def fraction_points(rows: list[dict[str, Any]]) -> dict[str, plots.FractionLine]:
    """Lines for `plots.fraction_lines` from rows of one suite: the few alone, co-training, synthetic alone.

    A line for each policy, feed, number of real and number of synthetic episodes; named by what differs.
    """
    rates = [row for row in rows if row.get("metric") == "success" and row.get("weight_by", "none") == "none"]
    axes = ("policy", "feed", "few", "synthetic_per_task")
    lines = {tuple(row.get(axis) for axis in axes) for row in rates if row.get("arm") == "cotrain"}
    differ = [i for i in range(len(axes)) if i == 0 or len({line[i] for line in lines}) > 1]
    found = {}
    for line in sorted(lines, key=str):
        policy, feed, few, count = line
        where: dict[str, dict[str, Any]] = {
            "real_few": {"policy": policy, "few": few},
            "cotrain": dict(zip(axes, line, strict=True)),
            "synthetic_only": {"policy": policy, "feed": feed, "synthetic_per_task": count},
            "real_all": {"policy": policy, "feed": feed},
        }
        drawn = plots.FractionLine([])
        for row in rates:
            arm = str(row.get("arm"))
            if arm not in where or any(row.get(key) != wanted for key, wanted in where[arm].items()):
                continue
            fraction = {"real_few": 0.0, "synthetic_only": 1.0}.get(arm, finite(row.get("synthetic_fraction")))
            if arm == "real_all":
                drawn.all_real = row["value"]
            elif fraction is not None:
                point = {"fraction": fraction, "rate": row["value"], "low": row["low"], "high": row["high"]}
                drawn.points.append(point)
        if len(drawn.points) > 1:
            found[", ".join(f"{axes[i]} {line[i]}" if i else str(line[i]) for i in differ).replace("_", " ")] = drawn
    return found
