"""One self-contained HTML page about runs, in the order of the story: from recorded episodes to a tested policy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from toolkit.reporting import media, plots
from toolkit.reporting.markup import (
    as_dict,
    as_list,
    distinct,
    escaped,
    finite,
    flatten,
    fraction,
    framed,
    inspection,
    interval,
    key_values,
    rows_table,
    shown,
    side_by_side,
    spaced,
    tile,
    told_rate,
    trials,
)
from toolkit.reporting.run_record import read_record
from toolkit.reporting.story import ARMS, INTERVALS, PAPER, SHOWN, STORY

MAX_MEDIA_BYTES = 64 * 2**20


@dataclass(frozen=True)
class RunPage:
    """One run directory: its name on the page and its record."""

    name: str
    path: Path
    record: dict[str, Any]

    @property
    def command(self) -> str:
        return str(self.record["command"])

    @property
    def result(self) -> dict[str, Any]:
        return as_dict(self.record.get("result"))


def write_report(run_dirs: Iterable[str | Path], output_html: str | Path) -> None:
    """Write one HTML page about the runs; those that a demo names in `runs` are taken along.

    The page needs no network and no other file. It appears under its name only when complete.
    Raises UserError when a directory holds no `run.json` or a damaged one.
    """
    runs = _find(run_dirs)
    sections: list[str] = []
    links: list[str] = []
    unknown = sorted({run.command for run in runs} - set(STORY))
    for command in [*STORY, *unknown]:
        chosen = [run for run in runs if run.command == command]
        if not chosen:
            continue
        title = STORY[command][0] if command in STORY else command.capitalize()
        number = f"<span>{len(links)}</span>" if command != "demo" and "demo" in {r.command for r in runs} else ""
        place = escaped(command.replace(" ", "-"))
        links.append(f'<li><a href="#{place}">{escaped(title)}</a></li>')
        body = _section(command, chosen, has_demo=any(run.command == "demo" for run in runs))
        sections.append(f'<section id="{place}">\n<h2>{number}{escaped(title)}</h2>\n{body}\n</section>')
    template = Template(files("toolkit.reporting").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title="Video-action generation: run report" if runs else "Video-action generation: no runs",
        header=_header(runs) + f"<nav><ol>{''.join(links)}</ol></nav>",
        main="\n".join(sections),
        footer=f"Method: {PAPER}, rebuilt from its published description. Every number on this page is read from "
        "the records of the runs.",
    )
    with media.atomic(output_html) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _find(run_dirs: Iterable[str | Path]) -> list[RunPage]:
    """Runs in the order given, each once, a demo followed by its parts."""
    found: dict[Path, RunPage] = {}

    def add(path: Path) -> None:
        if path.resolve() in found:
            return
        run = RunPage(path.resolve().name, path, read_record(path))
        found[path.resolve()] = run
        if run.command == "demo":
            parts = run.result.get("runs")
            if not isinstance(parts, list):  # an unfinished demo: whatever is there
                parts = sorted(child.parent.name for child in path.glob("*/run.json"))
            for name in parts:
                add(path / str(name))

    for path in run_dirs:
        add(Path(path))
    names = [run.name for run in found.values()]
    return [
        run if names.count(run.name) == 1 else RunPage(f"{path.parent.name}/{run.name}", run.path, run.record)
        for path, run in found.items()
    ]


def _header(runs: Sequence[RunPage]) -> str:
    """What the method is, where and when it ran, and a row of key numbers."""
    records = [run.record for run in runs]
    top = [run for run in runs if run.command == "demo"] or runs
    facts = [f"code <code>{escaped(sha)}</code>" for sha in distinct(record.get("git_sha") for record in records)] + [
        escaped(value) for value in distinct(record.get("hardware") for record in records)
    ]
    facts += [f"seed {escaped(value)}" for value in distinct(record.get("seed") for record in records)]
    facts += [escaped(str(min(map(str, distinct(r.get("started") for r in records)), default="")).replace("T", " "))]
    seconds = sum(value for run in top if (value := finite(run.record.get("wall_seconds"))) is not None)
    tiles = [tile(plots.duration(seconds), "wall time", "")]
    for command, label in (("collect", "episodes recorded"), ("synthesize", "episodes generated")):
        counts = [run.result.get("episodes") for run in runs if run.command == command]
        if counts := [count for count in counts if finite(count) is not None]:
            tiles.append(tile(shown(sum(counts)), label, f"in {len(counts)} datasets" if len(counts) > 1 else ""))
    replayed = [row for run in runs if run.command == "replay" for row in _systems(run)]
    for row in _only_rates(replayed)[:2]:
        tiles.append(tile(f"{plots.percent(row['rate'])} %", f"replay success, {row['system']}", trials(row)))
    tested = _only_rates(row for run in runs if run.command == "evaluate" for row in _suites(run))
    if tested:
        best = max(tested, key=lambda row: row["rate"])
        name = f"highest policy success: {best['policy']}, {best['arm']}"
        tiles.append(tile(f"{plots.percent(best['rate'])} %", name, trials(best)))
    return (
        f'<p class="lead">One model imagines a robot episode from a picture and an instruction, as video and actions '
        f"together; the imagined episodes then train robot policies. The method is {PAPER}.</p>\n"
        f'<p class="facts">{" &nbsp;·&nbsp; ".join(filter(None, facts))}</p>\n<dl class="tiles">{"".join(tiles)}</dl>\n'
    )


def _section(command: str, runs: list[RunPage], has_demo: bool) -> str:
    _, purpose, clauses = STORY.get(command, ("", "", ()))
    parts = [f'<p class="lead">{purpose}</p>'] if purpose else []
    parts.append(f'<ul class="runs">{"".join(_sentence(run, clauses) for run in runs)}</ul>')
    parts += PARTS.get(command, lambda runs, has_demo: [])(runs, has_demo)
    parts.append(side_by_side(_media(run, name, caption) for run in runs for name, caption in _media_of(run)))
    parts += _training_curves(runs)
    parts.append(f'<div class="folded">{"".join(_provenance(run) for run in runs)}</div>')
    return "\n".join(filter(None, parts))


def _sentence(run: RunPage, clauses: Sequence[str]) -> str:
    """One run in one line: name, key numbers, wall time, and its status unless it finished."""
    flat = dict(flatten(run.result))
    told = []
    for clause in clauses:
        key = re.findall(r"\{(.+?)\}", clause)[0]
        if key in flat:
            told.append(clause.replace(f"{{{key}}}", f"<b>{shown(flat[key])}</b>"))
    if run.command == "replay":
        told = [f"{escaped(row['system'])} {told_rate(row)}" for row in _only_rates(_systems(run))]
    if run.command == "evaluate":
        told += [f"{escaped(row['suite'])} {told_rate(row)}" for row in _only_rates(_suites(run))]
    status = run.record["status"]
    # The demo writes its page as its last act, so its own record still says "running" then.
    unfinished = status != "finished" and not (run.command == "demo" and "policies" in run.result)
    badge = (
        f' <span class="badge">{escaped(status)}</span> {escaped(run.record.get("error", ""))}' if unfinished else ""
    )
    seconds = finite(run.record.get("wall_seconds"))
    time = f" <time>{plots.duration(seconds)}</time>" if seconds is not None else ""
    return f"<li><code>{escaped(run.name)}</code>{': ' if told else ''}{', '.join(told)}.{time}{badge}</li>\n"


def _demo(runs: list[RunPage], has_demo: bool) -> list[str]:
    parts = []
    for run in runs:
        policies = [as_dict(row) for row in as_list(run.result.get("policies"))]
        parts += _success(policies, ("policy", "arm"), "Policies on unseen scenes")
        systems = [as_dict(row) for row in as_list(as_dict(run.result.get("generator")).get("systems"))]
        rows = [{**row, **as_dict(row.get("replay_success"))} for row in systems]
        measured = distinct(k for row in rows for k, v in row.items() if finite(v) is not None and k not in COUNTS)
        if rows:
            parts.append("<h3>Generator on held-out scenes</h3>")
            parts.append(_success_table(rows, ("system",), measured))
            parts.append(_verdicts(rows, ("system",)) + _glossary(rows))
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
    parts = _success([row for row in replays if "n" in row], ("system",), "Replay success of generated actions")
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
            parts.append(rows_table(list(table.values())) + _glossary(chosen))
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
            parts.append(rows_table([row for row in chosen if row.get("metric") != "success"]))
            if compared := [row for row in comparisons if row.get("suite") == suite]:
                parts.append("<h3>Paired differences, a minus b</h3>" + rows_table(compared))
            parts.append(_glossary(chosen))
        if failed := [cell for cell in cells if cell.get("status") == "failed"]:
            parts.append("<h3>Cells that failed</h3>" + rows_table(failed))
    return parts


def arm_figures(rows: list[dict[str, Any]]) -> list[str]:
    """Success of all systems, an SVG for every suite."""
    figures = []
    for suite in distinct(row.get("suite") for row in rows):
        bars = [
            {
                **row,
                "group": f"{row.get('policy', '')}, {suite}",
                "label": row.get("system", ""),
                "rate": row["value"],
                "successes": round(row["value"] * row["n"]),
            }
            for row in rows
            if (row.get("suite"), row.get("metric")) == (suite, "success") and row.get("n")
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
    rates = [row for row in rows if row.get("metric") == "success"]
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


def _replay(runs: list[RunPage], has_demo: bool) -> list[str]:
    return _success([row for run in runs for row in _systems(run)], ("system",), "Replay success")


def _evaluate(runs: list[RunPage], has_demo: bool) -> list[str]:
    parts = []
    rows = [row for run in runs for row in _suites(run)]
    for suite in distinct(row["suite"] for row in rows):
        chosen = [row for row in rows if row["suite"] == suite]
        # The summary of a demo already shows this figure.
        parts += _success(chosen, ("policy", "arm"), f"Policy success, {suite} scenes", figure=not has_demo)
    return parts


PARTS: dict[str, Callable[[list[RunPage], bool], list[str]]] = {
    "demo": _demo,
    "collect": _collect,
    "inspect": _inspect,
    "synthesize": _synthesize,
    "evaluate-generator": _evaluate_generator,
    "benchmark generators": _benchmark_generators,
    "ablate": _ablate,
    "replay": _replay,
    "evaluate": _evaluate,
}


COUNTS = ("n", "successes", "rate", "low", "high")


def _systems(run: RunPage) -> list[dict[str, Any]]:
    return [{"system": name, **as_dict(row)} for name, row in as_dict(run.result.get("systems")).items()]


def _suites(run: RunPage) -> list[dict[str, Any]]:
    who = {"policy": run.result.get("policy", run.name), "arm": run.result.get("arm", "")}
    return [{**who, "suite": name, **as_dict(row)} for name, row in as_dict(run.result.get("suites")).items()]


def _only_rates(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that have a rate, or counts to compute it from."""
    kept = []
    for row in rows:
        rate, n, successes = (finite(row.get(key)) for key in ("rate", "n", "successes"))
        if rate is None and n and successes is not None:
            rate = successes / n
        if rate is not None:
            kept.append({**row, "rate": rate})
    return kept


def _success(rows: list[dict[str, Any]], keys: tuple[str, ...], title: str, figure: bool = True) -> list[str]:
    """Figure, table with every task, and what the intervals allow to say."""
    if not (bars := _only_rates(rows)):
        return []
    table = _success_table(rows, keys) + _verdicts(rows, keys) + _glossary(rows)
    if not figure:
        return [f"<h3>{escaped(title)}</h3>", table]
    drawn = [{**row, "group": row[keys[0]] if len(keys) > 1 else "", "label": row[keys[-1]]} for row in bars]
    return [
        f"<h3>{escaped(title)}</h3>",
        side_by_side([framed(plots.success_bars(drawn, title), ""), f"<div>{table}</div>"]),
    ]


def _success_table(rows: list[dict[str, Any]], keys: tuple[str, ...], more: Sequence[str] = ()) -> str:
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
            rated = (_only_rates([part]) or [part])[0]
            rate = f"{plots.percent(rated['rate'])} %" if finite(rated.get("rate")) is not None else "–"
            cells = [f"<td>{escaped(part.get(key, ''))}</td>" for key in keys]
            cells += [f'<td class="number">{shown(part.get(key))}</td>' for key in more]
            cells += [f'<td class="number">{cell}</td>' for cell in (fraction(part), rate, interval(part) or "–")]
            lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    note = f'<p class="note">{INTERVALS}</p>'
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>{note}'


def _verdicts(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> str:
    """Which pairs the intervals tell apart; pairs are formed inside each group, against its first row."""
    lines = []
    bounded = [r for r in _only_rates(rows) if finite(r.get("low")) is not None and finite(r.get("high")) is not None]
    for group in distinct(row.get(keys[0]) for row in bounded) if len(keys) > 1 else [None]:
        members = [row for row in bounded if group is None or row.get(keys[0]) == group]
        prefix = f"<b>{escaped(group)}</b>: " if group is not None else ""
        for other in members[1:]:
            low, high = sorted((members[0], other), key=lambda row: row["rate"])
            names = [f"<code>{escaped(row.get(keys[-1], ''))}</code> {interval(row)}" for row in (low, high)]
            if low["high"] >= high["low"]:
                lines.append(
                    f'<li class="unclear">{prefix}{names[0]} and {names[1]} are not distinguishable: their intervals '
                    "overlap.</li>"
                )
            else:
                lines.append(f"<li>{prefix}{names[1]} is above {names[0]}: their intervals do not overlap.</li>")
    return f'<ul class="verdicts">{"".join(lines)}</ul>' if lines else ""


def _glossary(rows: list[dict[str, Any]]) -> str:
    names = distinct(row.get(key) for row in rows for key in ("arm", "system"))
    known = []
    for name in map(str, names):
        base = name.removesuffix("_filtered")
        if base in ARMS:
            known.append(f"<code>{escaped(name)}</code> {ARMS[base]}{', after filtering' if base != name else ''}")
    return f'<p class="note">{"; ".join(known)}.</p>' if known else ""


def _media_of(run: RunPage) -> list[tuple[str, str]]:
    """(path, caption) of the listed media, then of what else lies in `media/`."""
    listed = {}
    for item in as_list(run.result.get("media")):
        entry = as_dict(item) or {"path": item}
        listed[str(entry.get("path"))] = str(entry.get("caption", ""))
    for path in sorted(run.path.glob("media/*")):
        if path.suffix.lower() in media.MIME and not path.name.startswith("."):
            listed.setdefault(f"media/{path.name}", "")
    return list(listed.items())


def _media(run: RunPage, name: str, caption: str) -> str:
    """A video or picture inside the page; a line of text where that is not possible."""
    path = run.path / name
    caption = f"<code>{escaped(run.name)}</code> {escaped(caption or spaced(Path(name).stem))}"
    inside = path.resolve().is_relative_to(run.path.resolve())
    if not inside or not path.is_file() or path.suffix.lower() not in media.MIME:
        return f'<p class="note">{caption}: <code>{escaped(name)}</code> is not a video or picture in this run.</p>'
    if path.stat().st_size > MAX_MEDIA_BYTES:
        return f'<p class="note">{caption}: <code>{escaped(name)}</code> is larger than 64 MiB and left out.</p>'
    address = media.data_uri(path)
    if address.startswith("data:video"):
        shown = f'<video src="{address}" autoplay loop muted playsinline controls></video>'
    else:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except OSError:
            return f'<p class="note">{caption}: <code>{escaped(name)}</code> is damaged.</p>'
        kind = ' class="pixels"' if width < 768 else ""
        shown = (
            f'<img src="{address}" alt="{escaped(spaced(Path(name).stem))}" width="{width}" height="{height}"{kind}>'
        )
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _training_curves(runs: list[RunPage]) -> list[str]:
    """Loss of every run, grouped by what may share an axis; all other scalars folded away."""
    groups: dict[str, dict[str, dict[str, plots.Curve]]] = {}  # group -> tag -> run -> curve
    for run in runs:
        for directory in sorted({path.parent for path in run.path.glob("**/events.out.tfevents.*")}):
            below = directory.relative_to(run.path).parts
            if any((run.path.joinpath(*below[: i + 1]) / "run.json").exists() for i in range(len(below))):
                continue  # belongs to another run, whose directory lies in this one
            part = " ".join(name for name in below if name != "tensorboard")
            group = part or str(run.result.get("policy", ""))
            for tag, curve in plots.read_scalars(directory).items():
                groups.setdefault(group, {}).setdefault(tag, {})[run.name] = curve
    first: list[str] = []
    other: list[str] = []
    for group, tags in groups.items():
        for tag, lines in tags.items():
            figure = framed(plots.curves(lines, " ".join(filter(None, (group, spaced(tag))))), "")
            (first if tag == "loss" or len(tags) == 1 else other).append(figure)
    parts = []
    if first:
        note = '<p class="note">Faint: values as logged. Solid: running mean over 5 % of them.</p>'
        parts.append(f"<h3>Training curves</h3>{side_by_side(first)}{note}")
    if other:
        parts.append(
            f'<div class="folded"><details><summary>More training curves</summary>{side_by_side(other)}</details></div>'
        )
    return parts


def _provenance(run: RunPage) -> str:
    """Everything else in the record, folded away: other results, provenance, configuration."""
    record = run.record
    sentence = " ".join(STORY.get(run.command, ("", "", ()))[2])
    other = {k: v for k, v in run.result.items() if k not in SHOWN and f"{{{k}}}" not in sentence}
    where: dict[str, Any] = {
        **{key: record[key] for key in ("status", "git_sha", "hardware", "seed", "started") if key in record},
        "wall time": plots.duration(finite(record.get("wall_seconds")) or 0),
        "versions": ", ".join(f"{name} {version}" for name, version in as_dict(record.get("versions")).items()),
        "directory": str(run.path),
    }
    parts = [f"<h3>More results</h3>{key_values(other)}" if other else "", f"<h3>Provenance</h3>{key_values(where)}"]
    if data := [as_dict(entry) for entry in as_list(record.get("data"))]:
        parts.append(f"<h3>Data</h3>{rows_table(data)}")
    if config := as_dict(record.get("config")):
        parts.append(f"<h3>Configuration</h3>{key_values(config)}")
    raw = escaped(json.dumps(run.result, ensure_ascii=False))
    parts.append(f"<h3>Result as recorded</h3><pre>{raw}</pre>")
    name = f"<code>{escaped(run.name)}</code>"
    return f"<details><summary>{name}: configuration and provenance</summary>{''.join(parts)}</details>\n"
