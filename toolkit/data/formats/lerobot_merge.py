"""LeRobotDatasets of one episode each, joined into one by LeRobot, with notes on the episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.base import files
from toolkit.data.episode import ACTION, STATE
from toolkit.data.episode_notes import FILE, write_notes
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.formats.lerobot_write import check_writable_name, temporary_files_in, write_quantiles


def merge_episodes(parts: Sequence[Path], notes: Sequence[dict[str, Any]], directory: Path) -> None:
    """Join datasets of one episode each, in order, whole or not at all; videos are joined without coding them again.

    notes: what is noted of each episode, see `episode_notes`. Raises UserError for a number there that is not finite.
    """
    import datasets
    from lerobot.datasets.aggregate import aggregate_datasets

    datasets.disable_progress_bars()
    check_writable_name(directory)
    with files.atomic_directory(directory) as temporary:
        temporary.rmdir()  # LeRobot makes it, and nothing where there is one
        with temporary_files_in(temporary):
            aggregate_datasets(
                [f"local/{part.name}" for part in parts], f"local/{directory.name}", list(parts), temporary
            )
        table = read_table(temporary)
        write_notes(temporary / "meta" / FILE, table.ids, notes)
        write_quantiles(temporary, {STATE: table.states, ACTION: table.actions}, str(directory))
