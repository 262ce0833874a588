"""One self-contained HTML page about runs, in the order of the story: from recorded episodes to a tested policy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
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
    framed,
    key_values,
    rows_table,
    shown,
    side_by_side,
    spaced,
    tile,
    told_rate,
    trials,
)
from toolkit.reporting.parts import PARTS, RunPage, suites, systems
from toolkit.reporting.run_record import read_record
from toolkit.reporting.story import PAPER, SHOWN, STORY
from toolkit.reporting.success import only_rates

MAX_MEDIA_BYTES = 64 * 2**20


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
    replayed = [row for run in runs if run.command == "replay" for row in systems(run)]
    for row in only_rates(replayed)[:2]:
        tiles.append(tile(f"{plots.percent(row['rate'])} %", f"replay success, {row['system']}", trials(row)))
    tested = only_rates(row for run in runs if run.command == "evaluate" for row in suites(run))
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
        told = [f"{escaped(row['system'])} {told_rate(row)}" for row in only_rates(systems(run))]
    if run.command == "evaluate":
        told += [f"{escaped(row['suite'])} {told_rate(row)}" for row in only_rates(suites(run))]
    status = run.record["status"]
    # The demo writes its page as its last act, so its own record still says "running" then.
    unfinished = status != "finished" and not (run.command == "demo" and "policies" in run.result)
    badge = (
        f' <span class="badge">{escaped(status)}</span> {escaped(run.record.get("error", ""))}' if unfinished else ""
    )
    seconds = finite(run.record.get("wall_seconds"))
    time = f" <time>{plots.duration(seconds)}</time>" if seconds is not None else ""
    return f"<li><code>{escaped(run.name)}</code>{': ' if told else ''}{', '.join(told)}.{time}{badge}</li>\n"


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
