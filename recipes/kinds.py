"""What the schema says of a key: its type, and in its field's metadata the range of its numbers and its choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from recipes.study_schema import SCHEMAS


class Kind(NamedTuple):
    """What the schema says of a key: its type without None, the metadata of its field, and if it is of a mapping."""

    type: Any
    told: Mapping[str, Any]
    open: bool

    @property
    def is_text(self) -> bool:
        return self.type is str or (self.type is Any and "paths" in self.told)


def kind_of(command: str, key: str) -> Kind | None:
    """What the schema says of a dotted key, also of one inside a mapping; None for a key that it does not have."""
    found: Kind | None = Kind(SCHEMAS[command], {}, False)
    for name in key.split("."):
        if found is None:
            return None
        found = _inside(found, name)
    return found


def _inside(kind: Kind, name: str) -> Kind | None:
    if is_dataclass(kind.type):
        known = parts_of(kind)
        return Kind(known[name].type, known[name].told, kind.open) if name in known else None
    if get_origin(kind.type) is dict:
        return Kind(without_none(get_args(kind.type)[1]), kind.told, True)
    return Kind(Any, {}, True) if kind.open and kind.type is Any else None


def parts_of(kind: Kind) -> dict[str, Kind]:
    """The fields of the dataclass that a key holds; where it may hold one of several, those of all."""
    return {name: one for schema in kind.told.get("kinds", [kind.type]) for name, one in members(schema).items()}


def members(schema: Any) -> dict[str, Kind]:
    """The fields of a dataclass."""
    return _members(schema)


@cache
def _members(schema: type) -> dict[str, Kind]:
    types = get_type_hints(schema)
    return {field.name: Kind(without_none(types[field.name]), field.metadata, False) for field in fields(schema)}


def without_none(annotation: Any) -> Any:
    """`int | None` -> `int`."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    return annotation
