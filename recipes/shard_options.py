"""Options of commands that can be made in shards."""

from __future__ import annotations

from dataclasses import dataclass

from recipes.engine_options import EngineOptions
from toolkit.base.options import option

MOST_WORKERS = 512


@dataclass
class ShardConfig(EngineOptions):
    """See docs/scale.md."""

    shard: str | None = option(
        None,
        "make one part alone, such as 3/8, the third of eight; numbers begin at 1. Other commands or machines make the "
        "others into the same out, and the last one puts them together; null = all, or the rank of torchrun",
    )
    shard_workers: int | None = option(
        None,
        "processes that make shards side by side; null = one for each GPU, and on CPUs one with all threads",
        least=1,
        most=MOST_WORKERS,
    )
