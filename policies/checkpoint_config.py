"""What a policy checkpoint's `config.json` may say: known types and values, no other repositories, no absurd sizes."""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Collection
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, cast

import draccus
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.utils.import_utils import register_third_party_plugins

import policies.diffusion_compact
import policies.instruction_embedding
import policies.pi05_compact
import policies.vag_policy  # noqa: F401  (types and steps register themselves)
from policies.known_types import (
    FIXED,
    POLICY_TYPES,
    TEXTS,
    WORDS,
    PolicyType,
)
from toolkit.base.errors import UserError, nearest
from toolkit.base.reading import read_json
from vag_core.checkpoint import MOST_PARAMETERS

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
LAYOUT = f"{CONFIG}, {WEIGHTS}, {PREPROCESSOR}, {POSTPROCESSOR}"
MOST_CONFIG_BYTES = 1 << 20
MOST_ITEMS, MOST_LETTERS = 10_000, 4_000  # of a list, of a text
# Largest whole numbers: of a field, or a hundred times its default; inside the configs of other libraries, which hold
# vocabularies; of a picture's side, since networks try a picture of that size out as they are built.
MOST_SIZE, MOST_INNER, MOST_SIDE = 10_000, 10_000_000, 2_048
OF_PICTURES = ("shape", "resolution", "image_size", "resize")
INNER = (
    *("vlm_config", "florence_config", "video_dit_config", "action_dit_config", "dataset_feature_names"),
    "actor_learner_config",  # which holds a port
    "generator",  # of vag_policy, which vag_core checks field by field
)
_WORD = re.compile(r"[\w.+-]*(:\d+)?")


@dataclass(frozen=True)
class Loading:
    """What the user trusts a checkpoint with, beyond what this project knows.

    allow: policy types and processor steps by name. allow_repo: repositories and directories that its fields name.
    allow_remote_code: types whose code runs Python out of a repository. max_parameters: numbers that the file of
    weights may hold.
    """

    allow: tuple[str, ...] = ()
    allow_repo: tuple[str, ...] = ()
    allow_remote_code: bool = False
    max_parameters: int = MOST_PARAMETERS

    @classmethod
    def of(cls, config: Any) -> Loading:
        """From the options of a command. Raises UserError for a limit below 1."""
        if config.max_parameters < 1:
            raise UserError(f"max_parameters={config.max_parameters}: expected 1 or more")
        return cls(
            tuple(config.allow), tuple(config.allow_repo), bool(config.allow_remote_code), int(config.max_parameters)
        )


STRICT = Loading()


def read_config(directory: Path, loading: Loading = STRICT, types: Collection[str] | None = None) -> PreTrainedConfig:
    """The config of a checkpoint, for the CPU; types: the ones to take, None for every known or allowed one.

    Nothing is imported, downloaded or built that the checkpoint names. Raises UserError, one line, for what is no
    policy checkpoint, a type that is not known or allowed, a field that names a repository, and absurd values.
    """
    path = directory / CONFIG
    if not directory.is_dir():
        raise UserError(f"{directory}: not a directory; expected a policy checkpoint ({LAYOUT})")
    if not path.is_file():
        raise UserError(f"{directory}: no config.json; expected a policy checkpoint ({LAYOUT})")
    values = read_json(path, dict, MOST_CONFIG_BYTES)
    kind = values.pop("type", None)
    if kind is None:
        raise UserError(f"{path}: no 'type'; this is the checkpoint of something else, expected a policy of LeRobot")
    _check_type(path, kind, types or POLICY_TYPES.keys(), loading.allow if types is None else ())
    known, config_class = POLICY_TYPES.get(kind), PreTrainedConfig.get_choice_class(kind)
    defaults = defaults_of(config_class)
    fixed = FIXED | dict(known.fixed if known else {})
    values |= {name: value for name, value in fixed.items() if name in defaults}
    _check_remote_code(path, kind, known, values, loading)
    _check_fields(path, kind, config_class, values)
    names = Names(path, repositories_of(kind, defaults), loading.allow_repo, closed=known is not None)
    _check_values(path, values, defaults)
    for name, value in values.items():
        names.check(name, value, defaults.get(name))
    try:
        config = draccus.decode(config_class, values)
    except Exception as error:  # draccus has its own family of errors; a config class checks what it likes
        # Of a config class that refuses a value, draccus tells only that it does.
        told = error.__cause__ if "instantiate" in str(error) and error.__cause__ is not None else error
        raise UserError(f"{path}: not a valid {kind} configuration ({first_words(told)})") from error
    check_sizes(path, config)  # what was text may be a number now
    return config


def check_sizes(where: str | Path, config: PreTrainedConfig) -> None:
    """Raise UserError that begins with `where` if a number, text, list or feature is larger than any policy's is."""
    _check_values(where, draccus.encode(config), defaults_of(type(config)))
    for key, feature in {**(config.input_features or {}), **(config.output_features or {})}.items():
        _check_shape(where, key, feature)


def _check_type(path: Path, kind: Any, expected: Collection[str], allowed: Collection[str]) -> None:
    if isinstance(kind, str) and kind in allowed:
        if kind not in PreTrainedConfig.get_known_choices():
            register_third_party_plugins()
        if kind not in PreTrainedConfig.get_known_choices():
            raise UserError(f"{path}: allow names the type '{kind}', but no installed package registers it")
    elif not isinstance(kind, str) or kind not in expected:
        shown = str(kind)[:80]
        raise UserError(
            f"{path}: checkpoint of type '{shown}', expected a policy. {nearest(shown, expected)}"
            + allow_hint(shown) * (len(expected) == len(POLICY_TYPES))
        )


def _check_fields(path: Path, kind: str, config_class: type, values: dict[str, Any]) -> None:
    """Raise UserError for fields that the type does not have, as of an older or newer LeRobot: draccus has no hint."""
    own = {one.name for one in fields(cast(Any, config_class))}
    if unknown := sorted(values.keys() - own):
        shown = ", ".join(f"'{name[:40]}'" for name in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        version = importlib.metadata.version("lerobot")
        raise UserError(
            f"{path}: not a valid {kind} configuration, with fields that this one (LeRobot {version}) does not have: "
            f"{shown}; take a checkpoint that was published for it, or remove what does not change the network"
        )


def _check_remote_code(
    path: Path, kind: str, known: PolicyType | None, values: dict[str, Any], loading: Loading
) -> None:
    where = known.remote_code if known else False
    runs = where if isinstance(where, bool) else values.get(where) is not None
    if runs and not loading.allow_remote_code:
        by = "" if isinstance(where, bool) else f" named by '{where}'"
        raise UserError(
            f"{path}: a '{kind}' policy runs Python out of a repository{by} as it is loaded (trust_remote_code); "
            "if you trust it: allow_remote_code=true"
        )


def defaults_of(config_class: type) -> dict[str, Any]:
    """Field -> default of a config class."""
    result = {}
    for one in fields(cast(Any, config_class)):
        if one.init:
            made = one.default_factory() if one.default_factory is not MISSING else None
            result[one.name] = one.default if one.default is not MISSING else made
    return result


def repositories_of(kind: str, defaults: dict[str, Any]) -> set[str]:
    """What LeRobot's own code for a type names."""
    known = POLICY_TYPES.get(kind)
    own = {value for name, value in defaults.items() if isinstance(value, str) and name not in TEXTS | WORDS}
    return own | set(known.repositories if known else ())


@dataclass(frozen=True)
class Names:
    """Which texts a JSON file may hold: words, and the names of repositories that LeRobot or the user names."""

    path: Path
    own: set[str]
    allowed: tuple[str, ...]
    closed: bool = True  # a field that is not known to hold words is taken to name a repository

    def check(self, name: str, value: Any, default: Any = None) -> None:
        """Raise UserError if the value, or one inside it, names a repository or directory that is not allowed."""
        if value is None or isinstance(value, bool | int | float) or name in TEXTS:
            return
        if isinstance(value, list):
            for item in value:
                self.check(name, item)
            return
        if isinstance(value, dict):
            for key, item in value.items():
                if key in ("auto_map", "custom_pipelines", "trust_remote_code"):
                    raise UserError(f"{self.path}: '{name}' holds '{key}', which names code; expected none")
                self.check(name, item)
            return
        if value in ("", default) or value in self.own or value in self.allowed:
            return
        if (name in WORDS or not self.closed) and _WORD.fullmatch(value):
            return
        own = f"; LeRobot's own is '{default}'" if default else ""
        raise UserError(
            f"{self.path}: '{name}' names another repository or directory, '{value[:100]}'{own}; "
            f"if you trust it: allow_repo=[{value[:100]}]"
        )


def _check_values(path: str | Path, values: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise UserError for numbers, texts and lists of a size that no policy has."""
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(default, int | float) and isinstance(value, str):
            raise UserError(f"{path}: '{name}' is the text '{value[:40]}'; expected a number")
        numbers = [x for x in (default if isinstance(default, list | tuple) else [default]) if isinstance(x, int)]
        most = max([MOST_SIZE, *(100 * abs(x) for x in numbers)])
        if name in INNER:
            most = MOST_INNER
        elif any(part in name for part in OF_PICTURES) and name not in ("input_features", "output_features"):
            most = MOST_SIDE
        check_value(path, name, value, most)


def check_value(path: str | Path, name: str, value: Any, most: int) -> None:
    """Raise UserError if a number in a JSON value is not finite or above `most`, or a text or list is too long."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int):
        if abs(value) > most:
            raise UserError(f"{path}: '{name}' is {str(value)[:40]}; expected at most {most}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{path}: '{name}' is {value}; expected a finite number")
    elif isinstance(value, str):
        if len(value) > MOST_LETTERS:
            raise UserError(f"{path}: '{name}' has {len(value)} letters; expected at most {MOST_LETTERS}")
    else:
        if len(value) > MOST_ITEMS:
            raise UserError(f"{path}: '{name}' has {len(value)} items; expected at most {MOST_ITEMS}")
        for item in value.values() if isinstance(value, dict) else value:
            check_value(path, name, item, most)


def _check_shape(path: str | Path, key: str, feature: PolicyFeature) -> None:
    shape, picture = tuple(feature.shape), feature.type is FeatureType.VISUAL
    most = MOST_SIDE if picture else MOST_SIZE
    if (
        not 1 <= len(shape) <= 4
        or not all(isinstance(n, int) and 1 <= n <= most for n in shape)
        or (picture and len(shape) != 3)
    ):
        raise UserError(
            f"{path}: feature '{key}' has shape {list(shape)[:8]}; expected {'3' if picture else '1 to 4'} whole "
            f"numbers from 1 to {most}"
        )


def allow_hint(name: str) -> str:
    return f" If you trust the package that has it: allow=[{name}]" if re.fullmatch(r"\w[\w-]*", name) else ""


def first_words(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
