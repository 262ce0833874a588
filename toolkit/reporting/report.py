"""One self-contained HTML page about runs, in the order of the story: from recorded episodes to a tested policy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from toolkit.base.errors import UserError
from toolkit.base.files import write_text
from toolkit.base.reading import read_bytes
from toolkit.data.images import picture_size
from toolkit.reporting import media, plots
from toolkit.reporting.generator_results import SynthesizeResult
from toolkit.reporting.pages import page, piece
from toolkit.reporting.results import CollectResult, ReplayResult, RolloutResult
from toolkit.reporting.run_page import RunPage, find_runs, is_file_inside
from toolkit.reporting.sections import SECTIONS
from toolkit.reporting.story import SHOWN, STORY
from toolkit.reporting.values import distinct, duration, flatten, fraction, interval, percent, shown, spaced

MAX_PAGE_BYTES = 512 * 2**20  # of media, together
HELD_OUT_LOSS = "held_out/loss"  # as trainings log it


def write_report(run_dirs: Iterable[str | Path], output_html: str | Path) -> None:
    """Write one HTML page about the runs; those that a demo names in `runs` are taken along.

    The page needs no network and no other file. It appears under its name only when complete.
    A part that a record has no sound values for is left out, and a line says so.
    Raises UserError when a directory holds no `run.json`, a damaged one, or none of a vag command.
    """
    runs = find_runs(run_dirs)
    commands = {run.command for run in runs}
    budget = _MediaBudget()
    sections = [
        _section(command, [run for run in runs if run.command == command], "demo" in commands, budget)
        for command in [*STORY, *sorted(commands - STORY.keys())]
        if command in commands
    ]
    header = _sound_pieces(runs, lambda some: [_header(some)], "key numbers")
    write_text(output_html, page("page.html.j2", header=header, sections=sections, has_demo="demo" in commands))


@dataclass
class _MediaBudget:
    """What the page still takes of media [byte]."""

    left: int = MAX_PAGE_BYTES

    def take(self, size: int) -> bool:
        fits = size <= self.left
        self.left -= size * fits
        return fits


def _sound_pieces(runs: list[RunPage], build: Callable[[list[RunPage]], list[Markup]], what: str) -> list[Markup]:
    """Pieces about all runs; of each run alone where some values make no figure together, with a line on those alone.

    Records come from anywhere: a number that no figure can show must not cost the page, nor the pieces of other runs.
    """
    try:
        return build(runs)
    except Exception as error:
        if len(runs) > 1:
            return [made for run in runs for made in _sound_pieces([run], build, what)]
        reason = f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        text = f"{what} left out, for its record holds values that cannot be shown {reason}."
        return [piece("note", name=runs[0].name, text=text)]


def _header(runs: Sequence[RunPage]) -> Markup:
    """What the method is, where and when it ran, and a row of key numbers."""
    records, results = [run.record for run in runs], [run.result for run in runs]
    shas, machines, seeds, times = (
        distinct(record.get(key) for record in records) for key in ("git_sha", "hardware", "seed", "started")
    )
    start = min(map(str, times), default="").replace("T", " ")
    top = [run for run in runs if run.command == "demo"] or runs
    tiles = [(duration(sum(run.record.get("wall_seconds", 0) for run in top)), "wall time", "")]
    for kind, label in ((CollectResult, "episodes recorded"), (SynthesizeResult, "episodes generated")):
        if counts := [result.episodes for result in results if isinstance(result, kind)]:
            tiles.append((shown(sum(counts)), label, f"in {len(counts)} datasets" if len(counts) > 1 else ""))
    systems = [item for result in results if isinstance(result, ReplayResult) for item in result.systems.items()]
    rates = [(f"replay success, {name}", rate) for name, rate in systems[:2]]
    evaluated = [result for result in results if isinstance(result, RolloutResult)]
    if tested := [(rate, result) for result in evaluated for rate in result.suites.values()]:
        rate, result = max(tested, key=lambda item: item[0].rate)
        rates.append((f"highest policy success: {result.policy}, {result.arm}", rate))
    tiles += [
        (f"{percent(rate.rate)} %", label, f"{fraction(rate)}, of these checkpoints {interval(rate)}")
        for label, rate in rates
    ]
    facts = [*machines, *(f"seed {seed}" for seed in seeds), *filter(None, [start])]
    return piece("header", shas=shas, facts=facts, tiles=tiles)


def _section(command: str, runs: list[RunPage], has_demo: bool, budget: _MediaBudget) -> dict[str, Any]:
    """What page.html.j2 lays out of the runs of one command: texts, and lists of pieces."""

    def of_each(build: Callable[[RunPage], list[Markup]], what: str) -> list[Markup]:
        return [made for run in runs for made in _sound_pieces([run], lambda one: build(one[0]), what)]

    def results(some: list[RunPage]) -> list[Markup]:
        return SECTIONS[command]([(run.name, run.result) for run in some], has_demo)

    title, purpose, clauses = STORY.get(command, (command.capitalize(), "", ()))
    notes = [
        piece("note", name=run.name, text=f"left out of its record: {', '.join(run.left_out)}.")
        for run in runs
        if run.left_out
    ]
    complete = [run for run in runs if run.result is not None and command in SECTIONS]
    return {
        "id": command.replace(" ", "-"),
        "title": title,
        "purpose": purpose,
        "sentences": of_each(lambda run: [_sentence(run, clauses)], "key numbers"),
        "results": [*notes, *(_sound_pieces(complete, results, "results") if complete else [])],
        "media": of_each(lambda run: [_medium(run, *item, budget) for item in _media_of(run)], "media"),
        "curves": _sound_pieces(runs, lambda some: [_training_curves(some)], "training curves"),
        "details": of_each(lambda run: [_provenance(run)], "provenance"),
    }


def _sentence(run: RunPage, clauses: Sequence[str]) -> Markup:
    """One run in one line: name, key numbers, wall time, and its status unless it finished."""
    flat = dict(flatten(run.raw))
    split = [re.split(r"\{(.+?)\}", clause) for clause in clauses]
    result, status = run.result, run.record["status"]
    rates = result.systems if isinstance(result, ReplayResult) else getattr(result, "suites", {})
    # The demo writes its page as its last act, so its own record still says "running" then.
    is_unfinished = status != "finished" and not (run.command == "demo" and result is not None)
    seconds = run.record.get("wall_seconds")
    return piece(
        "sentence",
        name=run.name,
        numbers=[(before, shown(flat[key]), after) for before, key, after in split if key in flat],
        rates=rates.items(),
        time=duration(seconds) if seconds is not None else "",
        status=status if is_unfinished else "",
        error=run.record.get("error", ""),
    )


def _media_of(run: RunPage) -> list[tuple[str, str]]:
    """(path, caption) of the listed media, then of what else lies in `media/`."""
    listed = {one.path: one.caption for one in getattr(run.result, "media", [])}
    for path in sorted(run.path.glob("media/*")):
        if path.suffix.lower() in media.MIME and not path.name.startswith("."):
            listed.setdefault(f"media/{path.name}", "")
    return list(listed.items())


def _medium(run: RunPage, name: str, caption: str, budget: _MediaBudget) -> Markup:
    """A video or picture inside the page; a line of text where that is not possible."""
    alt = spaced(Path(name).stem)
    try:
        content = _embedded(run, name, budget)
    except UserError as error:
        content = {"problem": str(error)}
    return piece("medium", run=run.name, file=name, caption=caption or alt, alt=alt, **content)


def _embedded(run: RunPage, name: str, budget: _MediaBudget) -> dict[str, Any]:
    """The `data:` address of a file of a run, and the size of a picture [pixel]. Raises UserError: why not."""
    path = run.path / name
    if not is_file_inside(run.path, name) or path.suffix.lower() not in media.MIME:
        raise UserError("is not a video or picture in this run.")
    if path.stat().st_size > media.MAX_BYTES:
        raise UserError("is larger than 64 MiB and left out.")
    if not budget.take(path.stat().st_size):
        raise UserError("is left out; the page would be too large.")
    data = read_bytes(path, media.MAX_BYTES)
    if path.suffix.lower() == ".mp4":
        return {"video": media.data_uri(path, data)}
    try:
        height, width = picture_size(data)
    except ValueError as error:
        raise UserError("is damaged.") from error
    return {"picture": media.data_uri(path, data), "width": width, "height": height}


def _training_curves(runs: list[RunPage]) -> Markup:
    """Loss of every run, and beside it on held-out episodes, by what may share an axis; other scalars folded away."""
    groups: dict[str, dict[str, dict[str, plots.Curve]]] = {}  # group -> tag -> run -> curve
    for run in runs:
        found = list(run.path.glob("**/events.out.tfevents.*"))
        strange = {path.parent for path in found if not is_file_inside(run.path, str(path.relative_to(run.path)))}
        for directory in sorted({path.parent for path in found} - strange):
            below = directory.relative_to(run.path).parts
            if any((run.path.joinpath(*below[: i + 1]) / "run.json").exists() for i in range(len(below))):
                continue  # belongs to another run, whose directory lies in this one
            group = " ".join(name for name in below if name != "tensorboard") or getattr(run.result, "policy", "")
            for tag, curve in plots.read_scalars(directory).items():
                groups.setdefault(group, {}).setdefault(tag, {})[run.name] = curve
    first: list[Markup] = []
    other: list[Markup] = []
    for group, tags in groups.items():
        held_out = tags.pop(HELD_OUT_LOSS, {}) if "loss" in tags else {}
        for tag, lines in tags.items():
            if tag == "loss":
                lines |= {f"{name}, held out": curve for name, curve in held_out.items()}
            figure = plots.curves(lines, " ".join(filter(None, (group, spaced(tag)))))
            (first if tag == "loss" or len(tags) == 1 else other).append(piece("figure", content=figure))
    return piece("curves", first=first, other=other)


def _provenance(run: RunPage) -> Markup:
    """Everything else in the record, folded away: other results, provenance, configuration."""
    record = run.record
    sentence = " ".join(STORY.get(run.command, ("", "", ()))[2])
    origin = {key: record[key] for key in ("status", "git_sha", "hardware", "seed", "started") if key in record}
    return piece(
        "provenance",
        name=run.name,
        other={k: v for k, v in run.raw.items() if k not in SHOWN and f"{{{k}}}" not in sentence},
        origin={
            **origin,
            "wall time": duration(record.get("wall_seconds", 0)),
            "versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
            "directory": str(run.path),
        },
        data=record.get("data"),
        config=record.get("config"),
        raw=json.dumps(run.raw, ensure_ascii=False),
    )
