"""Speeds that can be compared: readers of the same data take turns, so that a slow moment of the machine meets each."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.progress import progress
from toolkit.data.cache import build_clips
from toolkit.data.cached_files import fingerprint
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from toolkit.reporting.benchmark_results import Ratio, Row

MEBIBYTE = 1 << 20

Reader = Callable[[], int]  # reads windows or pictures and returns how many


def compare(
    readers: dict[str, Reader], rounds: int, suite: str, metric: str, pairs: Sequence[tuple[str, str]]
) -> tuple[list[Row], list[Ratio]]:
    """Rows per reader, and ratios of pairs of them; low and high are quartiles over the rounds."""
    speeds: dict[str, list[float]] = {name: [] for name in readers}
    counts = dict.fromkeys(readers, 0)
    for index in progress(range(rounds + 1), description=suite, unit="round"):
        for name, read in readers.items():
            started = time.perf_counter()
            count = read()
            if index:  # the first round opens files and fills caches
                speeds[name].append(count / (time.perf_counter() - started))
                counts[name] += count
    rows = [
        Row(system=name, suite=suite, metric=metric, **quartiles(values), n=counts[name])
        for name, values in speeds.items()
    ]
    common: Any = {"suite": suite, "metric": "speed_ratio", "paired": True}
    return rows, [Ratio(a=a, b=b, **common, **quartiles(np.divide(speeds[a], speeds[b]))) for a, b in pairs]


@contextmanager
def one_core() -> Iterator[None]:
    """This thread, and those that it starts, stay on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def build_quietly(dataset: Path, canvas: Canvas, workers: int, jpeg: bool, path: Path) -> int:
    """Build a clip file without a word; returns its rows."""
    with redirect_stdout(io.StringIO()):
        build_clips(dataset, canvas, "benchmark", fingerprint(dataset), workers, jpeg, path)
    return len(ClipStore.open(path).frames)


def quartiles(values: Any) -> dict[str, Any]:
    low, middle, high = (float(f"{value:.4g}") for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"value": middle, "low": low, "high": high}


def measured(system: str, suite: str, n: int, **values: float) -> list[Row]:
    """Rows of numbers that were measured once, by metric."""
    rounded = {metric: float(f"{value:.4g}") for metric, value in values.items()}
    return [
        Row(system=system, suite=suite, metric=metric, value=value, low=value, high=value, n=n)
        for metric, value in rounded.items()
    ]


def memory_status(name: str) -> int:
    """A line of /proc/self/status [byte]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
