"""From a command and its overrides to a typed config, with errors that name the nearest valid key."""

from __future__ import annotations

import json
import shlex
from functools import cache
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.schema import SCHEMAS
from toolkit.errors import UserError, nearest

# Mappings that take any key.
OPEN = (
    *("policy.options", "image_keys", "checkpoints"),
    *("filters", "finetunes", "policy_train", "policy_finetune", "policy_steps"),
    *("feed_synthesize", "rounds"),
)


def file_name(command: str) -> str:
    """`train-generator` -> `train_generator`: the command's YAML file, and its module in most cases."""
    return command.replace("-", "_").replace(" ", "_")


def compose_config(command: str, overrides: list[str]) -> DictConfig:
    """The command's config with overrides. Raises UserError that names a wrong key, choice or type."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(f"{file_name(name)}_schema", node=schema)
    overrides = [_as_meant(word) for word in overrides]
    with initialize_config_module("recipes.configs", version_base="1.3"):
        primary = file_name(command)
        parsed = _parse(overrides)
        for override in parsed:
            _check_key(command, override, *_keys_and_groups(primary))
        try:
            return compose(primary, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{command}: {_first_line(error)}") from error


def command_words(command: str, config: dict[str, Any]) -> list[str]:
    """The overrides that make a config what it is, as they are typed; not where it writes to."""
    default: Any = OmegaConf.to_container(compose_config(command, []))
    told = [key for key in config if key not in ("out", "overwrite", "resume") and config[key] != default[key]]
    return [shlex.quote(f"{key}={_typed(config[key])}") for key in told]


def _typed(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    return json.dumps(value)


def options_of(group: str) -> list[str]:
    """The choices of a config group."""
    with initialize_config_module("recipes.configs", version_base="1.3"):
        return GlobalHydra.instance().config_loader().get_group_options(group)


def _is_open(key: str) -> bool:
    return key.startswith(tuple(f"{name}." for name in OPEN)) or key in OPEN


def _as_meant(word: str) -> str:
    """Two things that Hydra's grammar asks for and nobody types.

    A mapping that takes any key gets its `++`, and an instruction its quotes: it may hold commas and brackets.
    """
    key, _, value = word.partition("=")
    if _is_open(key):
        return f"++{word}"
    if key != "task" or value[:1] in ("'", '"') or value == "null":
        return word
    return f"{key}='" + value.replace("'", "\\'") + "'"


def _parse(overrides: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        listed = next((word for word in overrides if "[" in word and "=" in word.partition("=")[2]), None)
        hint = "" if listed is None else """; items of a list that hold '=' need quotes: train=['optim.steps=3']"""
        raise UserError(f"expected key=value, got: {_first_line(error)}{hint}") from error


@cache
def _keys_and_groups(primary: str) -> tuple[list[str], list[str]]:
    """Dotted keys of a command's config, and its config groups. Needs Hydra to be initialised."""
    config: Any = compose(primary, return_hydra_config=True)
    groups = [name for name in config.hydra.runtime.choices if not name.startswith("hydra")]
    values: Any = OmegaConf.to_container(config)
    return _keys({name: value for name, value in values.items() if name != "hydra"}), groups


def _check_key(command: str, override: Override, keys: list[str], groups: list[str]) -> None:
    key = override.key_or_group
    if _is_open(key) and any(key == known or key.startswith(f"{known}.") for known in keys):
        return  # what it holds is checked by who reads it
    if key in groups:
        options = GlobalHydra.instance().config_loader().get_group_options(key)
        if override.value() not in options:
            raise UserError(
                f"{command}: {key}={override.value()} does not exist. {nearest(str(override.value()), options)}"
            )
        return
    if not _is_open(key) and (override.is_add() or override.is_force_add() or override.is_delete()):
        raise UserError(
            f"{command}: keys are neither added nor deleted, got '{override.input_line}'; expected key=value"
        )
    if key not in keys:
        raise UserError(f"{command}: unknown key '{key}'. {nearest(key, [*keys, *groups])}")


AT_LEAST_ONE = {"episodes_per_task", "num_steps", "image_size", "workers", "batch_size", "gradient_accumulation"}
AT_LEAST_ONE |= {"log_every", "checkpoint_every", "steps", "max_steps", "num_inference_steps", "groups", "few"}
AT_LEAST_ONE |= {"real_per_task", "fed_few", "synthetic_per_task", "draws"}
AT_LEAST_ONE |= {"repeats", "num_frames", "large_gigabytes", "render_every", "frame_stride", "scenes_per_task"}
NOT_NEGATIVE = {"seed", "first_seed", "noise_scale", "learning_rate", "weight_decay", "warmup_steps"}
NOT_NEGATIVE |= {"threads", "lanes", "evaluation_lanes", "draw_shift"}


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise UserError for a number that no command can work with."""
    for key, value in config.items():
        if isinstance(value, dict):
            check_ranges(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            least = 1 if key in AT_LEAST_ONE else 0 if key in NOT_NEGATIVE else None
            if least is not None and not value >= least:
                raise UserError(f"{prefix}{key}={value}: expected at least {least}")


def _keys(values: Any, prefix: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{name}.")
    return found


def _first_line(error: BaseException) -> str:
    text = str(error.__cause__ or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    where = next((line for line in lines if line.startswith("full_key:")), "")
    return f"{lines[0]} ({where.replace('full_key: ', '')})" if where else lines[0]
