"""The output directory of a command: what is refused, kept, replaced and removed, and what is never touched."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.base import files, manifest, provenance
from toolkit.base.errors import UserError
from toolkit.base.record import read_record
from toolkit.base.run import REPLACED, Run
from toolkit.reporting.results import ExportResult


def start(out: Path, command: str = "collect", config: dict[str, Any] | None = None, **options: bool) -> Run:
    return Run(command, out, config or {}, **{"overwrite": False, "resume": False, **options})


def make(run: Run, *names: str, text: str = "made") -> None:
    for name in names:
        files.write_text(run.directory / name, text)


def fail(run: Run, *names: str, error: BaseException | None = None) -> None:
    make(run, *names)
    (run.directory / "media").mkdir(exist_ok=True)  # an empty folder is nothing
    raise error or KeyError


def finish(out: Path, *names: str, text: str = "made", **options: Any) -> None:
    with start(out, **options) as run:
        make(run, *names, text=text)
        run.note_result({"text": text})


def tree(folder: Path) -> dict[str, str]:
    """Name -> content of all files, but the lists that change with time."""
    return {
        str(path.relative_to(folder)): "" if path.name in ("run.json", manifest.MANIFEST) else path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_command_that_fails_before_it_has_made_anything_leaves_nothing(tmp_path: Path) -> None:
    for error in (UserError("typo"), KeyError("bug")):
        with pytest.raises(type(error)), start(tmp_path / "deep/er/run") as run:
            fail(run, error=error)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError), start(tmp_path / "mine"):
        raise UserError("typo")
    assert (tmp_path / "mine").is_dir()


def test_finished_and_unfinished_runs_are_protected(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyError), start(out) as run:
        fail(run, "half")
    assert read_record(out)["status"] == "failed"
    with pytest.raises(UserError, match="unfinished run; use resume=true"), start(out):
        pass
    with start(out, resume=True) as run:
        run.note_result({"number": 3})
    record = read_record(out)
    assert (record["status"], record["result"]) == ("finished", {"number": 3})
    assert record["versions"]["torch"]
    for options in ({}, {"resume": True}):
        with pytest.raises(UserError, match="finished run; use overwrite=true"), start(out, **options):
            pass
    with pytest.raises(UserError, match="give one of them"), start(out, overwrite=True, resume=True):
        pass
    assert sorted(path.name for path in out.iterdir()) == [manifest.MANIFEST, "half", "run.json"]


def test_resume_needs_the_same_settings(tmp_path: Path) -> None:
    settings = {"tasks": ["push"], "optim": {"steps": 3}}
    with pytest.raises(KeyError), start(tmp_path, config=settings) as run:
        fail(run, "half")
    for change in ({"tasks": ["push", "reach"]}, {"optim": {"steps": 4}}):
        with pytest.raises(UserError, match=r"was begun with (tasks|optim\.steps)="):
            start(tmp_path, config={**settings, **change}, resume=True).__enter__()
    with pytest.raises(UserError, match="holds a run of 'vag collect'"):
        start(tmp_path, "replay", settings, resume=True).__enter__()
    with start(tmp_path, config={**settings, "strict": True}, resume=True):
        pass


# ------------------------------------------------------------------------------------------------------- overwrite


def test_settings_that_are_newer_than_a_run_count_as_their_defaults(tmp_path: Path) -> None:
    with pytest.raises(KeyError), start(tmp_path / "run", config={"seed": 0}) as begun:
        fail(begun, "part")
    options: dict[str, Any] = {"overwrite": False, "resume": True, "defaults": {"seed": 0, "new": {"size": 1}}}
    with pytest.raises(UserError, match=r"was begun with new\.size=1, not 2"):
        Run("collect", tmp_path / "run", {"seed": 0, "new": {"size": 2}}, **options).__enter__()
    with Run("collect", tmp_path / "run", {"seed": 0, "new": {"size": 1}}, **options) as run:
        make(run, "rest")


def test_overwriting_removes_what_vag_wrote_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    finish(out, "dataset/a", "b", text="old")
    mine = {"notes.md": "mine", "dataset/labels.csv": "mine", "deep/er/c": "mine", ".hidden": "mine"}
    for name, text in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    finish(out, "b", "d", text="new", overwrite=True)
    assert tree(out) == {**mine, "b": "new", "d": "new", "run.json": "", manifest.MANIFEST: ""}
    assert read_record(out)["result"] == {"text": "new"}


def test_what_is_overwritten_is_kept_until_the_new_run_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "run"
    finish(out, "a", "dataset/b", text="old")
    before = tree(out)
    for error in (UserError("typo"), KeyboardInterrupt()):  # before anything was made: as if nothing had been asked
        with pytest.raises(type(error)), start(out, overwrite=True):
            raise error
        assert tree(out) == before
        assert read_record(out)["result"] == {"text": "old"}
    for attempt in range(3):  # overwriting the unfinished run does not take the finished one along
        with pytest.raises(KeyError), start(out, overwrite=True) as run:
            fail(run, "a", f"attempt{attempt}")
        kept = out / REPLACED
        assert (kept / "a").read_text() == "old"
        assert (kept / "dataset/b").read_text() == "old"
        assert read_record(kept)["result"] == {"text": "old"}
        assert not (out / f"attempt{attempt - 1}").exists()
    with start(out, resume=True):
        pass
    assert sorted(tree(out)) == sorted([manifest.MANIFEST, "a", "attempt2", "run.json"])


def test_a_users_file_beside_what_is_replaced_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    finish(out, "a", "deep/b", text="old")
    with pytest.raises(KeyError), start(out, overwrite=True) as run:
        fail(run, "a")
    mine = out / REPLACED / "deep/notes"
    mine.write_text("mine")
    with start(out, resume=True):
        pass
    assert [path.name for path in manifest.files_below(out / REPLACED)] == ["notes"]
    assert f"{mine}: not written by vag" in capsys.readouterr().err
    with pytest.raises(KeyError), start(out, overwrite=True) as run:  # and is no run that could come back
        fail(run, "c")
    assert (out / REPLACED / "a").exists()
    finish(out, "d", overwrite=True)
    assert sorted(tree(out)) == [manifest.MANIFEST, f"{REPLACED}/deep/notes", "d", "run.json"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected dict"),
        ('{"runner": "airflow", "state": "done"}', "no 'command'"),
        ('{"command": "collect", "status": "finished", "wall_seconds": "long"}', "wall_seconds"),
        ('{"command": "replay", "status": "finished"}', "holds a run of 'vag replay'"),
        ('{"command": "collect", "status": "finished"}', "no list of the files that it wrote"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "JSON"),
    ],
)
def test_only_a_readable_record_of_the_same_command_is_overwritten(tmp_path: Path, record: str, reason: str) -> None:
    (tmp_path / "run.json").write_text(record)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=reason):
        start(tmp_path, overwrite=True).__enter__()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"run.json": record, "thesis.tex": "mine"}


def test_a_folder_without_a_record_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"is not empty \('letter.txt'\)"):
            start(tmp_path, **options).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_manifest_names_nothing_outside_of_its_run(tmp_path: Path) -> None:
    out, precious = tmp_path / "run", tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/f").write_text("mine")
    finish(out, "a")
    (out / "link").symlink_to(tmp_path / "folder")
    (out / "to_file").symlink_to(precious)
    names = [
        "../precious",
        str(precious),
        "link/f",
        "to_file",
        "x/../../precious",
        "link/",
        "../folder/",
        3,
        None,
        "\0",
    ]
    with (out / manifest.MANIFEST).open("a") as file:
        file.write("".join(f"{json.dumps(name)}\n" for name in names) + '"unfinished li')
    finish(out, overwrite=True)
    assert (precious.read_text(), (tmp_path / "folder/f").read_text()) == ("mine", "mine")
    assert not (out / "a").exists()


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_what_a_link_in_place_of_the_replaced_run_leads_to_is_left_alone(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    finish(tmp_path / "other", "a")
    finish(tmp_path / "run", "a")
    (tmp_path / "run" / REPLACED).symlink_to(tmp_path / "other")
    before = tree(tmp_path / "other")
    with pytest.raises(UserError, match="is a link; expected a folder"):
        start(tmp_path / "run", **options).__enter__()
    assert tree(tmp_path / "other") == before


def test_a_half_line_of_a_manifest_spoils_no_other(tmp_path: Path) -> None:
    with pytest.raises(KeyError), start(tmp_path / "run") as run:
        fail(run, "a")
    with (tmp_path / "run" / manifest.MANIFEST).open("a") as file:
        file.write('"unfinished li')
    with start(tmp_path / "run", resume=True) as run:
        make(run, "b")
    finish(tmp_path / "run", "c", overwrite=True)
    assert sorted(tree(tmp_path / "run")) == [manifest.MANIFEST, "c", "run.json"]


def test_a_refused_command_removes_nothing(tmp_path: Path) -> None:
    finish(tmp_path / "run", "a")
    (tmp_path / "run" / REPLACED).mkdir()
    (tmp_path / "run" / REPLACED / "b").write_text("old")
    before = tree(tmp_path)
    for command, options in (("collect", {}), ("collect", {"resume": True}), ("replay", {"overwrite": True})):
        with pytest.raises(UserError):
            start(tmp_path / "run", command, **options).__enter__()
    assert tree(tmp_path) == before


def test_runs_inside_of_a_run_are_replaced_with_it_and_others_are_not(tmp_path: Path) -> None:
    def outer(**options: bool) -> None:
        with start(tmp_path / "demo", "demo", **options):
            for name in ("collect", "stages/train"):
                manifest.note(tmp_path / "demo" / name, run=True)
                finish(tmp_path / "demo" / name, "made")

    outer()
    finish(tmp_path / "demo/mine", "made")
    (tmp_path / "demo/collect/notes").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"demo/collect, holds 'notes', which vag did not write"):
        outer(overwrite=True)
    assert tree(tmp_path) == before
    (tmp_path / "demo/collect/notes").rename(tmp_path / "demo/notes")
    outer(overwrite=True)
    assert (tmp_path / "demo/notes").read_text() == "mine"
    assert (tmp_path / "demo/mine/made").exists()
    assert read_record(tmp_path / "demo/stages/train")["status"] == "finished"
    assert not (tmp_path / "demo" / REPLACED).exists()


# ----------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    "config",
    [
        {"runs": ["{out}"]},
        {"runs": ["{out}/../run"]},
        {"dataset": "{out}/dataset"},
        {"real": ["a", "{out}/dataset"]},
        {"checkpoints": {"ours": ["{out}/dataset"]}},
        {"train_generator": ["tokenizer_from={out}/dataset", "optim.steps=3"]},
        {"pretrain": ["real=[{out}/dataset,b]"]},
        {"dataset": "{link}/dataset"},
    ],
)
def test_inputs_inside_of_out_are_refused_whatever_the_options(tmp_path: Path, config: dict[str, Any]) -> None:
    out = tmp_path / "run"
    finish(out, "dataset/a")
    (tmp_path / "link").symlink_to(out)
    filled = json.loads(json.dumps(config).replace("{out}", str(out)).replace("{link}", str(tmp_path / "link")))
    before = tree(out)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match=r"names '.*', which lies in it; choose another out="):
            start(out, config=filled, **options).__enter__()
    assert tree(out) == before


def test_odd_places_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "file/below", "dangling", "dangling/below", "pipe"):
        with pytest.raises(UserError, match="expected a directory"):
            start(tmp_path / name, overwrite=True).__enter__()
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    finish(tmp_path / "link", "a", text="old")
    finish(tmp_path / "link", "a", text="new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk/a").read_text() == "new"


# ------------------------------------------------------------------------------------------------- what is recorded


def test_data_and_code_are_in_the_record_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(run: Run, identity: str) -> None:
        run.add_data("here", identity, 5)
        assert read_record(tmp_path)["data"] == [{"path": "here", "id": identity, "episodes": 5}]
        fail(run, "half")

    with pytest.raises(KeyError), start(tmp_path) as run:
        work(run, "aaaa")
    first = read_record(tmp_path)
    assert (first["git_sha"], first["versions"]) == (provenance.git_sha(), provenance.versions())
    changed = r"here: has changed since .* \(aaaa, now bbbb\)"
    with pytest.raises(UserError, match=changed), start(tmp_path, resume=True) as run:
        work(run, "bbbb")
    assert (tmp_path / "half").exists()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("toolkit.base.run.git_sha", lambda: "0123456789ab")
    monkeypatch.setattr("toolkit.base.run.versions", lambda: {**first["versions"], "torch": "9.9"})
    with pytest.raises(UserError, match=r"\(commit .*, now 0123456789ab, torch .*, now 9\.9\); strict"):
        start(tmp_path, resume=True, strict=True).__enter__()
    with start(tmp_path, resume=True) as run:
        run.add_data("here", "aaaa", 5)
    assert "vag: warning:" in capsys.readouterr().err
    record = read_record(tmp_path)
    assert (record["git_sha"], record["data"][0]["id"]) == ("0123456789ab", "aaaa")
    assert record["code_before"][0]["git_sha"] == first["git_sha"]


def test_what_a_record_says_of_its_code_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), start(tmp_path) as run:
        fail(run, "half")
    files.write_json(tmp_path / "run.json", {**read_record(tmp_path), "versions": {"torch": "a\nb\x1b[31m"}})
    with start(tmp_path, resume=True):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vag: warning: ")
    assert r"torch a b\x1b[31m, now" in line


def test_a_result_with_numbers_that_are_not_finite_is_refused(tmp_path: Path) -> None:
    result = ExportResult(episodes=1, frames=2, fps=20, cameras={}, megabytes=float("nan"), file="dataset.hdf5")
    with pytest.raises(UserError, match=r"'result.megabytes' is None, expected a finite number; is a checkpoint or"):
        start(tmp_path / "run").note_result(result)
    with pytest.raises(UserError, match="a.json: would hold a number that is not finite"):
        files.write_json(tmp_path / "a.json", {"a": [float("inf")]})
    assert not list(tmp_path.iterdir())


def test_one_process_holds_a_directory(tmp_path: Path) -> None:
    code = (
        "import sys, time; from toolkit.base.run import Run\n"
        "with Run('collect', sys.argv[1], {}, overwrite=False, resume=False):\n"
        "    print('in', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
                start(tmp_path / "run", **options).__enter__()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with start(tmp_path / "run", resume=True):  # a dead process holds nothing
        pass
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [manifest.MANIFEST, "run.json"]


# ------------------------------------------------------------------------------------------- killed at every step


class Killed(BaseException):
    """Stands for SIGKILL: nothing cleans up after it."""


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> bool:
    """Run `work` and stop for good before its `count`-th change of the disk; True if it got that far."""
    left = [count]

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def change(*arguments: Any, **options: Any) -> None:
            if left[0] <= 0:
                raise Killed
            left[0] -= 1
            real(*arguments, **options)

        return change

    with monkeypatch.context() as patch:
        for where, name in ((files, "rename"), (files, "exchange"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
            patch.setattr(where, name, counted(getattr(where, name)))
        patch.setattr(Run, "_stop", lambda *_: None)
        try:
            work()
        except Killed:
            manifest._open.clear()
            return True
    return False


def test_a_kill_at_any_change_of_the_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run is overwritten and killed; then the command is repeated, or the new run goes on."""
    wanted = {"a": "new", "new/b": "new", "mine": "mine", "run.json": "", manifest.MANIFEST: ""}

    def work(out: Path, **options: bool) -> None:
        with start(out, **options) as run:
            if not run.complete:
                make(run, "a", "new/b", "checkpoints/c", text="new")
                run.note_result({"text": "new"})
                run.remove_when_finished(run.directory / "checkpoints")

    count, reached = 0, True
    while reached:
        for way in ("overwrite", "resume"):
            out = tmp_path / f"{way}{count}"
            finish(out, "a", "old/b", text="old")
            (out / "mine").write_text("mine")
            reached = killed_after(count, monkeypatch, lambda out=out: work(out, overwrite=True))
            (out / manifest.LOCK).unlink(missing_ok=True)  # in truth the system lets go of it
            texts = {path.read_text() for path in out.rglob("a")}
            assert texts & {"old", "new"}, "one of the two runs is whole, or was never begun"
            if reached:
                record = read_record(out) if (out / "run.json").exists() else None
                if way == "resume" and record is not None and record["status"] in ("running", "finishing"):
                    work(out, resume=True)
                else:
                    work(out, overwrite=True)
            assert tree(out) == wanted, (way, count)
        count += 1
    assert count > 20


def test_the_lock_of_a_killed_stage_is_no_file_of_the_users(tmp_path: Path) -> None:
    def demo(**options: Any) -> Run:
        return start(tmp_path / "demo", "demo", **options)

    def stage(run: Run) -> None:
        manifest.note(run.directory / "stage", run=True)
        finish(run.directory / "stage", "model", resume=True)

    with demo() as run:
        stage(run)
    lock = tmp_path / "demo/stage" / manifest.LOCK
    lock.write_text("1234 on a machine")  # as a SIGKILL leaves it
    with demo(overwrite=True) as run:
        stage(run)
    assert not lock.exists()
    with manifest.locked(lock.parent), pytest.raises(UserError, match=f"stage: in use by process {os.getpid()}"):
        demo(overwrite=True).__enter__()
    assert (tmp_path / "demo/stage/model").read_text() == "made"


@pytest.mark.parametrize("name", ["mine", "link/mine", "link", "../other/mine", "a\0b", "a" * 5000, "folder"])
def test_what_a_record_lists_as_left_over_is_removed_if_vag_wrote_it_alone(tmp_path: Path, name: str) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    with pytest.raises(KeyError), start(out) as run:
        fail(run, "checkpoints/step")
    (out / "folder").mkdir()
    for place in (out / "mine", other / "mine", out / "folder/mine"):
        place.write_text("mine")
    (out / "link").symlink_to(other)
    record = json.loads((out / "run.json").read_text())
    files.write_json(out / "run.json", {**record, "status": "finishing", "leftovers": [name, "checkpoints"]})
    with start(out, resume=True) as run:
        assert run.complete
    assert read_record(out)["status"] == "finished"
    assert not (out / "checkpoints").exists()
    assert [path.read_text() for path in (out / "mine", out / "link/mine", out / "folder/mine")] == ["mine"] * 3


@pytest.mark.parametrize(
    "values",
    [
        {"leftovers": [5]},
        {"leftovers": None},
        {"leftovers": {}},
        {"code_before": 5},
        {"code_before": {"git_sha": "x"}},
        {"wall_seconds": 10**400},
    ],
)
def test_odd_values_in_a_record_are_refused_in_one_line(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(KeyError), start(tmp_path / "run") as run:
        fail(run, "model")
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({**record, "status": "finishing", **values}))
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=rf"run\.json: damaged \('{next(iter(values))}'"):
            start(tmp_path / "run", **options).__enter__()
    assert (tmp_path / "run/model").exists()


@pytest.mark.parametrize("name", [manifest.LOCK, manifest.MANIFEST])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_stands_in_the_place_of_vags_own_files_is_not_written_to(tmp_path: Path, name: str, kind: str) -> None:
    """A link in a run from somebody else would lead to a file of the user's, and a pipe waits for ever."""
    with pytest.raises(KeyError), start(tmp_path / "run") as run:
        fail(run, "model")
    place, mine = tmp_path / "run" / name, tmp_path / "mine"
    place.unlink(missing_ok=True)
    mine.write_text("mine")
    {"link": lambda: place.symlink_to(mine), "pipe": lambda: os.mkfifo(place), "folder": place.mkdir}[kind]()
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=rf"{name}: is |no list of the files"):
            start(tmp_path / "run", **options).__enter__()
    assert mine.read_text() == "mine"
    assert (tmp_path / "run/model").exists()


def test_a_manifest_with_names_that_no_file_can_have(tmp_path: Path) -> None:
    finish(tmp_path / "run", "model")
    with (tmp_path / "run" / manifest.MANIFEST).open("a") as file:
        file.writelines(json.dumps(name) + "\n" for name in ("a" * 5000, "a/" * 3000, "b" * 250, "\ud800", "\ud800/"))
    finish(tmp_path / "run", "model", text="new", overwrite=True)
    assert (tmp_path / "run/model").read_text() == "new"


def test_a_tilde_that_the_shell_left_is_not_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in ("~", "~/runs", "~somebody/runs"):
        with pytest.raises(UserError, match=r"not your home; write \$HOME"):
            start(Path(out)).__enter__()
    finish(Path("./deep/~"), "model")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_disk_that_is_full_at_the_first_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    finish(tmp_path / "old", "model")
    before = tree(tmp_path)
    monkeypatch.setattr("toolkit.base.run.write_json", full)
    for out, options in (("new", {}), ("old", {"overwrite": True})):
        with pytest.raises(OSError, match="No space"):
            start(tmp_path / out, **options).__enter__()
        assert tree(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_run_goes_on_in_as_many_processes_as_it_was_begun_in(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), start(tmp_path / "run"):
        raise KeyboardInterrupt
    record = read_record(tmp_path / "run")
    assert record["processes"] == 1
    files.write_json(tmp_path / "run/run.json", {**record, "processes": 2})
    with pytest.raises(UserError, match="was begun in 2 processes, not 1; resume with as many"):
        start(tmp_path / "run", resume=True).__enter__()
