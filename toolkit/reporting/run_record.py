"""The output directory of a command and its `run.json`: what ran, on what, with which result."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from toolkit.errors import UserError

NOT_COMPARED = ("out", "overwrite", "resume", "runtime.threads", "workers")  # the run is the same whatever they are
PACKAGES = ("torch", "lerobot", "timm", "hydra-core", "h5py", "accelerate", "numpy", "mujoco", "metaworld")


class Run:
    """Context manager around one command.

    Refuses a finished directory unless `overwrite`, and an unfinished one unless `resume` or `overwrite`.
    An `extendable` run is made of others that check themselves: with `resume` it goes on with other settings too.
    `run.json` says "running" inside the block, "finished" after it, "failed" or "interrupted" after an exception.
    Never deletes a directory that holds no `run.json`.
    """

    def __init__(
        self,
        command: str,
        out: str | Path | None,
        config: dict[str, Any],
        *,
        overwrite: bool,
        resume: bool,
        extendable: bool = False,
    ) -> None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        self.directory = Path(out) if out else Path("outputs") / command.replace(" ", "-") / stamp
        self.overwrite, self.resume, self.extendable = overwrite, resume, extendable
        self.record: dict[str, Any] = {
            "command": command,
            "status": "running",
            "config": config,
            "git_sha": git_sha(),
            "versions": versions(),
            "hardware": hardware(),
            "seed": config.get("seed"),
            "data": [],
            "started": datetime.now().isoformat(timespec="seconds"),
            "wall_seconds": 0.0,
            "result": {},
        }

    def __enter__(self) -> Self:
        path = self.directory / "run.json"
        if self.overwrite and self.resume:
            raise UserError("overwrite=true starts again and resume=true goes on; give one of them")
        if any(parent.is_file() for parent in (self.directory, *self.directory.parents)):
            raise UserError(f"out={self.directory}: is a file, or lies below one; expected a directory")
        if not path.exists() and self.directory.exists():
            if any(
                child.name != ".run.json.partial" for child in self.directory.iterdir()
            ):  # killed right at the start
                raise UserError(f"out={self.directory}: is not empty and holds no run.json; choose another out=")
        elif path.exists() and not self.overwrite:
            self._check_unfinished(read_record(self.directory))
        if self.overwrite:
            self._set_aside()
        self.started = time.perf_counter()
        self._previous = read_record(self.directory)["wall_seconds"] if path.exists() else 0.0
        self.directory.mkdir(parents=True, exist_ok=True)
        self.write()
        return self

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
        if earlier["command"] != self.record["command"]:
            raise UserError(f"out={self.directory}: holds a run of 'vag {earlier['command']}'; choose another out=")
        if extended:
            return
        before, now = (dict(leaves(record.get("config") or {})) for record in (earlier, self.record))
        for key in [key for key in {**before, **now} if key not in NOT_COMPARED]:
            if before.get(key) != now.get(key):
                raise UserError(
                    f"out={self.directory}: was begun with {key}={before.get(key)}, not {now.get(key)}; "
                    "resume with the same settings, or use overwrite=true"
                )

    def _set_aside(self) -> None:
        """Move what is to be replaced out of the way; it comes back if the new run ends before it has made anything."""
        inside = [v for _, v in leaves(self.record["config"]) if isinstance(v, str) and self._holds(v)]
        if inside:
            raise UserError(f"out={self.directory}: holds the input {inside[0]}; overwrite=true would delete it")
        shutil.rmtree(self._aside, ignore_errors=True)
        if self.directory.exists():
            os.replace(self.directory, self._aside)

    @property
    def _aside(self) -> Path:
        return self.directory.with_name(f".{self.directory.name}.replaced")

    def _holds(self, value: str) -> bool:
        """True for a path inside the output directory."""
        path, own = Path(value), self.directory.resolve()
        return path.resolve() != own and path.resolve().is_relative_to(own) and os.path.exists(path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.record["status"] = "finished" if kind is None else "interrupted" if interrupted else "failed"
        if error is not None:
            self.record["error"] = str(error) or type(error).__name__
        if self.overwrite and self._aside.exists():
            if error is not None and {path.name for path in self.directory.iterdir()} <= {"run.json"}:
                shutil.rmtree(self.directory)  # refused or stopped before it made anything: nothing was replaced
                os.replace(self._aside, self.directory)
                return
            if isinstance(error, UserError):  # refused late: neither run is worth losing
                print(f"{self.directory}: what it was to replace is kept in {self._aside}", file=sys.stderr)
            else:
                shutil.rmtree(self._aside, ignore_errors=True)
        try:
            self.write()
        except OSError:
            if kind is None:
                raise

    def write(self) -> None:
        self.record["wall_seconds"] = round(self._previous + time.perf_counter() - self.started, 2)
        write_json(self.directory / "run.json", self.record)

    def add_data(self, path: str | Path, identity: str, episodes: int) -> None:
        """Note a dataset that was read."""
        self.record["data"].append({"path": str(path), "id": identity, "episodes": episodes})

    @property
    def result(self) -> dict[str, Any]:
        return self.record["result"]


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested config; the elements of a list count one by one."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", str(value)
            yield from ((f"{prefix}{key}[{i}]", item) for i, item in enumerate(value))
        else:
            yield prefix + key, value


def read_record(directory: str | Path) -> dict[str, Any]:
    """`run.json` of a run directory. Raises UserError if it is missing or damaged."""
    path = Path(directory) / "run.json"
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; expected the output directory of a vag command") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    if not isinstance(record, dict) or "command" not in record or "status" not in record:
        raise UserError(f"{path}: damaged (no 'command' and 'status')")
    return record


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@cache
def git_sha() -> str:
    """Commit of the checkout this code runs from; 'unknown' when installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def hardware() -> str:
    """Cores and CPU model, and the GPU where there is one."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    text = f"{os.cpu_count()} x {model}"
    import torch

    return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text
