"""LeRobotDatasets joined into one by LeRobot, with notes on the episodes; no video is coded again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import files
from toolkit.data.episode import ACTION, STATE
from toolkit.data.episode_notes import FILE, write_notes
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.formats.lerobot_write import VIDEO_FILE_MB, check_writable_name, temporary_files_in, write_quantiles
from toolkit.data.seen_scenes import merge, read_scenes, write_scenes

TABLE_FILE_MB = 8  # LeRobot reads and writes the latest file again with every dataset; at its 100 MB that grows slow


def merge_datasets(parts: Sequence[Path], directory: Path, notes: Sequence[dict[str, Any]] | None = None) -> None:
    """Join datasets, in order, whole or not at all.

    notes: what is noted of each episode, see `episode_notes`; None = what the parts note. Scenes that their generator
    has seen are kept. A single dataset is copied as it is, unless there are notes.
    Raises UserError for a number in notes that is not finite.
    """
    check_writable_name(directory)
    with files.atomic_directory(directory) as temporary:
        temporary.rmdir()  # LeRobot makes it, and nothing where there is one
        if len(parts) == 1 and notes is None:
            shutil.copytree(parts[0], temporary)
            return
        _aggregate(parts, directory.name, temporary)
        rows, ids, noted = {STATE: list[np.ndarray](), ACTION: list[np.ndarray]()}, list[str](), list[dict[str, Any]]()
        for part in parts:  # one after the other: their tables are far larger in memory than these numbers
            table = read_table(part)
            rows[STATE].append(table.states)
            rows[ACTION].append(table.actions)
            ids += table.ids
            noted += table.metadata
        noted = noted if notes is None else list(notes)
        if any(noted):
            write_notes(temporary / "meta" / FILE, ids, noted)
        seen = [scenes for scenes in (read_scenes(part / "meta") for part in parts) if scenes is not None]
        if seen:
            write_scenes(temporary / "meta", merge(*seen))
        write_statistics(temporary)
        write_quantiles(temporary, {key: np.concatenate(values) for key, values in rows.items()}, str(directory))


def _aggregate(parts: Sequence[Path], name: str, folder: Path) -> None:
    import datasets
    from lerobot.datasets import aggregate

    datasets.disable_progress_bars()
    with temporary_files_in(folder):
        aggregate.aggregate_datasets(
            [f"local/{part.parent.name}" for part in parts],
            f"local/{name}",
            list(parts),
            folder,
            data_files_size_in_mb=TABLE_FILE_MB,
            video_files_size_in_mb=VIDEO_FILE_MB,
        )


def write_statistics(directory: Path) -> None:
    """`meta/stats.json` from the statistics of the episodes, one after the other, as LeRobot keeps it when it records.

    Those of `aggregate_datasets` have numbers of rows and episodes as they were in the parts.
    """
    import pyarrow.parquet
    from lerobot.datasets.compute_stats import aggregate_stats
    from lerobot.datasets.io_utils import write_stats

    total: dict[str, Any] | None = None
    for path in sorted((directory / "meta/episodes").rglob("*.parquet")):
        with pyarrow.parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name.startswith("stats/")]
            for batch in file.iter_batches(100, columns=names):
                for row in batch.to_pylist():
                    own: dict[str, Any] = {}
                    for name, value in row.items():
                        _, key, statistic = name.split("/")
                        own.setdefault(key, {})[statistic] = np.array(value)
                    total = own if total is None else aggregate_stats([total, own])
    assert total is not None
    write_stats(total, directory)
