"""Values of a config that somebody else wrote: what no field can hold is named before a network is built."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

LARGEST = 1_000_000  # of every size
MOST_LEVELS = 16  # of a U-Net
LONGEST = 100  # letters of a name


def check_fields(part: Any, where: str) -> None:
    """Raise ValueError that names the first field of a config, or of one inside it, that holds what no field can."""
    default = type(part)()
    for one in fields(part):
        value, expected = getattr(part, one.name), getattr(default, one.name)
        if is_dataclass(expected):
            check_fields(value, f"{where}{one.name}.")
        else:
            _check_value(f"{where}{one.name}", value, expected)


def _check_value(where: str, value: Any, default: Any) -> None:
    """Raise ValueError unless a value has the type of the default, and a size that a network can have."""
    if isinstance(default, list):
        if not isinstance(value, list) or not 1 <= len(value) <= MOST_LEVELS:
            raise ValueError(f"{where} = {shown(value)}: expected a list of 1 to {MOST_LEVELS} numbers")
        for item in value:
            _check_value(where, item, default[0])
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{where} = {shown(value)}: expected true or false")
    elif isinstance(default, int):
        least = 0 if where.endswith("depth") else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            raise ValueError(f"{where} = {shown(value)}: expected a whole number from {least} to {LARGEST}")
    elif isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            raise ValueError(f"{where} = {shown(value)}: expected a finite number")
    elif not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"{where} = {shown(value)}: expected a word of at most {LONGEST} letters")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
