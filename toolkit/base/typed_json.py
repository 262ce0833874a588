"""Dataclasses to JSON and back. What does not fit its type is refused in one line that names the file and the key.

A field whose default is None is left out of the JSON while it is None; every other field is written. A mapping that is
marked by `rest()` has no key of its own: its entries stand beside the other fields.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from toolkit.base.errors import UserError

MOST = 1e100  # numbers beyond it are no measurements, and figures have no axis for them
WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number", NoneType: "null"}
WORDS |= {list: "a list", dict: "a mapping"}


class MisfitError(ValueError):
    """A value that does not fit its type: its dotted key, what it is and what was expected."""


def rest() -> Any:
    """A dataclass field for all keys of a JSON mapping that no other field has."""
    return field(default_factory=dict, metadata={"rest": True})


def check_lengths(*lists: Sequence[Any]) -> None:
    """Raise ValueError unless all have the same number of values, and any at all."""
    if not lists[0] or len({len(values) for values in lists}) > 1:
        raise ValueError(f"lists of {', '.join(str(len(values)) for values in lists)} values; expected equally many")


def to_json(value: Any) -> Any:
    """A dataclass, or a list or mapping of them, as JSON; numbers that are not finite become null."""
    if is_dataclass(value):
        made: dict[str, Any] = {}
        for part in fields(value):
            inner = to_json(getattr(value, part.name))
            if "rest" in part.metadata:
                made |= inner
            elif inner is not None or part.default is not None:
                made[part.name] = inner
        return made
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json[Kind](kind: type[Kind], value: Any, path: str | Path, key: str = "result") -> Kind:
    """The value of `key` in a file as a `kind`: a dataclass, or a list, mapping, tuple, union or plain type.

    Keys that the kind lacks are ignored: a later version may have written more. A key that is missing, or holds
    something else than its field, is refused: UserError, one line with file, key and what was expected.
    """
    try:
        return read_as(kind, value, key)
    except MisfitError as error:
        message = f"{path}: {error}; delete {Path(path).parent} to have it made again"
        raise UserError(message) from error


def read_as(kind: Any, value: Any, key: str) -> Any:
    """`from_json` without a file: raises MisfitError."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _read_any(inner, value, key)
    if is_dataclass(kind) and isinstance(value, dict):
        return _read_fields(kind, value, key)
    if origin is list and isinstance(value, list):
        return [read_as(inner[0], item, f"{key}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: read_as(inner[1], item, f"{key}.{name}") for name, item in value.items()}
    if origin is tuple and isinstance(value, list) and len(value) == len(inner):
        return tuple(
            read_as(part, item, f"{key}[{i}]") for i, (part, item) in enumerate(zip(inner, value, strict=True))
        )
    if kind is Any or (kind in (str, bool, NoneType, dict) and type(value) is kind):
        return value
    number = type(value) in (int, float) and -MOST < value < MOST
    if number and (kind is float or (kind is int and value == int(value))):
        return value if kind is float else int(value)
    wanted = f"a list of {len(inner)}" if origin is tuple else WORDS.get(origin or kind, "a mapping")
    raise MisfitError(f"'{key:.200}' is {value!r:.40}, expected {wanted}")


def _read_any(kinds: tuple[Any, ...], value: Any, key: str) -> Any:
    """The first of several kinds that a value fits; of dataclasses, the one most of whose keys it has comes first."""
    keys = value.keys() if isinstance(value, dict) else ()
    misfits = []
    for kind in sorted(kinds, key=lambda kind: -len(_needed(kind) & set(keys))):
        try:
            return read_as(kind, value, key)
        except MisfitError as error:
            misfits.append(error)
    raise misfits[0]


def _read_fields(kind: Any, value: dict[str, Any], key: str) -> Any:
    made = {}
    for part in fields(kind):
        inner = _types(kind)[part.name]
        if "rest" in part.metadata:
            others = {name: item for name, item in value.items() if name not in _types(kind)}
            made[part.name] = read_as(inner, others, key)
        elif part.name in value:
            made[part.name] = read_as(inner, value[part.name], f"{key}.{part.name}")
        elif part.name in _needed(kind):
            raise MisfitError(f"'{key:.200}.{part.name}' is missing")
    try:
        return kind(**made)
    except ValueError as error:
        raise MisfitError(f"'{key:.200}': {error}") from error


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _needed(kind: Any) -> set[str]:
    parts = fields(kind) if is_dataclass(kind) else ()
    return {part.name for part in parts if part.default is MISSING and part.default_factory is MISSING}
