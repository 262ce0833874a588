"""From a command and its overrides to a typed config, with errors that name the nearest valid key.

The schema is the one place that knows what a value may be: the type of each field, and in its metadata the range of
its numbers and the choice of its words. `checked_config` holds what was composed against it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any, get_args, get_origin

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.kinds import kind_of
from recipes.ranges import check_letters, check_ranges, shortened
from recipes.study_schema import SCHEMAS
from toolkit.base.errors import UserError, nearest
from vag_core.config import ACTIONS, TOKENIZERS, VIDEOS

MOST_WORD = 32_768  # characters of a word; Hydra reads a few thousand a second
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
SIMPLE = re.compile(r"[A-Za-z0-9_./+-]*")  # what no grammar minds
LISTED = re.compile(rf"""(?:{QUOTED.pattern}|[^,])+""", re.DOTALL)
PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")  # what Hydra takes as a text as it stands, but for
WORDS = ("null", "true", "false", "nan", "inf")
LISTS_NEED_QUOTES = (
    "in a list, texts with [ ] { } , and in a mapping also those with = ( ) : need quotes of their own: "
    "real=['runs (1)/a','b'], train=['optim.steps=3']"
)
# What hydra and OmegaConf raise at words that they cannot read; the plain ones come from conversions inside them.
UNREADABLE = (HydraException, OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError)


def file_name(command: str) -> str:
    """`train-generator` -> `train_generator`: the command's YAML file, and its module in most cases."""
    return command.replace("-", "_").replace(" ", "_")


def compose_config(command: str, overrides: list[str]) -> DictConfig:
    """The command's config with overrides. Raises UserError that names a wrong key, choice, type or value."""
    _store_schemas()
    for word in overrides:
        check_word(command, word)
    overrides = [_as_meant(command, word) for word in overrides]
    with initialize_config_module("recipes.configs", version_base="1.3"):
        primary = file_name(command)
        parsed = [_parse(command, word) for word in overrides]
        groups = _keys_and_groups(primary)[1]
        chosen = [one for one in parsed if one.key_or_group in groups]
        for override in chosen:
            _check_key(command, override, [], groups)
        try:
            keys, _ = _keys_and_groups(primary, *(str(one.input_line) for one in chosen))
            for override in parsed:
                _check_key(command, override, keys, groups)
            return compose(primary, overrides)
        except UNREADABLE as error:
            raise UserError(f"{command}: {_first_line(error)}") from error


@cache
def _store_schemas() -> None:
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(f"{file_name(name)}_schema", node=schema)
    kinds: Any = {"action": ACTIONS, "video": VIDEOS, "tokenizer": TOKENIZERS}
    for name, schemas in kinds.items():
        for kind, schema in schemas.items():
            store.store(kind, group=f"{name}_schema", node=schema)


def checked_config(command: str, overrides: list[str]) -> DictConfig:
    """As `compose_config`; also raises UserError for a value that is missing, out of range, or can not be meant."""
    return check_config(command, compose_config(command, overrides))


def check_config(command: str, config: DictConfig) -> DictConfig:
    """The same config. Raises UserError for a value that is missing, out of range, or can not be meant."""
    if config.get("dry_run") and OmegaConf.is_missing(config, "dataset"):
        config.dataset = []
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{command}: {missing[0]}=... is required; see vag {command} --help")
    plain: Any = OmegaConf.to_container(config)
    check_ranges(command, plain)
    return config


def command_words(command: str, config: dict[str, Any]) -> list[str]:
    """The overrides that make a config what it is, as they are typed; not where it writes to."""
    default: Any = OmegaConf.to_container(compose_config(command, []))
    return [
        shlex.quote(word)
        for key in config
        if key not in ("out", "overwrite", "resume") and config[key] != default.get(key)
        for word in _words_of(key, config[key], default.get(key))
    ]


def _words_of(key: str, value: Any, default: Any) -> list[str]:
    """Of a part with options of its own, those that differ."""
    if isinstance(value, dict) and isinstance(default, dict) and default and value.keys() == default.keys():
        differing = [name for name in value if value[name] != default[name]]
        return [word for name in differing for word in _words_of(f"{key}.{name}", value[name], default[name])]
    return [f"{key}={typed(value)}"]


def typed(value: Any) -> str:
    """A value in Hydra's grammar, whatever letters it holds."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_typed_key(str(key))}:{typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(typed, value)) + "]"
    if isinstance(value, str):
        return QuotedString(value, Quote.double).with_quotes()
    return json.dumps(value)


def listed(values: Iterable[Any]) -> str:
    """Paths or other texts as a list in Hydra's grammar, with quotes where they need them."""
    texts = (str(value) for value in values)
    plain = (text if PLAIN.fullmatch(text) and text.lower() not in WORDS else typed(text) for text in texts)
    return f"[{','.join(plain)}]"


def _typed_key(key: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", key)


def options_of(group: str) -> list[str]:
    """The choices of a config group."""
    with initialize_config_module("recipes.configs", version_base="1.3"):
        return GlobalHydra.instance().config_loader().get_group_options(group)


def choices_of(command: str, group: str) -> list[str]:
    """The choices of a group that are made for a command: experiments name it in their first lines."""
    with initialize_config_module("recipes.configs", version_base="1.3"):
        return _choices(command, group)


@cache
def _choices(command: str, group: str) -> list[str]:
    names = GlobalHydra.instance().config_loader().get_group_options(group)
    if group != "experiment":
        return names
    folder = resources.files("recipes.configs") / "experiment"
    return [name for name in names if f"vag {command} experiment=" in (folder / f"{name}.yaml").read_text("utf-8")]


def groups_of(command: str) -> dict[str, str | None]:
    """The config groups of a command, with the choice that it has without being told."""
    _store_schemas()
    with initialize_config_module("recipes.configs", version_base="1.3"):
        config: Any = compose(file_name(command), return_hydra_config=True)
        return {name: choice for name, choice in config.hydra.runtime.choices.items() if not name.startswith("hydra")}


# ------------------------------------------------------------------------------------------------------ single words


def check_word(command: str, word: str) -> None:
    """Raise UserError for what can be no override, before a parser sees it; resolvers of OmegaConf are never run."""
    if not word.strip():
        raise UserError(f"{command}: got an empty word; expected key=value")
    shown = repr(shortened(word))
    if len(word) > MOST_WORD:
        raise UserError(f"{command}: {shown} has {len(word):,} characters; at most {MOST_WORD:,} are read")
    check_letters(command, shown, word)
    key, sign, value = word.partition("=")
    if key.lstrip("+").startswith("~"):
        raise UserError(f"{command}: keys are neither added nor deleted, got {shown}; expected key=value")
    if not sign or not key.strip():
        raise UserError(f"{command}: expected key=value, got {shown}")
    if not value.strip():
        raise UserError(f"{command}: {shown} gives no value; expected one after '=', or leave the key out")


def quoted(text: str) -> str:
    """A text that Hydra takes as it is."""
    return QuotedString(text, Quote.single).with_quotes()


def _as_meant(command: str, word: str) -> str:
    """Two things that Hydra's grammar asks for and nobody types.

    A mapping that takes any key gets its `++`. A text gets its quotes, also in a list: a path or an instruction may
    hold commas, brackets and equals signs. `null` and what is quoted by hand stay as they are.
    """
    key, _, value = word.partition("=")
    kind = kind_of(command, key.strip().lstrip("+"))
    if kind is None:
        return word
    value = value.strip()
    a_list = kind.type is Any and value.startswith("[") and value.endswith("]")
    if a_list or (get_origin(kind.type) is list and get_args(kind.type) == (str,)):
        value = _list_as_meant(value)
    elif kind.is_text and value != "null" and not QUOTED.fullmatch(value):
        value = quoted(value)
    if kind.open or get_origin(kind.type) is dict:
        key = "++" + key.strip().lstrip("+")
    return f"{key}={value}"


def _list_as_meant(value: str) -> str:
    """A list of texts, of which those that Hydra could not read get quotes; commas part them, unless quoted by hand."""
    inner = value[1:-1]
    if not (value.startswith("[") and value.endswith("]")) or set("[]{}") & set(inner):
        return value
    texts = [text.strip() for text in LISTED.findall(inner)]
    return f"[{','.join(text if SIMPLE.fullmatch(text) or QUOTED.fullmatch(text) else quoted(text) for text in texts)}]"


def _parse(command: str, word: str) -> Override:
    shown = repr(shortened(word))
    try:
        parsed = OverridesParser.create().parse_override(word)
    except UNREADABLE as error:
        value = word.partition("=")[2]
        hint = f"; {LISTS_NEED_QUOTES}" if any(bracket in value for bracket in "[{(") else ""
        raise UserError(f"{command}: expected key=value, got {shown}: {_first_line(error)}{hint}") from error
    if parsed.is_sweep_override():
        raise UserError(
            f"{command}: {shown} gives several values; expected one, a list [a,b], or a text in quotes inside quotes "
            "of the shell"
        )
    return parsed


@cache
def _keys_and_groups(primary: str, *chosen: str) -> tuple[list[str], list[str]]:
    """Dotted keys of a command's config with these choices, and its groups. Needs Hydra to be initialised."""
    config: Any = compose(primary, [*chosen], return_hydra_config=True)
    groups = [name for name in config.hydra.runtime.choices if not name.startswith("hydra")]
    values: Any = OmegaConf.to_container(config)
    keys = _keys({name: value for name, value in values.items() if name != "hydra"})
    return [key for key in keys if key not in groups], groups


def _keys(values: Any, prefix: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{name}.")
    return found


def _check_key(command: str, override: Override, keys: list[str], groups: list[str]) -> None:
    key, shown = override.key_or_group, repr(shortened(str(override.input_line)))
    if override.package is not None:
        raise UserError(f"{command}: {shown}: keys have no '@'; expected key=value")
    kind = kind_of(command, key)
    is_open = kind is not None and (kind.open or get_origin(kind.type) is dict)
    if is_open and not override.is_delete():
        return  # what it holds is checked when all is composed, and by who reads it
    if override.is_add() or override.is_force_add() or override.is_delete():
        raise UserError(f"{command}: keys are neither added nor deleted, got {shown}; expected key=value")
    if key in groups:
        options = _choices(command, key)
        if override.value() not in options:
            chosen = shortened(str(override.value()))
            raise UserError(f"{command}: {key}={chosen} does not exist. {nearest(chosen, options)}")
        return
    if key not in keys:
        raise UserError(f"{command}: unknown key '{shortened(key)}'. {nearest(shortened(key), [*keys, *groups])}")


def _first_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "too deeply nested"
    text = str(error.__cause__ or error) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    where = next((line for line in lines if line.startswith("full_key:")), "")
    if not lines or lines[0] == "None" or lines[0].startswith("LexerNoViableAlt"):  # what the parser says of a letter
        return "cannot be read"
    said = f"{lines[0]} ({where.replace('full_key: ', '')})" if where else lines[0]
    return shortened(said, 400)


# ------------------------------------------------------------------------------------------------- what was composed
