"""What a field of a config tells about itself: its help, and the range of its numbers or the choice of its words.

The keys of the field's metadata are the contract: help, least, most (both allowed), above, below (neither allowed),
choices, paths, numbers, none. Where a field holds a list or a mapping they are those of each element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    paths: bool = False,
    numbers: bool = False,
    none: bool = False,
) -> Any:
    """A dataclass field that knows its help and what it takes.

    paths: a path, or a list of them; numbers: the same of numbers, or none where that is the default or is allowed by
    `none`. Of type Any.
    """
    told = {"help": help, "least": least, "most": most, "above": above, "below": below}
    metadata: dict[str, Any] = {key: value for key, value in told.items() if value is not None}
    if choices:
        metadata["choices"] = tuple(choices)
    for name, wanted in (("paths", paths), ("numbers", numbers), ("none", numbers and (none or default is None))):
        if wanted:
            metadata[name] = True
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def part(kind: Callable[[], Any], help: str) -> Any:
    """A dataclass field that is a config of its own."""
    return field(default_factory=kind, metadata={"help": help})
