"""Figures as inline SVG: matplotlib draws, the page's style sheet colours them for light and dark.

Every colour of a figure is a CSS variable with the light value as fallback (`--ink`, `--muted`, `--line`, `--c0`
to `--c5`), text stays text in the font of the page, and the background is transparent.
"""

from __future__ import annotations

import html
import io
import logging
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from toolkit.evaluation.rates import Rate
from toolkit.reporting.benchmark_results import ValidityCard
from toolkit.reporting.values import duration, interval, percent

INK, MUTED, LINE = "#1c1f23", "#626a75", "#dcdfe3"
# Okabe and Ito's palette, which people with any colour vision can tell apart.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {c: f"--c{i}" for i, c in enumerate(PALETTE)}

WIDTH = 5.8  # inches: half of the page, and still legible when a phone shrinks it
ROW, HEADER = 0.44, 0.34  # inches
GAP = 24  # between figures of a file, in points
SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a task may be called "$"
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "axes.axisbelow": True,
}

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values


@dataclass(frozen=True)
class Bar:
    """A rate with its name, in a group of others where that has one."""

    label: str
    rate: Rate
    group: str = ""


@matplotlib.rc_context(SETTINGS)
def success_bars(bars: Sequence[Bar], title: str = "Success rate") -> Markup:
    """Bars with asymmetric intervals, in groups. A label has the same colour in every group. Returns SVG."""
    labels = list(dict.fromkeys(bar.label for bar in bars))
    figure, axes, places = _rows([(bar.group, bar.label, _rate_text(bar.rate)) for bar in bars])
    for y, bar in zip(places, bars, strict=True):
        rate, low, high = bar.rate.rate, bar.rate.low, bar.rate.high
        axes.barh(y, rate, height=0.13, color=PALETTE[labels.index(bar.label) % len(PALETTE)], linewidth=0)
        error = [[max(0.0, rate - low)], [max(0.0, high - rate)]]
        axes.errorbar(rate, y, xerr=error, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3.5, capthick=1.2)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    ends = axes.get_xticklabels()
    ends[0].set_horizontalalignment("left")  # else half of it lies outside of the figure
    ends[-1].set_horizontalalignment("right")
    axes.grid(axis="x")
    return _inline_svg(figure, title)


@matplotlib.rc_context(SETTINGS)
def duration_bars(stages: Sequence[tuple[str, float]], title: str = "Time per stage") -> Markup:
    """One bar per (name, seconds). Returns SVG."""
    figure, axes, places = _rows([("", name, duration(seconds)) for name, seconds in stages], row=0.36)
    for y, (_, seconds) in zip(places, stages, strict=True):
        axes.barh(y, seconds, height=0.07, color=PALETTE[0], linewidth=0)
    axes.set_xlim(0, max([seconds for _, seconds in stages] or [1]) or 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    return _inline_svg(figure, title)


@matplotlib.rc_context(SETTINGS)
def curves(lines: Mapping[str, Curve], title: str, xlabel: str = "training step") -> Markup:
    """One line per name; above 40 points also its running mean. Returns SVG.

    The value axis is logarithmic when all values are positive and span more than a factor of 30.
    """
    legend = list(lines) if len(lines) > 1 else []
    figure, axes = _lines_figure(title, xlabel, legend)
    values = np.array([v for _, points in lines.values() for v in points if math.isfinite(v)])
    if len(values) and values.min() > 0 and values.max() / values.min() > 30:
        _log_scale(axes)
    for index, (name, (steps, points)) in enumerate(lines.items()):
        colour, is_long = PALETTE[index % len(PALETTE)], len(points) > 40
        if is_long:
            axes.plot(steps, points, color=colour, linewidth=0.8, alpha=0.3)
        solid = running_mean(points) if is_long else points
        axes.plot(steps, solid, color=colour, linewidth=1.8, label=_clean(name, 46))
    axes.margins(x=0.01)
    return _inline_svg(figure, title, legend)


@dataclass
class FractionLine:
    """Pairs of a synthetic fraction and its rate, and the rate that all real episodes reach."""

    points: list[tuple[float, Rate]]
    all_real: float | None = None


@matplotlib.rc_context(SETTINGS)
def fraction_lines(lines: Mapping[str, FractionLine], title: str) -> Markup:
    """Success against the synthetic fraction, with intervals; dashed, what all real episodes reach. Returns SVG.

    Where several lines share such a bar it is grey.
    """
    rates = [line.all_real for line in lines.values()]
    bars = {rate: [i for i, other in enumerate(rates) if other == rate] for rate in rates if rate is not None}
    names = [*lines, *(["all real episodes"] if bars else [])]
    figure, axes = _lines_figure(title, "synthetic fraction of the training clips", names, height=3.2)
    for index, (name, line) in enumerate(lines.items()):
        ordered = sorted(line.points, key=lambda point: point[0])
        x = [fraction + 0.006 * (index - (len(lines) - 1) / 2) for fraction, _ in ordered]  # side by side
        y = [rate.rate for _, rate in ordered]
        error = [
            [max(0.0, rate.rate - rate.low) for _, rate in ordered],
            [max(0.0, rate.high - rate.rate) for _, rate in ordered],
        ]
        style: Any = {"linewidth": 1.8, "elinewidth": 1.2, "capsize": 3.5, "marker": "o", "markersize": 4}
        colour = PALETTE[index % len(PALETTE)]
        axes.errorbar(x, y, yerr=error, color=colour, label=_clean(name, 46), **style)
    for value, owners in bars.items():
        colour = PALETTE[owners[0] % len(PALETTE)] if len(owners) == 1 else MUTED
        label = "all real episodes" if value == next(iter(bars)) else None
        axes.axhline(value, color=colour, linewidth=1.2, linestyle=(0, (5, 4)), label=label)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    return _inline_svg(figure, title, names)


@matplotlib.rc_context(SETTINGS)
def validity_lines(card: ValidityCard, title: str = "Validity of the clip distance") -> Markup:
    """Distance against the strength of each corruption, from weakest to strongest. Returns SVG.

    The floor is the dashed line and the left end of all others; one that falls anywhere says so.
    """
    lines = {}
    for row in card.rows:
        first, last = (f"{row.strengths[end]:g}" for end in (0, -1))
        falls = "" if row.monotone else ", not monotone"
        lines[f"{row.corruption}, {first}–{last} {row.unit}{falls}"] = [card.floor, *row.distances]
    figure, axes = _lines_figure(title, "strength of the corruption", list(lines))
    if min([card.floor, *(value for line in lines.values() for value in line)]) > 0:
        _log_scale(axes)
    axes.axhline(card.floor, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    for index, (name, line) in enumerate(lines.items()):
        axes.plot(line, color=PALETTE[index % len(PALETTE)], linewidth=1.8, marker="o", markersize=4, label=name)
    steps = range(1, max(map(len, lines.values()), default=1))
    axes.set_xticks([0, *steps], ["none", *map(str, steps)])
    axes.margins(x=0.02)
    return _inline_svg(figure, title, list(lines))


def read_scalars(directory: str | Path) -> dict[str, Curve]:
    """Scalars of the TensorBoard event files in a directory: tag -> (steps, values), in order of steps.

    Files that are cut short give what they hold; a directory without events gives {}.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(directory), size_guidance={"scalars": 1000, "images": 1, "tensors": 1})
    events.Reload()
    found: dict[str, Curve] = {}
    for tag in sorted(events.Tags()["scalars"]):
        points = sorted((event.step, event.value) for event in events.Scalars(tag))
        found[tag] = ([step for step, _ in points], [value for _, value in points])
    return found


def running_mean(values: Sequence[float], share: float = 0.05) -> np.ndarray:
    """Centred mean over `share` of the values, narrower at both ends; not-finite values are left out."""
    numbers = np.asarray(values, dtype=float)
    half = int(len(numbers) * share / 2)
    means = np.full(len(numbers), np.nan)
    for i in range(len(numbers)):
        reach = min(half, i, len(numbers) - 1 - i)
        window = numbers[i - reach : i + reach + 1]
        if np.isfinite(window).any():
            means[i] = window[np.isfinite(window)].mean()
    return means


def _rate_text(rate: Rate) -> str:
    return f"{percent(rate.rate)} %  ·  {rate.successes}/{rate.n}  ·  {interval(rate)}"


def figure_file(figures: Sequence[str]) -> str:
    """Figures side by side as one SVG file, on white: for where the page's style sheet is not."""
    boxes = [[float(number) for number in re.findall(r"[\d.]+", figure.split('"', 2)[1])] for figure in figures]
    width, height = sum(box[2] + GAP for box in boxes), max((box[3] for box in boxes), default=1.0)
    parts, left = [f'<rect width="{width}" height="{height}" fill="white"/>'], 0.0
    for figure, box in zip(figures, boxes, strict=True):
        parts.append(str(figure).replace("<svg ", f'<svg x="{left}" width="{box[2]}" height="{box[3]}" ', 1))
        left += box[2] + GAP
    text = re.sub(r"var\(--[\w-]+, ([^)]+)\)", r"\1", "".join(parts))  # not every viewer knows CSS variables
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{text}</svg>\n'


def _rows(rows: Sequence[tuple[str, str, str]], row: float = ROW) -> tuple[Figure, Axes, list[float]]:
    """Rows of (group, label, value text), text above the place of each bar; returns the places in inches.

    The text stands above the bar instead of beside it, so that long names fit on a phone.
    """
    places, headers, y, previous = [], [], 0.0, ""
    for group, _, _ in rows:
        if group and group != previous:
            y += HEADER
            headers.append((y - 0.06, group))
        previous = group
        y += row
        places.append(y - 0.1)
    bottom, height = 0.3, y + 0.36
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.012, bottom / height, 0.964, y / height))
    axes.set_ylim(y, 0)
    axes.set_yticks([])
    for place, (_, label, text) in zip(places, rows, strict=True):
        above: Any = {"transform": axes.get_yaxis_transform(), "va": "center"}
        axes.text(0, place - 0.185, _clean(label, 44), **above)
        axes.text(1, place - 0.185, text, ha="right", color=MUTED, **above)
    for place, group in headers:
        axes.text(0, place, _clean(group, 60), weight="bold", transform=axes.get_yaxis_transform())
    return figure, axes, places


def _lines_figure(title: str, xlabel: str, legend: Sequence[str], height: float = 2.9) -> tuple[Figure, Axes]:
    """A figure with a title, and axes that leave room for the legend of `_inline_svg` below it. height: inches."""
    figure = Figure(figsize=(WIDTH, height))
    figure.text(0.02, 0.985, _clean(title, 60), weight="bold", va="top")
    axes = figure.add_axes((0.105, 0.155, 0.875, 0.72 - 0.075 * math.ceil(len(legend) / _legend_columns(legend))))
    axes.set_xlabel(xlabel, loc="right", fontsize=9.5)
    axes.grid(axis="y")
    return figure, axes


def _log_scale(axes: Axes) -> None:
    """Plain numbers on a logarithmic axis: matplotlib's own labels are formulas, which are not parsed here."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _inline_svg(figure: Figure, title: str, legend: Sequence[str] = ()) -> Markup:
    """A figure as a page takes it: no template escapes it, since matplotlib has escaped the texts in it."""
    if legend:
        columns = _legend_columns(legend)
        figure.legend(loc="upper left", bbox_to_anchor=(0, 0.93), ncols=columns, frameon=False, fontsize=9.5)
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's font lacks; the browser's has them
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    text = file.getvalue()
    box = re.search(r'viewBox="([^"]+)"', text)
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"font: ([\w ]*?)([\d.]+px) [^;\"]+", r"font: \1\2 var(--font, sans-serif)", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable}, {colour})")
    used = set(re.findall(r"#(\w+)", body))  # several figures share a page: only ids that are referred to stay
    body = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", body)
    body = body.replace("xlink:href", "href")
    label = html.escape(title)
    return Markup(f'<svg viewBox="{box[1] if box else "0 0 1 1"}" role="img" aria-label="{label}">{body.strip()}')


def _clean(text: str, limit: int) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _legend_columns(names: Sequence[str]) -> int:
    return 1 + (max(map(len, names), default=0) < 26)
