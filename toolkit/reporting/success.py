"""Success rates for a page: figures, tables and what their intervals allow to say, from rows of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from toolkit.evaluation.rates import Rate
from toolkit.evaluation.systems import Trained, compare_success
from toolkit.reporting import plots
from toolkit.reporting.benchmark_results import Ranked, Row
from toolkit.reporting.pages import piece
from toolkit.reporting.story import ARMS
from toolkit.reporting.values import Table, distinct, fraction, interval, percent, shown, spaced


@dataclass(frozen=True)
class RateRow:
    """A row of a table of rates. names: its first columns; the last one names it in figures, an earlier its group.

    of_systems: the interval of systems where there is one; that of the rate is of these checkpoints.
    """

    names: dict[str, str]
    rate: Rate | None
    numbers: dict[str, float] = field(default_factory=dict)  # further columns
    of_systems: str = ""

    @property
    def label(self) -> str:
        return list(self.names.values())[-1]

    @property
    def group(self) -> str:
        return next(iter(self.names.values())) if len(self.names) > 1 else ""


def rates_pieces(rows: Sequence[RateRow], title: str, has_figure: bool = True) -> list[Markup]:
    """Figure, table with every task, and what the intervals allow to say."""
    if not rows:
        return []
    bars = [plots.Bar(row.label, row.rate, row.group) for row in rows if row.rate is not None]
    content = {
        "svg": plots.success_bars(bars, title) if has_figure and bars else "",
        "content": rates_table(rows),
        "verdicts": verdicts(rows),
        "names": glossary(name for row in rows for name in row.names.values()),
    }
    return [piece("rates", title=title, **content)]


def rates_table(rows: Sequence[RateRow]) -> Table:
    """A row for each of `rows`, their tasks below; columns of names, then of other numbers, then the rate."""
    keys, more = list(rows[0].names), distinct(key for row in rows for key in row.numbers)
    has_systems = any(row.of_systems for row in rows)
    lines = []
    for row in rows:
        tasks = [RateRow({keys[0]: task}, rate) for task, rate in getattr(row.rate, "tasks", {}).items()]
        for line, style in [(row, "total" if tasks else ""), *((task, "part") for task in tasks)]:
            rate = line.rate and [fraction(line.rate), f"{percent(line.rate.rate)} %", interval(line.rate)]
            cells = [line.names.get(key, "") for key in keys] + [shown(line.numbers.get(key)) for key in more]
            systems = [line.of_systems or "–"] * has_systems
            lines.append((style, cells + (rate or ["–"] * 3) + systems))
    names, numbers = [(spaced(key), False) for key in keys], [(spaced(key), True) for key in more]
    intervals = [("95 %, of these checkpoints", True), *[("95 %, of systems", True)] * has_systems]
    return Table([*names, *numbers, ("success", True), ("rate", True), *intervals], lines)


@dataclass(frozen=True)
class Verdict:
    """Whether two rates can be told apart. systems: names with intervals, the higher first where that is clear."""

    group: str
    systems: list[tuple[str, str]]
    is_clear: bool
    reason: str


def verdicts(rows: Sequence[RateRow]) -> list[Verdict]:
    """Which pairs can be told apart, by scene where that is known; pairs are formed in a group, with its first row."""
    found = []
    for group in dict.fromkeys(row.group for row in rows):
        members = [(row.label, row.rate) for row in rows if row.group == group and row.rate is not None]
        for other in members[1:]:
            (low, least), (high, most) = sorted((members[0], other), key=lambda member: member[1].rate)
            if paired := on_the_same_scenes(most, least):
                is_clear = paired["low_these_checkpoints"] > 0
                keys = ("difference", "low_these_checkpoints", "high_these_checkpoints")
                points = [percent(paired[key]) for key in keys]
                reason = f"{points[0]} [{points[1]}, {points[2]}] points of these checkpoints, paired by scene"
            else:
                is_clear = least.high < most.low
                overlap = "intervals overlap, which alone says little"
                reason = f"their {'intervals do not overlap' if is_clear else overlap}"
            systems = [(low, interval(least)), (high, interval(most))]
            found.append(Verdict(group, systems[::-1] if is_clear else systems, is_clear, reason))
    return found


def on_the_same_scenes(first: Rate, second: Rate) -> dict[str, Any] | None:
    """First minus second, scene by scene, where both have the outcomes of the same scenes; else None."""
    outcomes = [getattr(rate, "outcomes", []) for rate in (first, second)]
    tables = [{(task, seed): success for task, seed, success in some} for some in outcomes]
    if not tables[0] or tables[0].keys() != tables[1].keys():
        return None
    sides = (np.array([[table[scene] for scene in tables[0]]], dtype=float) for table in tables)
    return compare_success(*map(Trained, sides))


def glossary(names: Iterable[str]) -> list[tuple[str, str]]:
    """What the arms and systems of these names are, where the story tells."""
    bases = [(name, name.replace("_filtered", "")) for name in distinct(names)]
    return [(name, ARMS[base] + ", after filtering" * (name != base)) for name, base in bases if base in ARMS]


def row_names(rows: Iterable[Row]) -> list[str]:
    """The arms and systems of rows, for their glossary."""
    return [name for row in rows for name in (row.arm, row.system) if name is not None]


def successes(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.metric == "success"]


def interval_words(rows: Iterable[Row | Ranked]) -> str:
    """What the intervals of a figure are: those of early records are neither of systems nor of their checkpoints."""
    early = any((row.seeds or 0) > 1 and row.low_these_checkpoints is None for row in rows)
    return "95 %, too narrow" if early else "95 % of these checkpoints"


def arm_figures(rows: Sequence[Row]) -> list[Markup]:
    """Success of all systems, an SVG for every suite."""
    bars: dict[str, list[plots.Bar]] = {}
    for row in successes(rows):
        group = f"{row.policy or ''}, {row.suite}"
        bars.setdefault(row.suite, []).append(plots.Bar(row.system, row.rate, group))
    return [plots.success_bars(some, f"Success, {suite}, {interval_words(rows)}") for suite, some in bars.items()]


def fraction_figures(rows: Sequence[Row]) -> list[Markup]:
    """Success against the synthetic fraction, an SVG for every suite that has such points."""
    figures = []
    for suite in dict.fromkeys(row.suite for row in rows):
        if lines := fraction_points([row for row in rows if row.suite == suite]):
            figures.append(
                plots.fraction_lines(lines, f"Success by synthetic fraction, {suite}, {interval_words(rows)}")
            )
    return figures


def fraction_points(rows: Sequence[Row]) -> dict[str, plots.FractionLine]:
    """Lines for `plots.fraction_lines` from rows of one suite: the few alone, co-training, synthetic alone.

    A line for each policy, data, number of real and number of synthetic episodes; named by what differs.
    """
    rates = [row for row in successes(rows) if row.weight_by in (None, "none")]
    axes = ("policy", "generator_data", "few", "synthetic_per_task")
    lines = {tuple(getattr(row, axis) for axis in axes) for row in rates if row.arm == "cotrain"}
    differ = [i for i in range(len(axes)) if i == 0 or len({line[i] for line in lines}) > 1]
    found = {}
    for line in sorted(lines, key=str):
        policy, data, few, count = line
        where: dict[str | None, dict[str, Any]] = {
            "real_few": {"policy": policy, "few": few},
            "cotrain": dict(zip(axes, line, strict=True)),
            "synthetic_only": {"policy": policy, "generator_data": data, "synthetic_per_task": count},
            "real_all": {"policy": policy, "generator_data": data},
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
