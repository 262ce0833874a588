"""Values that were composed, against the schema: numbers in their ranges, words among their choices, plain texts."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from recipes.kinds import Kind, members, parts_of, without_none
from recipes.study_schema import SCHEMAS
from toolkit.base.errors import UserError

MOST_TEXT = 10_000  # characters of one text
MOST_DEPTH = 16  # lists and mappings inside each other
# What OmegaConf leaves as it is inside lists.
LEAVES: dict[type, Any] = {str: str, int: int, float: int | float, bool: bool}
SAID = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def check_letters(command: str, shown: str, text: str) -> None:
    """Raise UserError for what is not UTF-8, for control characters, and for interpolations."""
    if any(unicodedata.category(letter) == "Cs" for letter in text):
        raise UserError(f"{command}: {shown} is not valid UTF-8; rename the file, or give it a link of another name")
    if any(unicodedata.category(letter) == "Cc" for letter in text):
        raise UserError(f"{command}: {shown} holds a line break or another control character; expected plain text")
    if "${" in text:
        raise UserError(f"{command}: {shown}: '${{' is not read, values are taken as they stand; expected plain text")


def shortened(text: str, most: int = 120) -> str:
    """A long text by its beginning and its end."""
    return text if len(text) <= most else f"{text[: most - 30]} ... {text[-20:]}"


def check_ranges(command: str, config: Mapping[str, Any]) -> None:
    """Raise UserError for a number that is not finite or out of its range, and a word or text that cannot be meant."""
    for name, kind in members(SCHEMAS[command]).items():
        if name in config:
            _check(command, name, "{}", config[name], kind)


def _check(command: str, key: str, around: str, value: Any, kind: Kind) -> None:
    """One value, and all that it holds. around: how an element is shown, such as `[{}]` for one of a list."""
    shown = f"{key}={shortened(around.replace('{}', _as_typed(value), 1))}"
    origin = get_origin(kind.type)
    if value is None or value == "???":
        if around != "{}" and origin is None and (value == "???" or kind.told.get("paths")):
            raise UserError(f"{command}: {shown}: expected a value")
        if kind.type is Any and around == "{}" and value is None and not kind.told.get("none"):
            what = "number" if kind.told.get("numbers") else "path"
            raise UserError(f"{command}: {shown}: expected a {what}, or a list of {what}s")
    elif is_dataclass(kind.type):
        for name, inner in parts_of(kind).items():
            if name in value:
                _check(command, f"{key}.{name}", "{}", value[name], inner)
    elif origin is dict:
        inner = Kind(without_none(get_args(kind.type)[1]), kind.told, True)
        for name, item in value.items():
            _check_name(command, key, name)
            if is_dataclass(inner.type):
                _check(command, f"{key}.{name}", "{}", item, inner)
            else:
                _check(command, key, around.replace("{}", f"{{{name}:{{}}}}", 1), item, inner)
    elif origin is list:
        inner = Kind(without_none(get_args(kind.type)[0]), kind.told, kind.open)
        for item in value:
            _check(command, key, around.replace("{}", "[{}]", 1), item, inner)
    elif kind.told.get("paths"):
        if not isinstance(value, str | list) or any(not isinstance(path, str) for path in [*value]):
            raise UserError(f"{command}: {shown}: expected a path, or a list of paths")
        for path in [value] if isinstance(value, str) else value:
            _check_text(command, shown, path, kind.told)
    elif kind.told.get("numbers"):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise UserError(f"{command}: {shown}: expected a number, or a list of numbers")
            _check_number(command, shown, number, kind.told)
    elif kind.type in LEAVES and not isinstance(value, LEAVES[kind.type]):
        raise UserError(f"{command}: {shown}: expected {SAID[kind.type]} in its place")
    else:
        for leaf in _leaves(command, shown, value):
            if isinstance(leaf, str):
                _check_text(command, shown, leaf, kind.told)
            elif isinstance(leaf, int | float) and not isinstance(leaf, bool):
                _check_number(command, shown, leaf, kind.told)


def _as_typed(value: Any) -> str:
    """A value as the user may have typed it, near enough for a message."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_as_typed, value[:20])) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_as_typed(item)}" for key, item in list(value.items())[:20]) + "}"
    return str(value) if str(value).strip() else f"'{value}'"


def _leaves(command: str, shown: str, value: Any, depth: int = 0) -> Iterator[Any]:
    """What a value holds in the end, of any type. Raises UserError for what is nested too deeply."""
    if depth > MOST_DEPTH:
        raise UserError(f"{command}: {shown}: lists and mappings are nested more than {MOST_DEPTH} deep")
    if isinstance(value, dict | list):
        for item in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            yield from _leaves(command, shown, item, depth + 1)
    else:
        yield value


def _check_name(command: str, key: str, name: Any) -> None:
    """Names in mappings become names of directories and columns."""
    text = str(name)
    if not text.strip() or "/" in text or text in (".", "..") or len(text) > 100:
        raise UserError(
            f"{command}: {key}={{{shortened(text)}:...}}: expected a name of at most 100 characters, none of them '/'"
        )
    check_letters(command, f"{key}={{{text!r}:...}}", text)


def _check_text(command: str, shown: str, text: str, told: Mapping[str, Any]) -> None:
    if not text.strip():
        raise UserError(f"{command}: {shown} holds an empty text; expected one that says something, or leave it out")
    if len(text) > MOST_TEXT:
        raise UserError(f"{command}: {shown} has {len(text):,} characters; at most {MOST_TEXT:,} are read")
    check_letters(command, shown, text)
    if "choices" in told and text not in told["choices"]:
        known = told["choices"]
        close = get_close_matches(shortened(text), known, n=1)
        hint = f". Did you mean '{close[0]}'?" if close else ""
        raise UserError(f"{command}: {shown}: expected one of {', '.join(known)}{hint}")


def _check_number(command: str, shown: str, number: float, told: Mapping[str, Any]) -> None:
    expected = range_text(told, isinstance(number, float))
    if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f"{command}: {shown} is not a finite number; expected {expected or 'one'}")
    fits = (
        told.get("least", number) <= number <= told.get("most", number)
        and ("above" not in told or number > told["above"])
        and ("below" not in told or number < told["below"])
    )
    if not fits:
        raise UserError(f"{command}: {shown}: expected {expected}")


def range_text(told: Mapping[str, Any], real: bool = False) -> str:
    """The range of a number in words; empty where there is none. real: of numbers with a fraction."""
    if real and {"least", "most"} <= told.keys():
        return f"a number from {_number(told['least'])} to {_number(told['most'])}"
    words = {"least": "at least", "above": "more than", "most": "at most", "below": "less than"}
    return " and ".join(f"{text} {_number(told[key])}" for key, text in words.items() if key in told)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
