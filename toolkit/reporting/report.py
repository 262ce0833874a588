"""One self-contained HTML page about runs, in the order of the story: from recorded episodes to a tested policy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.files import write_text
from toolkit.base.reading import read_bytes
from toolkit.data.images import picture_size
from toolkit.reporting import media, plots
from toolkit.reporting.markup import (
    distinct,
    escaped,
    flatten,
    framed,
    key_values,
    rate_text,
    rows_table,
    shown,
    side_by_side,
    spaced,
    tile,
    trials,
)
from toolkit.reporting.parts import PARTS, RunPage
from toolkit.reporting.results import CollectResult, ReplayResult, RolloutResult, SynthesizeResult
from toolkit.reporting.story import PAPER, SHOWN, STORY

MAX_PAGE_BYTES = 512 * 2**20  # of media, together


def write_report(run_dirs: Iterable[str | Path], output_html: str | Path) -> None:
    """Write one HTML page about the runs; those that a demo names in `runs` are taken along.

    The page needs no network and no other file. It appears under its name only when complete.
    A part that a record has no sound values for is left out, and a line says so.
    Raises UserError when a directory holds no `run.json`, a damaged one, or none of a vag command.
    """
    runs = _find(run_dirs)
    sections: list[str] = []
    links: list[str] = []
    room = _Room()
    unknown = sorted({run.command for run in runs} - set(STORY))
    for command in [*STORY, *unknown]:
        chosen = [run for run in runs if run.command == command]
        if not chosen:
            continue
        title = STORY[command][0] if command in STORY else command.capitalize()
        number = f"<span>{len(links)}</span>" if command != "demo" and "demo" in {r.command for r in runs} else ""
        place = escaped(command.replace(" ", "-"))
        links.append(f'<li><a href="#{place}">{escaped(title)}</a></li>')
        body = _section(command, chosen, any(run.command == "demo" for run in runs), room)
        sections.append(f'<section id="{place}">\n<h2>{number}{escaped(title)}</h2>\n{body}\n</section>')
    header = _of_sound(runs, lambda found: [_header(found)], "key numbers")
    template = Template(files("toolkit.reporting").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title="Video-action generation: run report" if runs else "Video-action generation: no runs",
        header=f"{''.join(header)}<nav><ol>{''.join(links)}</ol></nav>",
        main="\n".join(sections),
        footer=f"Method: {PAPER}, rebuilt from its published description. Every number on this page is read from "
        "the records of the runs.",
    )
    write_text(output_html, page)


def _find(run_dirs: Iterable[str | Path]) -> list[RunPage]:
    """Runs in the order given, each once, a demo followed by its parts."""
    found: dict[Path, RunPage] = {}

    def add(path: Path) -> None:
        if path.resolve() in found:
            return
        run = RunPage.read(path)
        found[path.resolve()] = run
        if run.command == "demo":
            there = sorted(child.parent.name for child in path.glob("*/run.json"))  # of an unfinished demo
            for name in run.result.runs if run.result is not None else there:
                if _inside(path, name):
                    add(path / name)
                else:
                    run = replace(run, left_out=(*run.left_out, f"run '{name:.60}', which does not lie in it"))
            found[path.resolve()] = run

    for path in run_dirs:
        add(Path(path))
    names = [run.name for run in found.values()]
    return [
        run if names.count(run.name) == 1 else replace(run, name=f"{path.parent.name}/{run.name}")
        for path, run in found.items()
    ]


def _inside(directory: Path, name: str) -> bool:
    """True for something below a directory, not reached through a link that leads out of it."""
    try:
        return (directory / name).resolve() != directory.resolve() and (directory / name).resolve().is_relative_to(
            directory.resolve()
        )
    except (OSError, ValueError, RuntimeError):  # a zero byte, a name too long, a loop of links
        return False


def _is_file_inside(directory: Path, name: str) -> bool:
    try:
        return _inside(directory, name) and (directory / name).is_file()
    except (OSError, ValueError):
        return False


@dataclass
class _Room:
    """What the page still takes of media [byte]."""

    left: int = MAX_PAGE_BYTES

    def take(self, size: int) -> bool:
        fits = size <= self.left
        self.left -= size * fits
        return fits


def _of_sound(runs: list[RunPage], build: Callable[[list[RunPage]], list[str]], what: str) -> list[str]:
    """Parts about all runs; of each run alone where some values make no figure together, with a line on those alone.

    Records come from anywhere: a number that no figure can show must not cost the page, nor the parts of other runs.
    """
    try:
        return build(runs)
    except Exception as error:
        if len(runs) > 1:
            return [part for run in runs for part in _of_sound([run], build, what)]
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return [_note(runs[0], f"{what} left out, for its record holds values that cannot be shown ({reason}).")]


def _note(run: RunPage, text: str) -> str:
    return f'<p class="note"><code>{escaped(run.name)}</code>: {escaped(text)}</p>'


def _header(runs: Sequence[RunPage]) -> str:
    """What the method is, where and when it ran, and a row of key numbers."""
    records = [run.record for run in runs]
    top = [run for run in runs if run.command == "demo"] or runs
    facts = [f"code <code>{escaped(sha)}</code>" for sha in distinct(record.get("git_sha") for record in records)] + [
        escaped(value) for value in distinct(record.get("hardware") for record in records)
    ]
    facts += [f"seed {escaped(value)}" for value in distinct(record.get("seed") for record in records)]
    facts += [escaped(str(min(map(str, distinct(r.get("started") for r in records)), default="")).replace("T", " "))]
    seconds = sum(run.record.get("wall_seconds", 0) for run in top)
    tiles = [tile(plots.duration(seconds), "wall time", "")]
    results = [run.result for run in runs]
    for kind, label in ((CollectResult, "episodes recorded"), (SynthesizeResult, "episodes generated")):
        if counts := [result.episodes for result in results if isinstance(result, kind)]:
            tiles.append(tile(shown(sum(counts)), label, f"in {len(counts)} datasets" if len(counts) > 1 else ""))
    systems = [item for result in results if isinstance(result, ReplayResult) for item in result.systems.items()]
    for name, rate in systems[:2]:
        tiles.append(tile(f"{plots.percent(rate.rate)} %", f"replay success, {name}", trials(rate)))
    evaluated = [result for result in results if isinstance(result, RolloutResult)]
    if tested := [(rate, result) for result in evaluated for rate in result.suites.values()]:
        rate, result = max(tested, key=lambda item: item[0].rate)
        name = f"highest policy success: {result.policy}, {result.arm}"
        tiles.append(tile(f"{plots.percent(rate.rate)} %", name, trials(rate)))
    return (
        f'<p class="lead">One model imagines a robot episode from a picture and an instruction, as video and actions '
        f"together; the imagined episodes then train robot policies. The method is {PAPER}.</p>\n"
        f'<p class="facts">{" &nbsp;·&nbsp; ".join(filter(None, facts))}</p>\n<dl class="tiles">{"".join(tiles)}</dl>\n'
    )


def _section(command: str, runs: list[RunPage], has_demo: bool, room: _Room) -> str:
    _, purpose, clauses = STORY.get(command, ("", "", ()))
    parts = [f'<p class="lead">{purpose}</p>'] if purpose else []
    told = [part for run in runs for part in _of_sound([run], lambda one: [_sentence(one[0], clauses)], "key numbers")]
    parts.append(f'<ul class="runs">{"".join(told)}</ul>')
    parts += [_note(run, f"left out of its record: {', '.join(run.left_out)}.") for run in runs if run.left_out]
    if (results := PARTS.get(command)) is not None and (found := [run for run in runs if run.result is not None]):
        build = results
        parts += _of_sound(found, lambda some: build([(run.name, run.result) for run in some], has_demo), "results")
    pictures: list[str] = []
    for run in runs:
        pictures += _of_sound([run], lambda one: [_media(one[0], *item, room) for item in _media_of(one[0])], "media")
    parts.append(side_by_side(pictures))
    parts += _of_sound(runs, _training_curves, "training curves")
    folded = [part for run in runs for part in _of_sound([run], lambda one: [_provenance(one[0])], "provenance")]
    parts.append(f'<div class="folded">{"".join(folded)}</div>')
    return "\n".join(filter(None, parts))


def _sentence(run: RunPage, clauses: Sequence[str]) -> str:
    """One run in one line: name, key numbers, wall time, and its status unless it finished."""
    flat = dict(flatten(run.raw))
    told = []
    for clause in clauses:
        key = re.findall(r"\{(.+?)\}", clause)[0]
        if key in flat:
            told.append(clause.replace(f"{{{key}}}", f"<b>{shown(flat[key])}</b>"))
    result = run.result
    named = result.systems if isinstance(result, ReplayResult) else getattr(result, "suites", {})
    told += [f"{escaped(name)} {rate_text(rate)}" for name, rate in named.items()]
    status = run.record["status"]
    # The demo writes its page as its last act, so its own record still says "running" then.
    unfinished = status != "finished" and not (run.command == "demo" and result is not None)
    badge = (
        f' <span class="badge">{escaped(status)}</span> {escaped(run.record.get("error", ""))}' if unfinished else ""
    )
    seconds = run.record.get("wall_seconds")
    time = f" <time>{plots.duration(seconds)}</time>" if seconds is not None else ""
    return f"<li><code>{escaped(run.name)}</code>{': ' if told else ''}{', '.join(told)}.{time}{badge}</li>\n"


def _media_of(run: RunPage) -> list[tuple[str, str]]:
    """(path, caption) of the listed media, then of what else lies in `media/`."""
    listed = {one.path: one.caption for one in getattr(run.result, "media", [])}
    for path in sorted(run.path.glob("media/*")):
        if path.suffix.lower() in media.MIME and not path.name.startswith("."):
            listed.setdefault(f"media/{path.name}", "")
    return list(listed.items())


def _media(run: RunPage, name: str, caption: str, room: _Room) -> str:
    """A video or picture inside the page; a line of text where that is not possible."""
    path = run.path / name
    caption = f"<code>{escaped(run.name)}</code> {escaped(caption or spaced(Path(name).stem))}"
    if not _is_file_inside(run.path, name) or path.suffix.lower() not in media.MIME:
        return f'<p class="note">{caption}: <code>{escaped(name)}</code> is not a video or picture in this run.</p>'
    if path.stat().st_size > media.MAX_BYTES:
        return f'<p class="note">{caption}: <code>{escaped(name)}</code> is larger than 64 MiB and left out.</p>'
    if not room.take(path.stat().st_size):
        return f'<p class="note">{caption}: <code>{escaped(name)}</code> is left out; the page would be too large.</p>'
    try:
        data = read_bytes(path, media.MAX_BYTES)
    except UserError as error:
        return f'<p class="note">{caption}: {escaped(error)}</p>'
    address = media.data_uri(path, data)
    if address.startswith("data:video"):
        shown = f'<video src="{address}" autoplay loop muted playsinline controls></video>'
    else:
        try:
            height, width = picture_size(data)
        except ValueError:
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
        found = list(run.path.glob("**/events.out.tfevents.*"))
        strange = {path.parent for path in found if not _is_file_inside(run.path, str(path.relative_to(run.path)))}
        for directory in sorted({path.parent for path in found} - strange):
            below = directory.relative_to(run.path).parts
            if any((run.path.joinpath(*below[: i + 1]) / "run.json").exists() for i in range(len(below))):
                continue  # belongs to another run, whose directory lies in this one
            part = " ".join(name for name in below if name != "tensorboard")
            group = part or getattr(run.result, "policy", "")
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
    other = {k: v for k, v in run.raw.items() if k not in SHOWN and f"{{{k}}}" not in sentence}
    where: dict[str, Any] = {
        **{key: record[key] for key in ("status", "git_sha", "hardware", "seed", "started") if key in record},
        "wall time": plots.duration(record.get("wall_seconds", 0)),
        "versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
        "directory": str(run.path),
    }
    parts = [f"<h3>More results</h3>{key_values(other)}" if other else "", f"<h3>Provenance</h3>{key_values(where)}"]
    if data := record.get("data"):
        parts.append(f"<h3>Data</h3>{rows_table(data)}")
    if config := record.get("config"):
        parts.append(f"<h3>Configuration</h3>{key_values(config)}")
    raw = escaped(json.dumps(run.raw, ensure_ascii=False))
    parts.append(f"<h3>Result as recorded</h3><pre>{raw}</pre>")
    name = f"<code>{escaped(run.name)}</code>"
    return f"<details><summary>{name}: configuration and provenance</summary>{''.join(parts)}</details>\n"
