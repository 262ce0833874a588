"""The processes that one command was started in: one, or as many as torchrun or `accelerate launch` start.

The first one, the main one, makes and writes everything; the others take part in training. Who has failed says so
once, for all of them: one line is printed, and every process ends with the same exit code. All of this goes through
the small store that torchrun keeps; torch is imported only where there are several processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from toolkit.base.errors import UserError

POLL = 0.05  # seconds from one look into the store to the next
PATIENCE = 10.0  # seconds that a process which ends waits for the others: to be killed while one cleans up is worse
CONNECT = 60.0  # seconds in which the store must answer
PLACES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Failure:
    """What the process that failed first has said."""

    rank: int
    code: int  # exit code of all
    message: str


class FailedElsewhereError(UserError):
    """Another process of the command has failed, and has said why."""


class Processes:
    """Rank of this process among `size`, and what the processes of one command tell each other.

    With one process nothing is waited for. Raises UserError for an environment that says half of what it must.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.size, self.rank = self._number("WORLD_SIZE", 1), 0
        if self.size > 1:
            if missing := [name for name in PLACES if name not in environment]:
                raise UserError(
                    f"WORLD_SIZE={self.size}, but ${missing[0]} is not set; start several processes with torchrun or "
                    "accelerate launch, or unset WORLD_SIZE"
                )
            self.rank = self._number("RANK", 0)
        self._connected: Any = None
        self._meetings = 0
        self._alone = self.size == 1

    def _number(self, name: str, default: int) -> int:
        text = self._environment.get(name, "")
        if text and not text.isdecimal():
            raise UserError(f"${name} is '{text[:40]}'; expected a number, as torchrun sets it")
        return int(text) if text else default

    @property
    def is_main(self) -> bool:
        """True for the one process that writes and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here, however long that takes. Raises FailedElsewhereError if one fails instead."""
        if not self._alone:
            key, self._meetings = f"meeting {self._meetings}", self._meetings + 1
            if self._store().add(key, 1) == self.size:
                self._store().set(f"{key} is complete", "yes")
            self._read(f"{key} is complete")

    def from_main(self, value: Any) -> Any:
        """The JSON value that the main process gives; the others wait for it. Raises as `wait`."""
        if self._alone:
            return value
        key, self._meetings = f"from main {self._meetings}", self._meetings + 1
        if self.is_main:
            self._store().set(key, json.dumps(value))
        return json.loads(self._read(key))

    def fail(self, code: int, message: str) -> Failure:
        """Say that this process fails; returns what the first one to do so has said, who alone tells the user."""
        own = Failure(self.rank, code, message)
        if self._alone:
            return own
        try:
            said = self._store().compare_set("failure", "", json.dumps([self.rank, code, message]))
        except (RuntimeError, OSError, UserError):  # the store is gone, and with it whoever kept it
            return own
        return Failure(*json.loads(said))

    def failure(self) -> Failure | None:
        """What the process that failed first has said, None if none has."""
        if self._alone:
            return None
        with suppress(RuntimeError, OSError, UserError):
            if self._store().check(["failure"]):
                return Failure(*json.loads(self._store().get("failure")))
        return None

    def leave(self) -> None:
        """Before this process ends: let the main one finish what it writes, and keep the store for who still asks."""
        if self._connected is None:
            return
        self._part()
        with suppress(RuntimeError, OSError):
            store, until = self._connected, time.monotonic() + PATIENCE
            gone = store.add("others gone", int(not self.is_main))
            if self.is_main:
                store.set("main gone", "yes")
                while not self._is_kept and gone < self.size - 1 and time.monotonic() < until:
                    time.sleep(POLL)
                    gone = store.add("others gone", 0)
            while not self.is_main and not store.check(["main gone"]) and time.monotonic() < until:
                time.sleep(POLL)
        self._alone, self._connected = True, None

    def _part(self) -> None:
        """Give up the connections of training, so that who waits for this process in it need not wait any longer."""
        import torch.distributed

        joined = torch.distributed.is_initialized()
        if joined and (self.failure() is None or torch.distributed.get_backend() == "gloo"):  # NCCL's would wait
            torch.distributed.destroy_process_group()

    @property
    def _is_kept(self) -> bool:
        """The store is torchrun's, which keeps it until all have ended, and not the main process's."""
        return self._environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

    def _read(self, key: str) -> bytes:
        """The value of a key, once somebody has set it."""
        while not self._store().check([key]):
            if (failure := self.failure()) is not None:
                raise FailedElsewhereError(failure.message)
            time.sleep(POLL)
        return bytes(self._store().get(key))

    def _store(self) -> Any:
        """The store that all processes see. Raises UserError if it does not answer."""
        if self._connected is None:
            from datetime import timedelta

            from torch.distributed import PrefixStore, TCPStore

            place, port = self._environment["MASTER_ADDR"], self._number("MASTER_PORT", 0)
            options: dict[str, Any] = {"timeout": timedelta(seconds=CONNECT), "multi_tenant": True}
            try:
                store = TCPStore(
                    place, port, None, self.is_main and not self._is_kept, wait_for_workers=False, **options
                )
            except RuntimeError as error:
                raise UserError(
                    f"WORLD_SIZE={self.size}: nobody answers at MASTER_ADDR={place}, MASTER_PORT={port}; start several "
                    "processes with torchrun or accelerate launch, or unset WORLD_SIZE"
                ) from error
            attempt = self._environment.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._connected = PrefixStore(f"vag {attempt}", store)
        return self._connected


@cache
def processes() -> Processes:
    """Those of this command, as the environment says."""
    return Processes(os.environ)


def stand_alone() -> tuple[int, int]:
    """Be a command of its own from here on, as if the others were none; returns rank and number of processes."""
    rank, size = processes().rank, processes().size
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    processes.cache_clear()
    return rank, size
