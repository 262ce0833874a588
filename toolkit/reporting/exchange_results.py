"""What the commands found that hand datasets and checkpoints to others."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class MixedPart:
    """Episodes of a dataset in a mixture; written: with those that were written again. Frames likewise."""

    dataset: str
    source: str  # recorded or synthetic
    episodes: int  # that the dataset has, of this source
    chosen: int  # by the options
    taken: int  # of these, each counted once
    written: int
    frames: int  # that were written
    left_out: int  # frames of chosen episodes that were not taken


@dataclass(frozen=True, kw_only=True)
class MixResult:
    """uncut: by video file how many pictures of episodes that were not taken it still holds."""

    episodes: int
    frames: int
    tasks: int
    synthetic_fraction: float
    fps: float
    cameras: list[str]
    parts: list[MixedPart]
    left_out: list[str] = field(default_factory=list)  # features
    uncut: dict[str, int] = field(default_factory=dict)
    dataset: str


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """address: of what was uploaded; None for a dry run."""

    kind: str  # dataset, policy or generator
    repo_id: str
    files: int
    megabytes: float
    folder: str
    address: str | None = None
