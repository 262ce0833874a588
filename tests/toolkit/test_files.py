"""The one door for files: whole after a kill and after a power cut, closed to what somebody else prepared."""

import ast
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.base import files, manifest, reading
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.training.checkpoint import load_checkpoint, save_checkpoint
from toolkit.training.optim import ExponentialMovingAverage

ROOT = Path(__file__).parents[2]
HOUSE = ("toolkit", "vag_core", "policies", "recipes")
FORBIDDEN = {"os": {"replace", "rename", "renames"}, "shutil": {"rmtree", "move"}}


def test_nothing_but_the_door_renames_or_removes_folders() -> None:
    """Also `Path.rename`, `Path.replace` with one argument, and these names imported by themselves.

    The generator, which knows no toolkit, publishes encoded text by itself: files of its cache, named by hashes.
    """
    doors, wrong = {ROOT / "toolkit/base/files.py", ROOT / "vag_core/backbones/text.py"}, []
    for path in (path for package in HOUSE for path in (ROOT / package).rglob("*.py")):
        if path in doors:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN:
                wrong += [where for alias in node.names if alias.name in FORBIDDEN[node.module]]
            if isinstance(node, ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                if node.attr in FORBIDDEN.get(owner, set()) or node.attr == "rmtree":
                    wrong.append(where)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                arguments = len(node.args) + len(node.keywords)
                if node.func.attr in ("rename", "replace") and arguments == 1 and not node.keywords:
                    wrong.append(where)  # str.replace takes two
    assert wrong == []


# ------------------------------------------------------------------------------------------------- a model of the disk


@dataclass
class Change:
    """One change of names: those that go, and those that come, as name -> (file number or None for a folder)."""

    folders: set[str]  # whose sync makes it last
    apply: Callable[[dict[str, int | None]], None]
    lasting: bool = False


@dataclass
class Disk:
    """What a power cut may leave: names change in order and last once their folder is synced; the content of a file
    lasts once the file is synced, and is torn before."""

    root: Path
    names: dict[str, int | None] = field(default_factory=dict)  # before all changes
    seen: dict[str, tuple[int, bytes | None]] = field(default_factory=dict)  # as the process sees it
    contents: dict[int, bytes] = field(default_factory=dict)  # of synced files
    changes: list[Change] = field(default_factory=list)
    states: list[dict[str, bytes | None]] = field(default_factory=list)

    def scan(self) -> dict[str, tuple[int, bytes | None]]:
        found: dict[str, tuple[int, bytes | None]] = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            found[name] = (path.stat().st_ino, path.read_bytes() if path.is_file() else None)
        return found

    def start(self) -> None:
        """Everything that is there lasts."""
        self.seen = self.scan()
        self.names = {name: number if data is not None else None for name, (number, data) in self.seen.items()}
        self.contents = {number: data for number, data in self.seen.values() if data is not None}

    def notice(self) -> None:
        """Changes that were not made through the door: files that were written or removed."""
        now = self.scan()
        for name in [name for name in self.seen if name not in now]:
            self.record({name}, lambda names, name=name: names.pop(name, None))
        for name, (number, data) in now.items():
            if self.seen.get(name) != (number, data):
                if data is not None and not data.startswith(self.contents.get(number, b"x" + data)):
                    self.contents.pop(number, None)  # torn until it is synced; what is added to may lose its end
                value = number if data is not None else None
                self.record({name}, lambda names, name=name, value=value: names.__setitem__(name, value))
        self.seen = now

    def record(self, touched: set[str], apply: Callable[[dict[str, int | None]], None]) -> None:
        self.changes.append(Change({str(Path(name).parent) for name in touched}, apply))
        self.cut()

    def cut(self) -> None:
        """Note what a power cut may leave now: each prefix of the changes that do not last yet."""
        waiting = [change for change in self.changes if not change.lasting]
        for count in range(len(waiting) + 1):
            taken, names = {id(change) for change in waiting[:count]}, dict(self.names)
            for change in self.changes:
                if change.lasting or id(change) in taken:
                    change.apply(names)
            self.states.append({n: None if i is None else self.contents.get(i, b"torn") for n, i in names.items()})

    def move(self, source: str, target: str, swap: bool) -> None:
        def apply(names: dict[str, int | None]) -> None:
            def below(top: str) -> dict[str, int | None]:
                return {n[len(top) :]: names.pop(n) for n in list(names) if n == top or n.startswith(f"{top}/")}

            moved, other = below(source), below(target)
            names.update({target + rest: value for rest, value in moved.items()})
            if swap:
                names.update({source + rest: value for rest, value in other.items()})

        self.record({source, target}, apply)

    def sync_folder(self, name: str) -> None:
        for change in self.changes:
            change.folders.discard(name)
            change.lasting = change.lasting or not change.folders
        self.cut()


@contextmanager
def watched(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The disk below `root` while the block changes it; the door's calls go through as they are."""
    disk = Disk(root)
    disk.start()
    real = {name: getattr(files, name) for name in ("rename", "exchange", "sync_file", "sync_folder")}

    def name(path: Path) -> str:
        return os.path.relpath(path, root)

    def moved(which: str) -> Callable[[Path, Path], None]:
        def call(one: Path, other: Path) -> None:
            disk.notice()
            disk.move(name(one), name(other), swap=which == "exchange")
            real[which](one, other)
            disk.seen = disk.scan()

        return call

    def sync_file(path: Path) -> None:
        disk.notice()
        disk.contents[path.stat().st_ino] = path.read_bytes()
        real["sync_file"](path)

    def sync_folder(path: Path) -> None:
        disk.notice()
        disk.sync_folder(name(path))
        real["sync_folder"](path)

    with monkeypatch.context() as patch:
        for which, replacement in (
            *((which, moved(which)) for which in ("rename", "exchange")),
            ("sync_file", sync_file),
            ("sync_folder", sync_folder),
        ):
            for module in (files, manifest):
                if hasattr(module, which):
                    patch.setattr(module, which, replacement)
        yield disk
    disk.notice()


def below(state: dict[str, bytes | None], top: str) -> dict[str, bytes | None]:
    """What lies under a name; folders and files."""
    return {name[len(top) :]: data for name, data in state.items() if name == top or name.startswith(f"{top}/")}


def write_folder(target: Path, text: str) -> None:
    with files.atomic_directory(target, lambda _: True) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "a").write_text(text)
        (temporary / "deep/b").write_text(2 * text)


WRITERS: dict[str, Callable[[Path, str], None]] = {
    "file": files.write_text,
    "json": lambda target, text: files.write_json(target, {"text": text}),
    "folder": write_folder,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_power_cut_leaves_the_old_content_or_the_new(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, outcomes = WRITERS[kind], []
    for text in ("old", "new"):
        before = below(_read(tmp_path), "artefact")
        with watched(tmp_path, monkeypatch) as disk:
            write(tmp_path / "artefact", text)
        after = below(_read(tmp_path), "artefact")
        left = [below(state, "artefact") for state in disk.states]
        assert all(state in (before, after) for state in left)
        assert before in left
        assert left[-1] == after
        outcomes.append(after)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["artefact"]
    assert outcomes[0] != outcomes[1]


@pytest.mark.parametrize("forgotten", ["sync_file", "sync_folder"])
def test_the_model_of_the_disk_sees_a_sync_that_is_forgotten(
    forgotten: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "artefact", "old")
    with watched(tmp_path, monkeypatch) as disk, monkeypatch.context() as patch:
        for module in (files, manifest):
            if hasattr(module, forgotten):
                patch.setattr(module, forgotten, lambda _: None)
        write_folder(tmp_path / "artefact", "new")
        disk.notice()
        ended = len(disk.states)
        disk.cut()
    after, left = below(_read(tmp_path), "artefact"), [below(state, "artefact") for state in disk.states]
    if forgotten == "sync_file":
        assert any(b"torn" in state.values() for state in left)
    else:  # the command has ended, and the old content may come back
        assert any(state != after for state in left[ended:])


def test_a_power_cut_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every instant of the second and third checkpoint, one that can be loaded is there."""
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 2)
    optimizer, average = torch.optim.AdamW(module.parameters()), ExponentialMovingAverage(module, 0.9)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "checkpoints", 10, module, optimizer, average, {})
    loaded = set()
    for step in (20, 30):
        with watched(tmp_path, monkeypatch) as disk:
            save_checkpoint(tmp_path / "checkpoints", step, module, optimizer, average, {})
        for index, state in enumerate({json.dumps(_text(state)): state for state in disk.states}.values()):
            place = tmp_path.with_name(f"{tmp_path.name}-{step}-{index}")
            _lay(state, place)
            loaded.add(load_checkpoint(place / "checkpoints", module, optimizer, average)[0])
            shutil.rmtree(place)
    assert loaded == {10, 20, 30}


def test_a_power_cut_while_overwriting_leaves_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old run, or the new one, or an unfinished one with the old one beside it."""
    out = tmp_path / "run"

    def make(text: str, **options: bool) -> None:
        with Run("collect", out, {}, **{"overwrite": False, "resume": False, **options}) as run:
            files.write_text(run.directory / "a", text)
            files.write_text(run.directory / "deep/b", text)

    make("old")
    with watched(tmp_path, monkeypatch) as disk:
        make("new", overwrite=True)
    for index, state in enumerate({json.dumps(_text(state)): state for state in disk.states}.values()):
        place = tmp_path.with_name(f"{tmp_path.name}-{index}")
        _lay(state, place)
        with Run("collect", place / "run", {}, overwrite=True, resume=False) as run:
            old = place / "run/.vag-replaced"
            kept = {path.read_text() for path in old.rglob("[ab]")}
            assert len(kept) == 1, "both files of one whole run"
            assert sorted(path.name for path in old.rglob("[ab]")) == ["a", "b"]
            files.write_text(run.directory / "c", "newest")
        assert [path.name for path in (place / "run").rglob("[abc]")] == ["c"]
        shutil.rmtree(place)


def _read(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def _text(state: dict[str, bytes | None]) -> dict[str, str | None]:
    return {name: None if data is None else data.hex() for name, data in sorted(state.items())}


def _lay(state: dict[str, bytes | None], place: Path) -> None:
    place.mkdir()
    for name, data in sorted(state.items()):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).mkdir(exist_ok=True) if data is None else (place / name).write_bytes(data)


# ------------------------------------------------------------------------------------------- whole or not at all


def fail_inside(context: Any) -> None:
    with context as temporary:
        (temporary / "x" if temporary.is_dir() else temporary).write_text("half")
        raise KeyError


@pytest.mark.parametrize("door", [files.atomic_file, files.atomic_directory])
def test_an_exception_leaves_what_was_there(door: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail_inside(door(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vag_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("mine", "file", "link"):
        with pytest.raises(UserError, match="vag"):
            fail_inside(files.atomic_directory(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with files.atomic_directory(tmp_path / "empty") as temporary:
        (temporary / "a").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "empty", "file", "link", "mine", "thesis.tex"]


def test_two_steps_where_names_cannot_be_swapped_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "artefact", "old")
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    write_folder(tmp_path / "artefact", "new")
    assert (tmp_path / "artefact/a").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artefact"]


# ------------------------------------------------------------------------------------ files that somebody else wrote


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "holds list; expected dict"),
        (b"null", "holds NoneType; expected dict"),
        (b'{"a": ' * 70 + b"1" + b"}" * 70, "nested more than 64 deep"),
        (b'{"a": ' * 200_000 + b"1" + b"}" * 200_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "has 2009 bytes; at most 1000 are read"),
    ],
)
def test_json_of_somebody_else_is_refused_in_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        reading.read_json(path, most_bytes=1000 if len(content) == 2009 else reading.MOST_JSON_BYTES)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "folder", "loop", "missing", "a\0b", "x" * 5000, "/dev/zero"):
        with pytest.raises(UserError):
            reading.read_json(tmp_path / name)


# ------------------------------------------------------------------------------------- folders that somebody prepared


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file of the user's outside of the run; it stays as it is."""
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


def test_a_link_under_a_temporary_name_is_not_written_through(tmp_path: Path, victim: Path) -> None:
    manifest.partial_name(tmp_path / "new").symlink_to(victim)
    files.write_text(tmp_path / "new", "new")
    assert (tmp_path / "new").read_text() == "new"
    assert not (tmp_path / "new").is_symlink()


def test_a_link_under_the_name_of_a_scratch_folder_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    manifest.partial_name(tmp_path / "spool").symlink_to(tmp_path / "mine")
    with files.scratch_folder(tmp_path / "spool", kept=True) as folder:
        (folder / "made").touch()
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("name", [manifest.LOCK, manifest.MANIFEST])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_run_is_refused_whose_own_files_are_something_else(
    tmp_path: Path, victim: Path, name: str, kind: str
) -> None:
    with Run("collect", tmp_path / "out", {}, overwrite=False, resume=False) as run:
        files.write_text(run.directory / "a", "a")
    path = tmp_path / "out" / name
    path.unlink(missing_ok=True)
    {"link": lambda: path.symlink_to(victim), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    record = json.loads((tmp_path / "out/run.json").read_text())
    (tmp_path / "out/run.json").write_text(json.dumps({**record, "status": "failed"}))
    with (
        pytest.raises(UserError, match=f"{name}: is (no|a link)"),
        Run("collect", tmp_path / "out", {}, overwrite=False, resume=True),
    ):
        pass


def test_a_link_inside_of_a_run_does_not_lead_out_of_it(tmp_path: Path) -> None:
    """Neither what is written nor what is removed; a run that is itself reached through a link is another thing."""
    other = tmp_path / "other"
    (other / "step_000001").mkdir(parents=True)
    (other / "step_000001/model").write_text("precious")
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/checkpoints").symlink_to(other)
    checkpoints = tmp_path / "out/checkpoints"

    def make_folder() -> None:
        with files.atomic_directory(checkpoints / "step_000002"):
            pass

    with manifest.recording(tmp_path / "out"):
        files.write_text(tmp_path / "out/fine", "fine")
        for change in (
            lambda: files.write_text(checkpoints / "a", "a"),
            make_folder,
            lambda: files.discard(checkpoints / "step_000001"),
            lambda: manifest.note(checkpoints / "deep/b"),
        ):
            with pytest.raises(UserError, match="a link leads out of"):
                change()
    assert [path.name for path in other.rglob("*")] == ["step_000001", "model"]
    assert (tmp_path / "disk/fine").read_text() == "fine"
