"""One process of a command writes: what the others have in the place of its `Run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from toolkit.base import manifest
from toolkit.base.processes import processes
from toolkit.base.run import Run


class FollowedRun(Run):
    """The run of the main process as another process of the same command sees it: nothing is written, or printed."""

    def __enter__(self) -> Self:
        told = processes().from_main(None)
        self.directory, self.complete = Path(told["directory"]), told["complete"]
        self.record["result"] = told["result"]
        self._held.enter_context(manifest.written_elsewhere(self.directory))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            if kind is None:
                processes().wait()  # with what this process has read, and it may go
                processes().wait()  # it is finished

    def write(self) -> None:
        """The main process does."""

    def add_data(self, path: str | Path, identity: str, episodes: int | None = None) -> None:
        """The main process does, and looks whether they have changed."""

    def make(self, name: str, write: Callable[[Path], None]) -> None:
        """The main process does."""


def open_run(*arguments: Any, **options: Any) -> Run:
    """The `Run` of a command, of these arguments, in the main process; what the others see of it elsewhere."""
    return (Run if processes().is_main else FollowedRun)(*arguments, **options)
