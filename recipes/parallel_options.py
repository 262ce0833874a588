"""Options of commands that train, about the processes that do."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.base.options import part
from toolkit.training.config import ParallelismConfig


@dataclass
class ParallelConfig:
    """See docs/scale.md."""

    parallelism: ParallelismConfig = part(ParallelismConfig, "how processes share a pretrained network")
