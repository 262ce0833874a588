"""The output directory of a command and its `run.json`: what ran, on what, with which result.

A directory belongs to one process at a time (a lock), and vag removes only what its manifest lists: a user's own
files stay where they are, whatever `overwrite` says. Where a command is started in several processes the main one has
the `Run`, the others a `FollowedRun` of the same directory, which writes nothing (`followed_run`).
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import is_dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from toolkit.base import files, manifest
from toolkit.base.errors import UserError, warn
from toolkit.base.files import write_json
from toolkit.base.processes import processes
from toolkit.base.provenance import git_sha, hardware, versions
from toolkit.base.record import RECORD, leaves, read_record
from toolkit.base.typed_json import MisfitError, read_as, to_json

# The run is the same whatever they are.
NOT_COMPARED = (
    *("out", "overwrite", "resume", "strict", "runtime.threads", "runtime.tracker", "workers", "shard"),
    "shard_workers",
)


def is_compared(key: str) -> bool:
    """Whether a run can go on only with the same value of a setting."""
    return key not in NOT_COMPARED and not key.startswith("engine.")


REPLACED = ".vag-replaced"  # folder inside of `out`: the run that is overwritten, until the new one is complete
OWN = {RECORD, manifest.MANIFEST, manifest.LOCK, REPLACED, f".{RECORD}{manifest.PARTIAL}"}


class Run:
    """Context manager around one command.

    Refuses a finished directory unless `overwrite`, and an unfinished one unless `resume` or `overwrite`.
    An `extendable` run is made of others that check themselves: with `resume` it goes on with other settings too.
    defaults: of settings that are newer than an unfinished run that goes on.
    `overwrite` asks for a readable record of the same command; what its manifest lists is kept in `.vag-replaced`
    until the new run is finished, and comes back if that ends before it has made anything.
    `run.json` says "running" inside the block, "finished" after it, "failed" or "interrupted" after an exception; a
    command that fails before it has made anything leaves nothing, a `stage` of another command its record. Data,
    checkpoints, commit and versions are noted before anything is made of them. `resume` refuses other data; of another
    commit it warns, with `strict` it refuses.
    """

    def __init__(
        self,
        command: str,
        out: str | Path | None,
        config: dict[str, Any],
        *,
        overwrite: bool,
        resume: bool,
        strict: bool = False,
        extendable: bool = False,
        stage: bool = False,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        self.directory = Path(out) if out else Path("outputs") / command.replace(" ", "-") / stamp
        self.overwrite, self.resume, self.strict, self.extendable = overwrite, resume, strict, extendable
        self.stage, self.defaults = stage, dict(leaves(defaults or {}))
        self.record: dict[str, Any] = {
            "command": command,
            "status": "running",
            "config": config,
            "git_sha": git_sha(),
            "versions": versions(),
            "hardware": hardware(),
            "processes": processes().size,
            "seed": config.get("seed"),
            "data": [],
            "started": datetime.now().isoformat(timespec="seconds"),
            "wall_seconds": 0.0,
            "result": {},
        }
        self.complete = False  # everything is made; a killed process had only left something to remove
        self._leftovers: list[Path] = []
        self._held = ExitStack()
        self._created: list[Path] = []

    # ------------------------------------------------------------------------------------------------- begin

    def __enter__(self) -> Self:
        if self.overwrite and self.resume:
            raise UserError("overwrite=true starts again and resume=true goes on; give one of them")
        self._check_place()
        check_inputs(self.directory, self.record["config"])
        self._created = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._held.enter_context(manifest.locked(self.directory))
            self._begin()
            told = {"directory": str(self.directory), "complete": self.complete, "result": self.record["result"]}
            processes().from_main(told)
        except BaseException:
            self._leave()
            raise
        return self

    def _check_place(self) -> None:
        if str(self.directory).startswith("~"):  # a shell replaces it at the start of a word only
            raise UserError(
                f"out={self.directory}: would be a folder of the name '{self.directory.parts[0]}' here, not your home; "
                "write $HOME, or ./~ if you mean to"
            )
        for path in (self.directory, *self.directory.parents):
            if path.is_symlink() and not path.exists():
                raise UserError(f"out={self.directory}: {path} is a link that leads nowhere; expected a directory")
            if path.exists() and not path.is_dir():
                raise UserError(f"out={self.directory}: is a file, or lies below one; expected a directory")

    def _begin(self) -> None:
        path = self.directory / RECORD
        if (self.directory / REPLACED).is_symlink():
            raise UserError(f"{self.directory / REPLACED}: is a link; expected a folder that vag wrote")
        self._undo_replacement()
        earlier = read_record(self.directory) if path.exists() else None
        if earlier is None and (others := [p.name for p in self.directory.iterdir() if p.name not in OWN]):
            raise UserError(
                f"out={self.directory}: is not empty ('{min(others)}') and holds no {RECORD}; choose another out="
            )
        if earlier is not None:
            self._check_unfinished(earlier) if not self.overwrite else self._check_same_command(earlier)
        if earlier is not None and earlier["status"] in ("finishing", "finished"):  # and so what it replaced has served
            self._drop_replaced()
        if earlier is not None and self.overwrite:
            self._set_aside()
            earlier = None
        self.started, self._previous = time.perf_counter(), 0.0
        if earlier is not None:
            self._go_on(earlier)
        self._held.enter_context(manifest.recording(self.directory))
        try:
            self.write()
        except BaseException:  # a full disk: nothing has begun
            if earlier is None:
                files.remove_files([self.directory / manifest.MANIFEST], self.directory)
                self._undo_replacement()
            raise

    def _check_same_command(self, earlier: dict[str, Any]) -> None:
        if earlier["command"] != self.record["command"]:
            raise UserError(f"out={self.directory}: holds a run of 'vag {earlier['command']}'; choose another out=")

    def _check_unfinished(self, earlier: dict[str, Any]) -> None:
        """An unfinished run may go on, with the command and config it was begun with."""
        extended = self.resume and self.extendable
        if earlier["status"] == "finished" and not extended:
            hint = "resume=true to extend it, overwrite=true" if self.extendable else "overwrite=true"
            raise UserError(f"out={self.directory}: holds a finished run; use {hint} or another out=")
        if not self.resume:
            raise UserError(
                f"out={self.directory}: holds an unfinished run; use resume=true to go on or overwrite=true to restart"
            )
        if earlier["status"] == "overwritten":
            raise UserError(f"out={self.directory}: was being overwritten; go on with that, overwrite=true")
        self._check_same_command(earlier)
        if not extended:
            before, now = (dict(leaves(record.get("config") or {})) for record in (earlier, self.record))
            for key in filter(is_compared, {**before, **now}):
                begun = before[key] if key in before else self.defaults.get(key)  # a setting that is newer than the run
                if begun != now.get(key):
                    raise UserError(
                        f"out={self.directory}: was begun with {key}={begun}, not {now.get(key)}; "
                        "resume with the same settings, or use overwrite=true"
                    )
        if earlier["processes"] != self.record["processes"]:  # which make the batch of a step
            raise UserError(
                f"out={self.directory}: was begun in {earlier['processes']} processes, not {self.record['processes']}; "
                "resume with as many, or use overwrite=true"
            )
        self._compare_code(earlier)

    def _compare_code(self, earlier: dict[str, Any]) -> None:
        """Say that a run goes on with other code than it was begun with, or refuse that if it is to be `strict`."""
        before, now = (
            {"commit": record.get("git_sha"), **(record.get("versions") or {})} for record in (earlier, self.record)
        )
        changed = sorted(key for key in {**before, **now} if before.get(key) != now.get(key))
        if changed:
            listed = ", ".join(f"{key} {before.get(key)}, now {now.get(key)}" for key in changed)
            text = f"out={self.directory}: was begun with other code ({listed})"
            if self.strict:
                raise UserError(f"{text}; strict=true refuses that. Use that code, or overwrite=true")
            warn(f"{text}; it goes on with the code of now")

    def _go_on(self, earlier: dict[str, Any]) -> None:
        """Keep what the record of an unfinished run says."""
        self._previous = earlier["wall_seconds"]
        self.record["data"] = earlier["data"]
        self.record["code_before"] = [
            *earlier.get("code_before", []),
            {key: earlier.get(key) for key in ("git_sha", "versions", "started")},
        ]
        if earlier["status"] == "finishing":
            self.complete = True
            self.record["result"] = earlier["result"]
            self.record["leftovers"] = earlier.get("leftovers", [])

    # --------------------------------------------------------------------------------------------- overwrite

    def _set_aside(self) -> None:
        """Move what the manifest lists into a folder of its own. The record goes first and comes back last."""
        aside, record = self.directory / REPLACED, self.directory / RECORD
        manifest.check_free(self.directory)
        listed = manifest.written_files(self.directory)
        if self.directory / manifest.MANIFEST not in listed:
            raise UserError(
                f"out={self.directory}: its run has no list of the files that it wrote (by an earlier version?), so "
                "overwrite=true cannot tell them from yours; delete it, or choose another out="
            )
        for run in manifest.runs_inside(self.directory):
            if foreign := [path for path in manifest.files_below(run) if path not in listed]:
                raise UserError(
                    f"out={self.directory}: a run in it, {run}, holds '{foreign[0].name}', which vag did not write; "
                    "move it away or choose another out="
                )
        if self._replaces:  # overwritten twice: what the first one replaced is worth keeping, not its unfinished heir
            write_json(record, {**read_record(self.directory), "status": "overwritten"})
            files.remove_files([path for path in listed if path != record], self.directory)
            record.unlink()
            return
        aside.mkdir(exist_ok=True)
        files.move_files([record, *(path for path in listed if path != record)], self.directory, aside)

    def _undo_replacement(self) -> None:
        """Where a run is set aside and none has begun in its stead, put everything back."""
        aside, record = self.directory / REPLACED, self.directory / RECORD
        if not self._replaces or record.exists():
            return
        if (aside / manifest.MANIFEST).exists():  # the one here is of a run that had not begun
            (self.directory / manifest.MANIFEST).unlink(missing_ok=True)
        found = [path for path in manifest.files_below(aside) if path != aside / RECORD]
        files.move_files([*found, aside / RECORD], aside, self.directory)
        with suppress(OSError):
            aside.rmdir()

    def _drop_replaced(self) -> None:
        """Remove the run that was replaced: in one step, or file by file where some are the user's."""
        aside = self.directory / REPLACED
        listed = set(manifest.written_files(aside)) if aside.is_dir() else set()
        if foreign := [path for path in manifest.files_below(aside) if path not in listed]:
            files.remove_files(
                sorted(listed, key=lambda path: (path.name == manifest.MANIFEST, -len(path.parts))), aside
            )
            files.remove_empty_folders(aside)
            print(f"vag: {foreign[0]}: not written by vag, so it stays there", file=sys.stderr)
        else:
            files.discard(aside, everything=True)

    # --------------------------------------------------------------------------------------------------- end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._end()
            else:
                self._stop(error)
        finally:
            self._leave()

    def _end(self) -> None:
        try:
            processes().wait()  # others may still read what goes now
        except BaseException as error:
            self._stop(error)
            raise
        self._finish()
        processes().wait()  # whether that went well decides on the exit code of all

    def _finish(self) -> None:
        """Everything is made: say so, remove what has served, and only then be finished."""
        leftovers = [os.path.relpath(path, self.directory) for path in self._leftovers]
        self.record.update(status="finishing", leftovers=[*self.record.get("leftovers", []), *leftovers])
        self.write()
        for name in self.record.pop("leftovers"):
            if manifest.leads_inside(self.directory, name):
                files.discard(self.directory / name)
        self._drop_replaced()
        self.record["status"] = "finished"
        self.write()

    def _stop(self, error: BaseException | None) -> None:
        made = set(manifest.written_files(self.directory)) - {self.directory / name for name in OWN}
        interrupted = isinstance(error, KeyboardInterrupt)
        if not made and not self.stage and (not interrupted or self._replaces):
            files.remove_files([self.directory / name for name in (manifest.MANIFEST, RECORD)], self.directory)
            self._undo_replacement()
            return
        self.record["status"] = "interrupted" if interrupted else "failed"
        told = processes().failure()  # a process that was left alone knows only that
        self.record["error"] = told.message if told else str(error) or type(error).__name__
        if self._replaces:
            print(
                f"vag: {self.directory}: what it is to replace is kept in {self.directory / REPLACED} until it is "
                "finished",
                file=sys.stderr,
            )
        with suppress(OSError):  # a full disk: the first error is the one to tell
            self.write()

    def _leave(self) -> None:
        """Give the directory free; if nothing is in it and it was not there before, it goes."""
        self._held.close()
        if self.directory in self._created:
            files.remove_empty_folders(self.directory)
        for path in self._created[1:]:
            with suppress(OSError):
                path.rmdir()

    # ---------------------------------------------------------------------------------------------- contents

    def write(self) -> None:
        self.record["wall_seconds"] = round(self._previous + time.perf_counter() - self.started, 2)
        write_json(self.directory / RECORD, self.record)

    def add_data(self, path: str | Path, identity: str, episodes: int | None = None) -> None:
        """Note a dataset or checkpoint (without episodes) that is read, at once.

        Raises UserError if the run was begun with other content at that path.
        """
        entry = {"path": str(path), "id": identity, "episodes": episodes}
        for earlier in self.record["data"]:
            if earlier["path"] == entry["path"]:
                if earlier["id"] != identity:
                    raise UserError(
                        f"{path}: has changed since out={self.directory} was begun with it ({earlier['id']}, now "
                        f"{identity}); put the old content back, or use overwrite=true"
                    )
                if earlier == entry:
                    return
        self.record["data"] = [other for other in self.record["data"] if other["path"] != entry["path"]] + [entry]
        self.write()

    def make(self, name: str, write: Callable[[Path], None]) -> None:
        """The folder `name` of the run, whole or not at all: `write` fills it."""
        with files.atomic_directory(self.directory / name) as temporary:
            write(temporary)

    def remove_when_finished(self, path: Path) -> None:
        """A file or folder that has served once the run is complete: as checkpoints to go on from."""
        self._leftovers.append(path)

    @property
    def _replaces(self) -> bool:
        """A run is set aside, and this one takes its place once it is finished."""
        return (self.directory / REPLACED / RECORD).exists()

    def note_result(self, result: Any) -> None:
        """Put what the command found, whole or as far as it is, into the record; `write` brings it to the disk.

        Raises UserError if a number that must be one is not finite, as damaged weights make them.
        """
        made = to_json(result)
        try:
            read_as(type(result) if is_dataclass(result) else Any, made, "result")
        except MisfitError as error:
            raise UserError(
                f"out={self.directory}: {error}; is a checkpoint or dataset damaged that it read?"
            ) from error
        self.record["result"] = made


def check_inputs(out: Path, config: dict[str, Any]) -> None:
    """Raise UserError if anything that a config names lies in `out`, or is it; also in overrides of other commands."""
    own = out.resolve()
    for key, value in leaves(config):
        if key == "out" or not isinstance(value, str):
            continue
        for name in {value, *re.split(r"[=,\[\]{}:'\"\s]+", value)}:
            with suppress(OSError, ValueError):
                if name and len(name) < 4096 and os.path.exists(name) and Path(name).resolve().is_relative_to(own):
                    raise UserError(f"out={out}: {key} names '{name}', which lies in it; choose another out=")
