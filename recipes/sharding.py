"""Work in shards: folders that are whole or not there, made by this process, by several, or by other commands.

A shard is some whole batches, and which samples a batch holds does not depend on the shards; the last batch may be
smaller. A shard is made in pieces, so that a killed one loses little; a finished piece is never made again. Where they
lie until the run is finished:

.shards.vag-partial/3-of-8/1      first piece of the third shard; beside it the lock of the process that makes them
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from recipes.terminal import say
from toolkit.base import manifest
from toolkit.base.engine import Engine, LocalEngine, open_engine, worker_number
from toolkit.base.errors import InUseError, UserError
from toolkit.base.files import atomic_directory, kept_folder, remove_empty_folders
from toolkit.base.progress import progress
from toolkit.base.record import RECORD
from toolkit.base.run import Run
from toolkit.base.shared_run import PATIENCE, PartOfRun, SharedRun, in_turn
from toolkit.training.runtime import RuntimeConfig, name_gpu

FOLDER = "shards"
PIECES = 100  # of the whole work, about: a killed command loses one of them, or a batch
MOST_ASKED = 10_000
PLACE = re.compile(r"(\d+)-of-(\d+)")


class Work(Protocol):
    """What a command makes, ready to begin: everything is read and checked."""

    @property
    def description(self) -> str:
        """In a word."""

    @property
    def sizes(self) -> Sequence[int]:
        """Episodes of each batch."""

    def begin(self, folder: Path) -> None:
        """Make, or read, in `folder` what all shards need; one process at a time is here."""

    def make(self, batches: range, folder: Path, advance: Callable[[int], Any]) -> None:
        """Write batches, one or more, into an empty folder; `advance` is called with the number of their episodes."""

    def merge(self, folders: Sequence[Path], run: Run) -> Any:
        """Put all pieces together, in order; the result of the command."""

    def free(self) -> None:
        """Give the GPU back: other processes work from here on."""


Prepare = Callable[[Any, Run], Work]


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of the work, by its number from 1 on, with the batches that it consists of."""

    number: int
    count: int
    batches: range

    def folder(self, root: Path) -> Path:
        return root / f"{self.number}-of-{self.count}"

    def pieces(self, root: Path) -> dict[Path, range]:
        """The folders that it is made in, each with its batches; none where it is empty."""
        parts = parted(self.batches, min(len(self.batches), -(-PIECES // self.count)))
        return {self.folder(root) / str(number): part for number, part in enumerate(parts, 1)}

    def is_made(self, root: Path) -> bool:
        return self.folder(root).is_dir() and all(path.is_dir() for path in self.pieces(root))


def parted(batches: range, count: int) -> list[range]:
    """Consecutive batches in `count` parts of nearly the same size; some are empty where there are more parts."""
    ends = np.linspace(batches.start, batches.stop, count + 1).round().astype(int).tolist()
    return [range(*ends[i : i + 2]) for i in range(count)]


def shards_of(batches: int, count: int) -> list[Shard]:
    return [Shard(number, count, part) for number, part in enumerate(parted(range(batches), count), 1)]


def make_shard(work: Work, root: Path, shard: Shard, advance: Callable[[int], Any], patience: float = 0.0) -> None:
    """Make the pieces of a shard that are not there. Raises InUseError if another process makes it for so long [s]."""
    folder = shard.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    with in_turn(lambda: manifest.locked(folder), patience):
        for path, batches in shard.pieces(root).items():
            if not path.is_dir():
                with atomic_directory(path) as temporary:
                    work.make(batches, temporary, advance)


def run_in_shards(prepare: Prepare, config: Any, run: Run) -> Any:
    """The recipe of a command: make all shards that are missing, and put them together."""
    # Before anything is loaded: what does not fit is refused at once.
    processes = process_count(config.shard_workers, config.runtime)
    engine = open_engine(config.engine, run.directory, processes, gpus_of(config.runtime))
    work = prepare(config, run)
    root = kept_folder(run.directory / FOLDER)
    run.remove_when_finished(root)
    shards = shards_of(len(work.sizes), begun_count(root) or min(len(work.sizes), PIECES))
    missing = [shard for shard in shards if not shard.is_made(root)]
    check_free(root, missing)
    try:
        begin(work, root)
        with progress_of(work, shards, root) as bar:
            if not engine.remote:
                engine = LocalEngine(max(1, min(processes, len(missing))))
            if missing and (engine.remote or engine.workers > 1):
                work.free()
                for made in made_elsewhere(prepare, config, run, missing, engine):
                    bar.update(made)
            else:
                for shard in missing:
                    make_shard(work, root, shard, bar.update)
    except BaseException:
        remove_empty_folders(root)  # a command that has made nothing leaves nothing
        raise
    return work.merge([path for shard in shards for path in shard.pieces(root)], run)


def check_free(root: Path, shards: Sequence[Shard]) -> None:
    """Raise InUseError, before hours of work, if another process makes one of these shards."""
    for shard in shards:
        if shard.folder(root).is_dir():
            with manifest.locked(shard.folder(root)):
                pass


def begin(work: Work, root: Path) -> None:
    """What all shards need is made by the process that comes first; the others wait for it."""
    folder = root / "common"
    folder.mkdir(parents=True, exist_ok=True)
    with in_turn(lambda: manifest.locked(folder), patience=float("inf")):
        work.begin(folder)


def begun_count(root: Path) -> int | None:
    """How many shards there are to be, as those say that were begun; None where none was."""
    found = [PLACE.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
    return next((int(name[2]) for name in found if name), None)


def progress_of(work: Work, shards: Sequence[Shard], root: Path) -> Any:
    """A bar over the episodes of shards, of which some may be there."""
    pieces = [(path, sum(work.sizes[k] for k in part)) for one in shards for path, part in one.pieces(root).items()]
    total, done = sum(size for _, size in pieces), sum(size for path, size in pieces if path.is_dir())
    return progress(description=work.description, total=total, unit="ep", initial=done)


# ----------------------------------------------------------------------------------------------- in several processes


def process_count(asked: int | None, runtime: RuntimeConfig) -> int:
    """Processes that work side by side on this machine: as many as are asked for, else one for each GPU."""
    if asked is not None:
        return asked
    return 1 if runtime.device == "cpu" else max(1, torch.cuda.device_count())


def gpus_of(runtime: RuntimeConfig) -> float | None:
    """Of each process on a cluster, where nothing is said: None, one where there are any, if it computes on a GPU."""
    return 0.0 if runtime.device == "cpu" else None


def made_elsewhere(prepare: Prepare, config: Any, run: Run, missing: Sequence[Shard], engine: Engine) -> Any:
    """Make shards in the processes of an engine; yields the episodes that were made, shard by shard."""
    threads = config.runtime.threads or engine.threads
    own = replace(config, runtime=replace(config.runtime, threads=threads))
    root, queue = manifest.partial_name(run.directory / FOLDER), iter(missing)
    work = partial(make_in_worker, prepare, own, run.directory, list(run.record["data"]), root)
    results = engine.feed(work, lambda: next(queue, None), description="shards")
    return (made for _, made in results)


_prepared: list[tuple[str, Work]] = []  # of this process, which makes several shards of one command


def make_in_worker(
    prepare: Prepare, config: Any, directory: Path, data: Sequence[dict[str, Any]], root: Path, shard: Shard
) -> int:
    """Make a shard in a process of its own, on a GPU of its own where there are several; how many episodes were made.

    directory, data: of the run, and what it has read; other content is an error.
    """
    key = repr((prepare, directory, config, worker_number()))
    if not _prepared or _prepared[0][0] != key:
        _prepared.clear()  # and give its memory back, before the next one takes some
        name_gpu(worker_number())
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            work = prepare(config, PartOfRun(directory, data))  # what it says has been said
            begin(work, root)
        _prepared[:] = [(key, work)]
    made = list[int]()
    make_shard(_prepared[0][1], root, shard, made.append, PATIENCE)  # a process whose node is lost may still be at it
    return sum(made)


# ------------------------------------------------------------------------------------------------- in several commands


def asked_shard(text: str) -> tuple[int, int]:
    """Number and count of `3/8`. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, count = (int(part) for part in found.groups()) if found else (0, 0)
    if not found or not 1 <= number <= count <= MOST_ASKED:
        raise UserError(
            f"shard={text}: expected number/count, such as 3/8, with numbers from 1 to the count, at most "
            f"{MOST_ASKED:,}"
        )
    return number, count


def run_alone(command: str, prepare: Prepare, config: Any, run_whole: Callable[[Any], Any]) -> Any:
    """Make the shard that the config asks for, and if it was the last one that was missing, end the whole run.

    run_whole: the command for all shards. Returns its result, None where others are missing.
    """
    number, count = asked_shard(config.shard)
    if config.out is None:
        raise UserError(f"shard={config.shard}: give out=DIR, the same for all shards")
    if config.overwrite:
        raise UserError(f"shard={config.shard}: overwrite=true begins all shards anew; give it without shard=")
    if config.engine.kind != "local":
        raise UserError(
            f"shard={config.shard}: one shard is made by this process alone; leave out shard=, "
            "and a cluster makes all, or engine.kind="
        )
    whole = replace(config, shard=None, resume=True)
    out = Path(config.out)
    root = manifest.partial_name(out / FOLDER)
    try:
        if (out / RECORD).exists():  # other settings are refused before anything is loaded
            note(command, whole, [], count)
        part = PartOfRun(out)
        work = prepare(whole, part)
        note(command, whole, part.record["data"], count)
        begin(work, root)
        shards = shards_of(len(work.sizes), count)
        shard = shards[number - 1]
        with progress_of(work, [shard], root) as bar:
            make_shard(work, root, shard, bar.update)
    except BaseException as error:
        error.add_note(f"shard={config.shard} out={out}")
        raise
    missing = [other.number for other in shards if not other.is_made(root)]
    if missing:
        say(f"{command}: shard {config.shard} is made, {len(missing)} of {count} are missing  [{out}]")
        return None
    del work
    try:
        return run_whole(whole)
    except InUseError:
        say(f"{command}: shard {config.shard} is made; another process puts all together  [{out}]")
        return None


def note(command: str, config: Any, data: Sequence[dict[str, Any]], count: int) -> None:
    """Enter a command's shard into the record of the whole run. Raises UserError if that is of other settings."""

    def claim() -> None:
        root = kept_folder(Path(config.out) / FOLDER)
        if (begun := begun_count(root)) not in (None, count):
            raise UserError(
                f"out={config.out}: holds shards of {begun}, not of {count}; go on with shard=1/{begun} to "
                f"{begun}/{begun}, or choose another out="
            )
        Shard(0, count, range(0)).folder(root).mkdir(exist_ok=True)  # says how many, and stands for none

    given = {"overwrite": False, "resume": True, "strict": config.strict, "defaults": asdict(type(config)())}
    SharedRun(command, config.out, asdict(config), **given).note(data, claim)
