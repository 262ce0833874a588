"""A run whose parts several commands make: begun once, held for a moment, never with other settings or data."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.base import manifest, shared_run
from toolkit.base.errors import InUseError, UserError
from toolkit.base.run import Run
from toolkit.base.shared_run import PartOfRun, SharedRun, in_turn

DATA = [{"path": "data", "id": "a", "episodes": 3}]


def shared(out: Path, **config: Any) -> SharedRun:
    return SharedRun("synthesize", out, {"seed": 0, **config}, overwrite=False, resume=True)


def record(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text()))


def test_several_commands_note_what_they_read_and_one_ends_the_run(tmp_path: Path) -> None:
    out, called = tmp_path / "run", list[int]()
    for _ in range(3):
        shared(out, shard=None).note(DATA, lambda: called.append(1))
        assert not (out / manifest.LOCK).exists()
    assert len(called) == 3
    made = record(out)
    assert (made["status"], made["data"]) == ("running", DATA)
    assert len(made["code_before"]) == 0  # the same code all the time
    with pytest.raises(UserError, match="begun with seed=0, not 1"):
        shared(out, seed=1).note([], lambda: called.append(1))
    with pytest.raises(UserError, match="data: has changed since"):
        shared(out).note([{**DATA[0], "id": "b"}], lambda: called.append(1))
    assert len(called) == 3
    with Run("synthesize", out, {"seed": 0}, overwrite=False, resume=True) as run:
        assert run.record["data"] == DATA
    with pytest.raises(UserError, match="holds a finished run"):
        shared(out).note([], lambda: called.append(1))


def test_what_others_have_made_is_not_cleaned_up(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def work() -> None:
        (out / "folder").mkdir()

    shared(out).note([], work)
    assert (out / "folder").is_dir()


def test_a_part_notes_in_memory_and_refuses_other_content(tmp_path: Path) -> None:
    part = PartOfRun(tmp_path / "run", DATA)
    part.add_data("data", "a", 3)
    part.add_data("more", "b")
    assert [entry["path"] for entry in part.record["data"]] == ["data", "more"]
    with pytest.raises(UserError, match="data: has changed since"):
        part.add_data("data", "c")
    assert not (tmp_path / "run").exists()


def test_a_command_waits_for_its_turn_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared_run, "SAID_AFTER", 0.0)
    held = manifest.locked(tmp_path)
    held.__enter__()
    with pytest.raises(InUseError, match="in use by process"), in_turn(lambda: manifest.locked(tmp_path), 0.2):
        pass
    assert "; waiting" in capsys.readouterr().err
    threading.Timer(0.3, lambda: held.__exit__(None, None, None)).start()
    began = time.monotonic()
    with in_turn(lambda: manifest.locked(tmp_path)):
        assert time.monotonic() - began >= 0.2
