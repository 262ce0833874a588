"""One warm process: damages a copy, runs a command on it, looks at what happened and at what lies around.

`python worker.py FIRST COUNT SEED FOLDER`, as `tests/test_fuzz.py` starts it, prints a JSON line before and after each
damage; all that the commands print is kept apart.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
from functools import cache
from pathlib import Path
from typing import Any

from mutations import SCRIPT, copy, damage, files_of
from sources import write_sources
from targets import TARGETS, Target
from watch import Watch

from recipes import cli, compose

SECONDS = 120  # a command that takes longer counts as a hang
MORE_MEGABYTES = 400  # than all commands before it: what one of them may take
BAR = re.compile(r"\[\d+:\d\d[<,]")  # of progress: its clock


class Worker:
    """folder/sources are good; folder/work has the damaged copy and `out`, folder/cache and folder/tmp are given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sources, self.work = folder, folder / "sources", folder / "work"
        self.cache, self.temporary = folder / "cache", folder / "temporary"
        self.victim = folder / "victim.txt"
        self.say = os.fdopen(os.dup(1), "w")
        self.screens = {1: folder / "stdout", 2: folder / "stderr"}
        for number, path in self.screens.items():
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), number)
        for place in (self.cache, self.temporary, folder / "here"):
            place.mkdir(exist_ok=True)
        self.victim.write_text("of somebody else")
        os.environ.update(VAG_CACHE=str(self.cache), TMPDIR=str(self.temporary))
        os.chdir(folder / "here")

    def tell(self, **values: Any) -> None:
        print(json.dumps(values), file=self.say, flush=True)

    def warm_up(self) -> None:
        """Make the sources, and run every command on good ones: they must succeed."""
        if not (self.folder / "complete").exists():
            shutil.rmtree(self.sources, ignore_errors=True)
            write_sources(self.sources)
            (self.folder / "complete").touch()
        self.warm_cache: set[str] = set()
        # Hydra takes longer than most of what follows, and the words of a command are the same each time.
        checked = cache(lambda command, *overrides: real(command, list(overrides)))
        real, compose.checked_config = compose.checked_config, lambda command, words: checked(command, *words)
        warmed: set[tuple[str, str]] = set()
        for target in TARGETS:
            for command in target.commands:
                if (target.source, command) in warmed:
                    continue
                warmed.add((target.source, command))
                words, _ = self.place(target, command)
                began = time.process_time()
                code = cli.main(words)
                self.tell(warm=f"{target.source}: {words[0]}", seconds=round(time.process_time() - began, 2))
                if code != 0:
                    raise RuntimeError(f"{words}: exit code {code}: {self.screens[2].read_text()[-2000:]}")
        self.warm_cache = {path.name for path in self.cache.iterdir()}
        self.watch = Watch()
        gc.collect()
        gc.freeze()

    def place(self, target: Target, command: str) -> tuple[list[str], Path]:
        """A copy of the source in the work folder; the command's words, and its `out`."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        for path in self.cache.iterdir():
            if self.warm_cache and path.name not in self.warm_cache:
                path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path)
        self.given = self.work / Path(target.source).name
        copy(self.sources / target.source, self.given)
        words = command.format(given=self.given, sources=self.sources).split()
        named = [word for word in words if word.startswith("out=")]
        out = Path(named[0].removeprefix("out=")) if named else self.work / "out"
        return words if named else [*words, f"out={out}"], out

    # ------------------------------------------------------------------------------------------------- one damage

    def run(self, index: int, seed: int) -> dict[str, Any]:
        import numpy as np

        rng = np.random.default_rng((seed, index))
        target = TARGETS[index % len(TARGETS)]
        command = target.commands[int(rng.integers(len(target.commands)))]
        words, out = self.place(target, command)
        victims = target.choose_from(self.given, list(files_of(self.given)))
        victim = victims[int(rng.integers(len(victims)))]
        told = damage(victim, rng, self.victim, of_run=out == self.given)
        lay_there = set(self.leftovers(out))
        name = str(victim.relative_to(self.work))
        outcome: dict[str, Any] = {"index": index, "damage": f"{name}: {told}", "command": words, "faults": []}
        before = self.snapshot(out)
        for path in self.screens.values():
            os.truncate(path, 0)
        memory = peak_memory()
        began = time.process_time()
        faulthandler.dump_traceback_later(SECONDS - 2, file=self.say_errors())
        signal.alarm(SECONDS)
        text, code = "", None
        with self.watch.watching(out, self.cache, self.temporary) as events:
            try:
                code = cli.main(words)
            except BaseException:
                text = traceback.format_exc()
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush(), sys.stderr.flush()
        outcome |= {"code": code, "seconds": round(time.process_time() - began, 2), "megabytes": peak_memory() - memory}
        errors = self.screens[2].read_text(errors="replace")
        faults = outcome["faults"]
        if text or "Traceback" in errors:
            faults.append(f"traceback: {(text or errors)[-3000:]}")
        else:
            faults += self.faults_of_code(code, errors, words, out, outcome)
        if outcome["megabytes"] > MORE_MEGABYTES:
            faults.append(f"held {outcome['megabytes']} MB more than any before")
        faults += [f"event: {event}" for event in dict.fromkeys(events)]
        faults += self.changes(before, self.snapshot(out))
        faults += sorted(set(self.leftovers(out)) - lay_there)
        return outcome

    def say_errors(self) -> Any:
        self.hangs = open(self.folder / "hang", "w")  # noqa: SIM115
        return self.hangs

    def faults_of_code(
        self, code: int | None, errors: str, words: list[str], out: Path, outcome: dict[str, Any]
    ) -> list[str]:
        """The exit code, what stands on stderr, and the record."""
        if code not in (0, 2) and not (code == 1 and words[0] == "inspect"):
            return [f"exit code {code}"]
        lines = [line.strip() for line in re.split(r"[\r\n]", errors) if line.strip()]
        complaints = [line for line in lines if line.startswith("vag: error: ")]
        outcome["said"] = complaints[0][:300] if complaints else ""
        found = []
        if len(complaints) != (code == 2):
            found.append(f"{len(complaints)} complaints, exit code {code}: {errors[-500:]}")
        for line in complaints:
            if str(self.folder) not in line and self.given.name not in line:
                found.append(f"names no file: {line[:300]}")
        noise = [line for line in lines if not line.startswith("vag: ") and not BAR.search(line)]
        if noise:
            found.append(f"said more: {noise[0][:300]}")
        if code == 2 and out == self.work / "out" and out.exists():
            kept = [path.name for path in out.iterdir() if path.name not in ("run.json", ".vag-manifest")]
            if not kept:
                found.append(f"failed before it wrote anything, but left {sorted(p.name for p in out.iterdir())}")
        if code in (0, 1):
            found += self.faults_of_record(out)
        return found

    def faults_of_record(self, out: Path) -> list[str]:
        def refuse(name: str) -> None:
            raise ValueError(f"run.json holds {name}")

        try:
            record = json.loads((out / "run.json").read_text(), parse_constant=refuse)
        except (OSError, ValueError) as error:
            return [f"record: {error}"]
        found = [] if record["status"] == "finished" else [f"status {record['status']}"]
        page = out / "report.html"
        if page.exists() and SCRIPT in page.read_text(errors="replace"):
            found.append("the page runs a script of the record")
        return found

    # --------------------------------------------------------------------------------------------- what lies around

    def snapshot(self, out: Path) -> dict[str, tuple[Any, ...]]:
        """What is where, but in `out`, the cache and the folder for temporary files."""
        found = {}
        skipped = {str(path) for path in (out, self.cache, self.temporary)} - {str(self.folder)}
        for parent, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if os.path.join(parent, name) not in skipped]
            for name in [*folders, *names]:
                path = os.path.join(parent, name)
                if parent != str(self.folder) or name not in ("stdout", "stderr", "hang"):
                    s = os.lstat(path)
                    found[path] = (s.st_mode, 0, 0) if name in folders else (s.st_mode, s.st_size, s.st_mtime_ns)
        notes = out / "notes.txt"  # the user's own file inside
        if notes.is_file():
            found[str(notes)] = (notes.read_bytes(),)
        return found

    def changes(self, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
        found = []
        for path in sorted(before.keys() | after.keys()):
            if before.get(path) == after.get(path):
                continue
            how = "new" if path not in before else "gone" if path not in after else "changed"
            found.append(f"{how}: {os.path.relpath(path, self.folder)}")
        return found

    def leftovers(self, out: Path) -> list[str]:
        """Parts of files, and temporary ones."""
        found = []
        for place in (self.work, self.cache):
            for parent, folders, names in os.walk(place):
                for name in [*folders, *names]:
                    if name.endswith((".partial", ".vag-partial", ".vag-removed")):
                        found.append(os.path.relpath(os.path.join(parent, name), self.folder))
        found += [os.path.relpath(path, self.folder) for path in self.temporary.iterdir()]
        for path in list(self.temporary.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return [f"left: {path}" for path in found]


def peak_memory() -> int:
    """Of this process [MB]; what `getrusage` says counts the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024


def main() -> None:
    first, count, seed = (int(word) for word in sys.argv[1:4])
    worker = Worker(Path(sys.argv[4]))
    worker.warm_up()
    worker.tell(warm="all", megabytes=peak_memory())
    for index in range(first, count):
        worker.tell(begin=index)
        worker.tell(result=worker.run(index, seed))
        if index % 50 == 0:
            gc.collect()
    worker.tell(megabytes=peak_memory())


if __name__ == "__main__":
    main()
