"""LeRobot loads a checkpoint that lacks weights and leaves these at random; ours refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast


class StrictLoading:
    """To name before LeRobot's class among the bases of a policy."""

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, *, strict: bool = True, **kwargs: Any) -> Self:
        """As LeRobot's, but strict unless told otherwise. Raises RuntimeError that names a missing weight."""
        return cast(Any, super()).from_pretrained(pretrained_name_or_path, strict=strict, **kwargs)
