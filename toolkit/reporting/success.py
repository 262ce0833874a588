"""Success rates on a page: figures, tables and what their intervals allow to say, from rows of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.evaluation.rates import Outcome, Rate, TaskRates
from toolkit.evaluation.statistics import compare_systems
from toolkit.reporting import plots
from toolkit.reporting.benchmark_results import Row
from toolkit.reporting.markup import distinct, escaped, fraction, framed, interval, shown, side_by_side, spaced
from toolkit.reporting.story import ARMS, INTERVALS


@dataclass(frozen=True)
class RateRow:
    """A row of a table of rates. names: its first columns; the last one names it in figures, an earlier its group."""

    names: dict[str, str]
    rate: Rate | None
    numbers: dict[str, float] = field(default_factory=dict)  # further columns

    @property
    def label(self) -> str:
        return list(self.names.values())[-1]

    @property
    def group(self) -> str:
        return next(iter(self.names.values())) if len(self.names) > 1 else ""

    @property
    def tasks(self) -> dict[str, Rate]:
        return self.rate.tasks if isinstance(self.rate, TaskRates) else {}

    @property
    def outcomes(self) -> list[Outcome]:
        return getattr(self.rate, "outcomes", [])


def success_parts(rows: Sequence[RateRow], title: str, figure: bool = True) -> list[str]:
    """Figure, table with every task, and what the intervals allow to say."""
    bars = [plots.Bar(row.label, row.rate, row.group) for row in rows if row.rate is not None]
    if not bars:
        return []
    table = rates_table(rows) + verdicts(rows) + glossary(name for row in rows for name in row.names.values())
    if not figure:
        return [f"<h3>{escaped(title)}</h3>", table]
    shape = framed(plots.success_bars(bars, title), "")
    return [f"<h3>{escaped(title)}</h3>", side_by_side([shape, f"<div>{table}</div>"])]


def rates_table(rows: Sequence[RateRow], intervals: str = INTERVALS) -> str:
    """A row for each of `rows`, their tasks below; columns of names, then of other numbers, then the rate."""
    keys, more = list(rows[0].names), distinct(key for row in rows for key in row.numbers)
    head = "".join(f"<th>{escaped(spaced(key))}</th>" for key in keys)
    head += "".join(f'<th class="number">{escaped(spaced(key))}</th>' for key in more)
    head += '<th class="number">success</th><th class="number">rate</th><th class="number">95 % interval</th>'
    lines = []
    for row in rows:
        tasks = [RateRow({keys[0]: task}, rate) for task, rate in row.tasks.items()]
        for part, kind in [(row, ' class="total"' if tasks else ""), *((task, ' class="part"') for task in tasks)]:
            cells = [f"<td>{escaped(part.names.get(key, ''))}</td>" for key in keys]
            cells += [f'<td class="number">{shown(part.numbers.get(key))}</td>' for key in more]
            told = ["–"] * 3
            if part.rate is not None:
                told = [fraction(part.rate), f"{plots.percent(part.rate.rate)} %", interval(part.rate)]
            cells += [f'<td class="number">{cell}</td>' for cell in told]
            lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    note = f'<p class="note">{intervals}</p>' if intervals else ""
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>{note}'


def verdicts(rows: Sequence[RateRow]) -> str:
    """Which pairs can be told apart, by scene where that is known; pairs are formed in a group, with its first row."""
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        members = [(row.label, row.rate, row.outcomes) for row in rows if row.group == group and row.rate is not None]
        prefix = f"<b>{escaped(group)}</b>: " if group else ""
        for other in members[1:]:
            (low, least, scenes), (high, most, others) = sorted((members[0], other), key=lambda row: row[1].rate)
            names = [f"<code>{escaped(name)}</code> {interval(rate)}" for name, rate in ((low, least), (high, most))]
            if paired := on_the_same_scenes(others, scenes):
                clear = paired["low"] > 0
                points = [plots.percent(paired[key]) for key in ("difference", "low", "high")]
                why = f"{points[0]} [{points[1]}, {points[2]}] points, paired by scene"
            else:
                clear = least.high < most.low
                why = "their intervals do not overlap" if clear else "their intervals overlap, which alone says little"
            text = f"{names[1]} is above {names[0]}" if clear else f"{names[0]} and {names[1]} are not told apart"
            lines.append(f"<li{'' if clear else ' class="unclear"'}>{prefix}{text}: {why}.</li>")
    return f'<ul class="verdicts">{"".join(lines)}</ul>' if lines else ""


def on_the_same_scenes(first: list[Outcome], second: list[Outcome]) -> dict[str, float] | None:
    """First minus second, scene by scene, where both are outcomes of the same scenes; else None."""
    tables = [{(task, seed): success for task, seed, success in outcomes} for outcomes in (first, second)]
    if not tables[0] or tables[0].keys() != tables[1].keys():
        return None
    return compare_systems(*(np.array([[table[scene] for scene in tables[0]]], dtype=float) for table in tables))


def glossary(names: Iterable[str]) -> str:
    """What the arms and systems of these names are, where the story tells."""
    known = []
    for name in distinct(names):
        base = name.replace("_filtered", "")
        if base in ARMS:
            known.append(f"<code>{escaped(name)}</code> {ARMS[base]}{', after filtering' if base != name else ''}")
    return f'<p class="note">{"; ".join(known)}.</p>' if known else ""


def row_names(rows: Iterable[Row]) -> list[str]:
    """The arms and systems of rows, for their glossary."""
    return [name for row in rows for name in (row.arm, row.system) if name is not None]


def successes(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.metric == "success"]


def arm_figures(rows: Sequence[Row]) -> list[str]:
    """Success of all systems, an SVG for every suite."""
    bars: dict[str, list[plots.Bar]] = {}
    for row in successes(rows):
        group = f"{row.policy or ''}, {row.suite}"
        bars.setdefault(row.suite, []).append(plots.Bar(row.system, row.rate, group))
    return [plots.success_bars(some, f"Success, {suite}") for suite, some in bars.items()]


def fraction_figures(rows: Sequence[Row]) -> list[str]:
    """Success against the synthetic fraction, an SVG for every suite that has such points."""
    figures = []
    for suite in dict.fromkeys(row.suite for row in rows):
        if lines := fraction_points([row for row in rows if row.suite == suite]):
            figures.append(plots.fraction_lines(lines, f"Success by synthetic fraction, {suite}"))
    return figures


def fraction_points(rows: Sequence[Row]) -> dict[str, plots.FractionLine]:
    """Lines for `plots.fraction_lines` from rows of one suite: the few alone, co-training, synthetic alone.

    A line for each policy, feed, number of real and number of synthetic episodes; named by what differs.
    """
    rates = [row for row in successes(rows) if row.weight_by in (None, "none")]
    axes = ("policy", "feed", "few", "synthetic_per_task")
    lines = {tuple(getattr(row, axis) for axis in axes) for row in rates if row.arm == "cotrain"}
    differ = [i for i in range(len(axes)) if i == 0 or len({line[i] for line in lines}) > 1]
    found = {}
    for line in sorted(lines, key=str):
        policy, feed, few, count = line
        where: dict[str | None, dict[str, Any]] = {
            "real_few": {"policy": policy, "few": few},
            "cotrain": dict(zip(axes, line, strict=True)),
            "synthetic_only": {"policy": policy, "feed": feed, "synthetic_per_task": count},
            "real_all": {"policy": policy, "feed": feed},
        }
        drawn = plots.FractionLine([])
        for row in rates:
            if row.arm not in where or any(getattr(row, key) != wanted for key, wanted in where[row.arm].items()):
                continue
            fraction = {"real_few": 0.0, "synthetic_only": 1.0}.get(row.arm or "", row.synthetic_fraction)
            if row.arm == "real_all":
                drawn.all_real = row.value
            elif fraction is not None:
                drawn.points.append((fraction, row.rate))
        if len(drawn.points) > 1:
            found[", ".join(f"{axes[i]} {line[i]}" if i else str(line[i]) for i in differ).replace("_", " ")] = drawn
    return found
