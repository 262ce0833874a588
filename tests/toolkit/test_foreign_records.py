"""Pages about records that somebody else wrote, or that a fault has changed: a page or one line, never a traceback."""

import copy
import json
import os
import zlib
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest

from toolkit.base.errors import UserError
from toolkit.base.typed_json import from_json, to_json
from toolkit.reporting.report import write_report
from toolkit.reporting.results import RESULTS
from toolkit.reporting.run_page import RunPage
from toolkit.reporting.sections import SECTIONS

BENCHMARKS = Path(__file__).parents[2] / "recipes/benchmarks"
RECORDS = {
    "ablate": "ablation-2xcpu-20261126",
    "benchmark generators": "generators-2xcpu-20261125",
    "benchmark policies": "policies-2xcpu-20261126",
}
COMMANDS = sorted({*SECTIONS, "score", "pretrain"})
UNCLEAR = "refused without a reason"
ODD: list[Any] = [None, "", "x", -1, 1e308, float("nan"), float("inf"), 10**400, True, [], {}, ["x"], {"a": [{"b": 1}]}]


def run_record(command: str, result: Any, **more: Any) -> dict[str, Any]:
    return {
        "command": command,
        "status": "finished",
        "config": {"seed": 0, "tasks": ["push"]},
        "git_sha": "0123456789ab",
        "versions": {"python": "3.12.9"},
        "hardware": "2 x CPU",
        "seed": 0,
        "data": [{"path": "data/real", "id": "a1b2", "episodes": 40}],
        "started": "2026-11-03T10:20:30",
        "wall_seconds": 84.5,
        "result": result,
        **more,
    }


@pytest.fixture(scope="module")
def real_records(example: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """Records of every kind that has parts of its own; long lists are cut, for time."""
    found = {command: to_json(example(RESULTS[command])) for command in COMMANDS}
    found["demo"]["runs"] = []
    for command, name in RECORDS.items():
        record = json.loads((BENCHMARKS / f"{name}.json").read_text())
        metrics = ["success", "replay_success", "frechet_clip_distance", "psnr"]
        rows = [
            next(r for r in record["rows"] if r["metric"] == m)
            for m in metrics
            if any(r["metric"] == m for r in record["rows"])
        ]
        arms = [r for r in record["rows"] if r.get("arm") in ("cotrain", "real_few", "real_all")][:6]
        found[command] = {**record, "rows": [*rows, *arms], "comparisons": record["comparisons"][:2]}
    return {command: run_record(command, result) for command, result in found.items()}


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested JSON, inner ones and leaves."""
    if above:
        yield above
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*above, key))


def changed(record: dict[str, Any], changes: dict[tuple[Any, ...], Any]) -> dict[str, Any]:
    record = copy.deepcopy(record)
    for place, value in changes.items():
        inner: Any = record
        try:
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
        except (KeyError, IndexError, TypeError):  # an earlier change has taken its place
            continue
    return record


def page_or_line(directory: Path, record: Any) -> str:
    """The page about a record; "" where it is refused in one line that names the file."""
    directory.mkdir(exist_ok=True)
    (directory / "run.json").write_text(json.dumps(record))
    try:
        write_report([directory], directory / "page.html")
    except UserError as error:
        return "" if "run.json" in str(error) and "\n" not in str(error) else f"{UNCLEAR}: {error}"
    return (directory / "page.html").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_any_value_may_be_odd(tmp_path: Path, command: str, real_records: dict[str, dict[str, Any]]) -> None:
    """Each round changes a twentieth of all values of a real record, so that in the end many have been odd."""
    record = real_records[command]
    where, rng = list(places(record)), np.random.default_rng(0)
    assert "left out of its record" not in page_or_line(tmp_path / "run", record)
    for _ in range(8):
        chosen = rng.choice(len(where), max(1, len(where) // 20), replace=False)
        page = page_or_line(tmp_path / "run", changed(record, {where[i]: ODD[rng.integers(len(ODD))] for i in chosen}))
        assert UNCLEAR not in page
        assert not page or "</html>" in page


@pytest.mark.parametrize("key", ["command", "status", "result", "config", "data", "versions", "wall_seconds", "error"])
def test_the_record_itself_may_be_odd(tmp_path: Path, key: str, real_records: dict[str, dict[str, Any]]) -> None:
    record = real_records["collect"]
    for number, value in enumerate(ODD):
        page = page_or_line(tmp_path / f"run{number}", changed(record, {(key,): value}))
        assert page or key in ("command", "status")
        assert UNCLEAR not in page
    for number, whole in enumerate((None, [], 3, "text", {})):
        assert page_or_line(tmp_path / f"whole{number}", whole) == ""


def test_what_is_left_out_is_said(tmp_path: Path, real_records: dict[str, dict[str, Any]]) -> None:
    told = unescape(page_or_line(tmp_path / "a", run_record("collect", [])))
    assert "left out of its record: 'result' is [], expected a mapping" in told
    odd = changed(real_records["ablate"], {("result", "rows", 0, "n"): "many"})
    told = unescape(page_or_line(tmp_path / "b", odd))
    assert "left out of its record: 'result.rows[0].n' is 'many', expected a whole number" in told
    alone = page_or_line(tmp_path / "good", real_records["ablate"])
    write_report([tmp_path / "good", tmp_path / "b"], tmp_path / "page.html")  # one bad record costs the other nothing
    assert (tmp_path / "page.html").read_text().count("<svg") == alone.count("<svg") > 0
    far = changed(real_records["ablate"], {("result", "rows", 0, "value"): 7})
    assert "left out, for its record holds values that cannot be shown" in page_or_line(tmp_path / "b", far)
    write_report([tmp_path / "good", tmp_path / "b"], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<svg") == alone.count("<svg")
    (tmp_path / "c").mkdir()
    page_or_line(tmp_path / "c/3", real_records["collect"])
    runs = ["../good", "/etc", "a\0b", "3"]
    page = page_or_line(tmp_path / "c", changed(real_records["demo"], {("result", "runs"): runs}))
    assert page.count("which does not lie in it") == 3
    assert page.count("<section") == 2


def png(width: int, height: int) -> bytes:
    """A PNG file of 67 bytes that declares any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
def test_media_that_are_none(tmp_path: Path, real_records: dict[str, dict[str, Any]]) -> None:
    run = tmp_path / "run"
    (run / "media").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (run / "media/bomb.png").write_bytes(png(30_000, 30_000))
    (run / "media/large.png").write_bytes(png(8000, 8000))
    (run / "media/link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(run / "media/pipe.png")
    with (run / "media/huge.mp4").open("wb") as file:
        file.truncate(1 << 40)
    listed = ["../secret.png", str(tmp_path / "secret.png"), "media/" + "x" * 5000 + ".png", "media/a\0.png"]
    entries = [{"path": path, "caption": ""} for path in listed]
    page = page_or_line(run, changed(real_records["evaluate"], {("result", "media"): entries}))
    assert page.count("is not a video or picture in this run") == len(listed) + 2
    for odd in (3, None, {"path": ["media"]}):
        told = page_or_line(run, changed(real_records["evaluate"], {("result", "media"): [odd]}))
        assert "left out of its record" in told
    assert page.count("is damaged") == 2
    assert "is larger than 64 MiB" in page
    assert "<img" not in page
    assert "c2VjcmV0" not in page


def test_pipes_do_not_hold_up_a_report(tmp_path: Path, real_records: dict[str, dict[str, Any]]) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a/run.json")
    with pytest.raises(UserError, match="run.json: is no regular file"):
        write_report([tmp_path / "a"], tmp_path / "page.html")
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b/events.out.tfevents.1")
    assert "</html>" in page_or_line(tmp_path / "b", real_records["collect"])


def test_a_record_is_read_as_it_is(tmp_path: Path, real_records: dict[str, dict[str, Any]]) -> None:
    for command, record in real_records.items():
        (tmp_path / "run.json").write_text(json.dumps(record))
        page = RunPage.read(tmp_path)
        assert (page.record, page.left_out, page.command) == (record, (), command)
        assert page.result == from_json(RESULTS[command], record["result"], "run.json")
