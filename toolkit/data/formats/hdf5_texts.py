"""Where the instruction of an HDF5 episode stands: attributes, JSON in them, datasets of texts, a JSON file beside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.reading import read_json
from toolkit.data.formats.hdf5 import Hdf5File
from toolkit.data.formats.recording import INSTRUCTIONS, is_text

# Names of an instruction, the surest first; those after `INSTRUCTIONS` may be something else, so they are told.
LIKELY = ("task_description", "language_raw", "instructions", "prompt", "current_task", "task", "description", "goal")
MUST_BE_JSON = ("env_args", "problem_info")
MOST_BYTES, MOST_DEPTH = 1 << 20, 3
SHOWN = 6  # texts in an error

Text = tuple[str, str]  # place, such as attribute `ep_meta.lang`, and what stands there


def env_args(file: Hdf5File) -> dict[str, Any]:
    """What robomimic's attribute of `data` says of all episodes."""
    return read_attribute(file, file.attributes("data"), "env_args")


def read_attribute(file: Hdf5File, attributes: dict[str, Any], name: str) -> dict[str, Any]:
    """An attribute that holds a JSON object; {} if there is none. Raises UserError if it is damaged."""
    text = attributes.get(name)
    try:
        value = json.loads(text) if text else {}
        if not isinstance(value, dict):
            raise ValueError("expected an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file.path}: attribute '{name}' of 'data' is no JSON ({error})") from error
    return value


def instruction(file: Hdf5File, group: str, key: str | None, alone: bool) -> tuple[str, str]:
    """An episode's instruction, "" if none is found, and its place; without one, the texts that are there instead.

    key: the last part or all of the place that the user names. alone: the file holds this episode only.
    """
    seen: list[Text] = []
    for texts in _sources(file, group, alone):
        found = [(place, text) for place, text in texts if text]
        seen += found
        for name in [key] if key else [*INSTRUCTIONS, *LIKELY]:
            wanted = name.replace("/", ".").lower()
            for place, text in found:
                if f".{place.lower()}".endswith(f".{wanted}"):
                    return text, place
    told = [f"{place} = '{text[:60]}'" for place, text in seen if len(text) <= 300]
    return "", ", ".join(told[:SHOWN]) + (f" and {len(told) - SHOWN} more" if len(told) > SHOWN else "") or "none"


def _sources(file: Hdf5File, group: str, alone: bool) -> Iterator[list[Text]]:
    """Texts of the episode, then of all episodes, then of files beside it."""
    for place in dict.fromkeys((group, "data", "")):
        attributes = file.attributes(place)
        if place == "data":
            for name in MUST_BE_JSON:
                read_attribute(file, attributes, name)
        yield [text for name, value in attributes.items() for text in _flat(name, value)]
        names = file.datasets(place) if place == group else file.names(place)
        texts = {name: file.texts(f"{place}/{name}") for name in names}
        yield [text for name, values in texts.items() for text in _flat(name.replace("/", "."), values)]
    for path in _beside(file.path) if alone else ():
        with suppress(UserError):
            yield [text for name, value in read_json(path).items() for text in _flat(name, value)]


def _beside(path: Path) -> list[Path]:
    """JSON files about an episode: of its name, or the only ones in a folder of its own."""
    named = [path.with_suffix(".json"), path.parent.parent / "instructions" / f"{path.stem}.json"]
    own = list(path.parent.glob("*.json")) if len(list(path.parent.glob("*.h*5"))) == 1 else []
    return [one for one in dict.fromkeys([*named, *sorted(own)]) if one.is_file() and one.stat().st_size < MOST_BYTES]


def _flat(name: str, value: Any, depth: int = 0) -> Iterator[Text]:
    """Each text in a value, by its place; a list of letters, as LIBERO has, is one text, of other lists the first."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        letters = all(len(part) == 1 for part in value) and len(value) > 1
        value = "".join(value) if letters else next((part for part in value if part.strip()), "")
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return
    if isinstance(value, dict) and depth < MOST_DEPTH:
        for inner, part in value.items():
            yield from _flat(f"{name}.{inner}", part, depth + 1)
    elif is_text(value):
        text = value.strip()
        yield name, unquoted(text) if name.startswith("problem_info.") else text


def unquoted(text: str) -> str:
    """LIBERO writes the whole instruction in quotes; those inside of one, or at one end, belong to it."""
    inner = text[1:-1]
    return inner.strip() if text == f'"{inner}"' and '"' not in inner else text
