"""Options of commands that train, about the processes that do."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.base.errors import warn
from toolkit.base.options import part
from toolkit.training.config import ParallelismConfig


@dataclass
class ParallelConfig:
    """See docs/scale.md."""

    parallelism: ParallelismConfig = part(ParallelismConfig, "how processes share a pretrained network")


def warn_of_dry_run(config: ParallelismConfig) -> None:
    """Say that a dry run does not count with a network that is divided."""
    if config.dp_shard > 1:
        warn(
            f"parallelism.dp_shard={config.dp_shard}: a dry run is of one GPU that holds everything; it is not counted"
        )
