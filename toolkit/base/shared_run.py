"""A run whose parts several commands make, also on other machines: each holds the directory for a moment only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from toolkit.base.errors import InUseError, UserError, warn
from toolkit.base.run import Run

PATIENCE = 120.0  # seconds that a command waits for others to note what they do
POLL = 0.1
SAID_AFTER = 5.0  # seconds of waiting


class PartOfRun(Run):
    """What a process has of a run that others record: what it reads is noted here, and nothing is written.

    data: what they have noted. `add_data` raises UserError for other content at a path, as that of a `Run`.
    """

    def __init__(self, directory: Path, data: Sequence[dict[str, Any]] = ()) -> None:
        self.directory, self.complete = Path(directory), False
        self.record: dict[str, Any] = {"data": list(data)}

    def write(self) -> None:
        """Those who record it do."""


class SharedRun(Run):
    """A run that is begun, or gone on with, and left to others at once: its record goes on to say that it runs."""

    def note(self, data: Sequence[dict[str, Any]], also: Callable[[], Any]) -> None:
        """Enter what is read into the record, and do something more while no other command is at it.

        Raises UserError as `Run` for other settings, and other data than the run was begun with.
        """
        with in_turn(self._opened):
            for entry in data:
                self.add_data(entry["path"], entry["id"], entry["episodes"])
            also()

    def __enter__(self) -> Self:
        self._check_place()
        self.directory.mkdir(parents=True, exist_ok=True)  # so that nobody cleans it up: others are at work in it
        return super().__enter__()

    @contextmanager
    def _opened(self) -> Iterator[None]:
        self.__enter__()
        with self._held:
            yield

    def _go_on(self, earlier: dict[str, Any]) -> None:
        super()._go_on(earlier)
        if self.complete:
            raise UserError(f"out={self.directory}: all of it is made; resume=true without shard= ends the run")
        *before, last = self.record["code_before"]
        if all(last[key] == self.record[key] for key in ("git_sha", "versions")):  # one line for each code
            self.record["code_before"], self.record["started"] = before, last["started"]


@contextmanager
def in_turn(hold: Callable[[], AbstractContextManager[None]], patience: float = PATIENCE) -> Iterator[None]:
    """Inside, hold what others hold before and after. Raises InUseError if the wait is longer than `patience`."""
    began, said = time.monotonic(), False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(hold())
                break
            except InUseError as error:
                waited = time.monotonic() - began
                if waited > patience:
                    raise
                if waited > SAID_AFTER and not said:
                    warn(f"{error}; waiting")
                    said = True
            time.sleep(POLL)
        yield
