"""What `vag <command> --help` prints: every option with its default, help and range. Imports no torch."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from omegaconf import OmegaConf

from recipes.compose import choices_of, compose_config, groups_of, typed
from recipes.kinds import Kind, parts_of
from recipes.ranges import range_text
from recipes.study_schema import SCHEMAS

WIDTH, COLUMN = 120, 38
PLAIN = re.compile(r"[\w./<>-][\w./<>+-]*")  # texts that a user need not quote


def help_text(command: str, line: str, examples: Sequence[str], bare: str | None) -> str:
    """The whole page. line: what the command does; bare: the key of words without `=`."""
    config: Any = OmegaConf.to_container(compose_config(command, []))
    usage = f"usage: vag {command} {f'[{bare.upper()}] ' if bare else ''}[key=value ...]"
    page = [f"vag {command}: {line}", "", usage]
    if groups := groups_of(command):
        page += ["", "Groups, each a set of options under one name:"]
        for group, choice in groups.items():
            page += _entry(f"{group}={choice or 'null'}", f"one of {', '.join(choices_of(command, group))}")
    page += ["", "Options, with what they are if they are not given:"]
    for key, value, kind in _options(Kind(SCHEMAS[command], {}, False), config):
        page += _entry(f"{key}={_shown(value)}", _told(kind, required=value == "???"))
    return "\n".join([*page, "", "Examples:", *(f"  {example}" for example in examples)])


def _options(whole: Kind, values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Kind]]:
    """Dotted key, default and kind of every option that `values` has."""
    for name, kind in parts_of(whole).items():
        if name in values and is_dataclass(kind.type):
            yield from _options(kind, values[name], f"{prefix}{name}.")
        elif name in values:
            yield prefix + name, values[name], kind


def _told(kind: Kind, required: bool) -> str:
    notes = ["required"] if required else []
    notes += [f"one of {', '.join(kind.told['choices'])}"] if "choices" in kind.told else []
    notes += [text.removeprefix("a number from ")] if (text := range_text(kind.told, real=True)) else []
    notes += ["true or false"] if kind.type is bool else []
    return kind.told["help"] + (f" ({'; '.join(notes)})" if notes else "")


def _shown(value: Any) -> str:
    """A value as one types it."""
    if value == "???":
        return "..."
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) else typed(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_shown, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_shown(item)}" for key, item in value.items()) + "}"
    return typed(value)


def _entry(left: str, right: str) -> list[str]:
    """Two columns; what is too long for the first stands on lines of its own."""
    indent = " " * (COLUMN + 2)
    lines = textwrap.wrap(right, WIDTH, initial_indent=indent, subsequent_indent=indent)
    if len(left) < COLUMN:
        return [f"  {left:<{COLUMN}}{lines[0].strip()}", *lines[1:]]
    first = textwrap.wrap(left, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return [*first, *lines]
