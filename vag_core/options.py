"""Fields of the generator's configs: each knows its help and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

WIDTHS: dict[str, Any] = {"least": 1, "most": 16_384}
DEPTHS: dict[str, Any] = {"least": 1, "most": 512}
DIMENSIONS: dict[str, Any] = {"least": 1, "most": 4096}
PIXELS: dict[str, Any] = {"least": 1, "most": 8192}


def option(default: Any, help: str, *, choices: Sequence[str] = (), **bounds: float) -> Any:
    """A field whose metadata states its help and its range: least, most (both allowed), above, below (neither).

    Of a list they are those of each element.
    """
    metadata: dict[str, Any] = {"help": help, **bounds}
    if choices:
        metadata["choices"] = tuple(choices)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def part(kind: type, help: str, **metadata: Any) -> Any:
    return field(default_factory=kind, metadata={"help": help, **metadata})
