"""Pre- and post-processors of a policy checkpoint: registered steps, their known configs, and their statistics."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline, ProcessorStepRegistry
from lerobot.utils.import_utils import register_third_party_plugins
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from policies.action_steps import check_steps
from policies.checkpoint_config import (
    LAYOUT,
    MOST_CONFIG_BYTES,
    MOST_INNER,
    MOST_SIZE,
    POSTPROCESSOR,
    PREPROCESSOR,
    STRICT,
    Loading,
    Names,
    allow_hint,
    check_value,
    defaults_of,
    first_words,
    repositories_of,
)
from policies.known_types import (
    INSTRUCTION_EMBEDDING,
    INSTRUCTION_TOKENIZER,
    NORMALIZER,
    POLICY_TYPES,
    RELATIVE,
    STEPS,
    UNNORMALIZER,
)
from policies.weight_layouts import MIGRATION
from toolkit.base.errors import UserError, nearest
from toolkit.base.reading import read_json
from vag_core.checkpoint import check_finite, read_shapes

# Statistics that each normalisation mode divides by; without them LeRobot silently leaves a feature as it is.
NEEDED = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}
MOST_STEPS = 64
MOST_NAME = 100  # letters of a pipeline's name, which names files
MOST_STATE_NUMBERS = 10_000_000  # of the statistics of one step
_STATE_FILE = re.compile(r"[\w-][\w.-]*\.safetensors")


@contextmanager
def remote_code(allowed: bool, directory: Path) -> Iterator[None]:
    """Inside, transformers runs no Python out of a repository and asks nobody whether it may, unless it is allowed.

    LeRobot's classes call it without saying, and then it asks at the terminal.
    """
    if allowed or importlib.util.find_spec("transformers") is None:
        yield
        return
    from transformers import dynamic_module_utils as dynamic

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise UserError(
            f"{directory}: what it names needs Python out of a repository (trust_remote_code); if you trust it: "
            "allow_remote_code=true"
        )

    kept = dynamic.get_class_in_module, dynamic.get_cached_module_file, dynamic.TIME_OUT_REMOTE_CODE
    dynamic.get_class_in_module = dynamic.get_cached_module_file = refuse
    dynamic.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic.get_class_in_module, dynamic.get_cached_module_file, dynamic.TIME_OUT_REMOTE_CODE = kept


def load_processors(
    config: PreTrainedConfig, directory: Path, device: str, loading: Loading = STRICT
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Pre- and post-processor of a checkpoint.

    Raises UserError for a step that is not known or allowed, a dotted path, a config that the step does not have, a
    field that names another repository, a state file outside the directory, and for steps or statistics that the
    policy needs and the file lacks.
    """
    known = POLICY_TYPES.get(config.type)
    importlib.import_module(type(config).__module__.rpartition(".")[0])  # whose steps register themselves
    features = dict(config.input_features or {}), dict(config.output_features or {})
    for name, needed, seen in (
        (PREPROCESSOR, known.before if known else (), features[0] | features[1]),  # actions too, in training
        (POSTPROCESSOR, known.after if known else (), features[1]),
    ):
        _check_pipeline(config, directory / name, needed, seen, loading)
    try:
        with remote_code(loading.allow_remote_code, directory):
            processors = make_pre_post_processors(
                config,
                pretrained_path=str(directory),
                preprocessor_overrides={"device_processor": {"device": device}},
            )
        check_steps(processors, config)
        return processors
    except UserError:
        raise
    except Exception as error:  # every step has requirements of its own
        raise UserError(f"{directory}: cannot load the processors ({first_words(error)}); expected {LAYOUT}") from error


def _check_pipeline(
    config: PreTrainedConfig,
    path: Path,
    needed: tuple[str, ...],
    features: dict[str, PolicyFeature],
    loading: Loading,
) -> None:
    if not path.is_file():
        raise UserError(
            f"{path}: not found, so the processors cannot be loaded; expected {LAYOUT}. Where statistics are among the "
            f"weights, as before LeRobot 0.4: {MIGRATION} {path.parent}"
        )
    values = read_json(path, dict, MOST_CONFIG_BYTES)
    steps = values.get("steps")
    if not isinstance(steps, list) or len(steps) > MOST_STEPS:
        raise UserError(f"{path}: expected 'steps', a list of at most {MOST_STEPS}")
    if not isinstance(name := values.get("name", ""), str) or len(name) > MOST_NAME:
        raise UserError(f"{path}: 'name' is {name!r:.80}; expected a text of at most {MOST_NAME} letters")
    names = [_check_step(config, path, place, entry, loading) for place, entry in enumerate(steps)]
    known = POLICY_TYPES.get(config.type)
    conditional = [
        step
        for step, field in (known.if_set.items() if known else ())
        if getattr(config, field, False) and path.name == (PREPROCESSOR if step == RELATIVE else POSTPROCESSOR)
    ]
    if path.name == PREPROCESSOR and config.type in ("diffusion", "diffusion_compact") and config.env_state_feature:
        conditional.append(INSTRUCTION_EMBEDDING)  # this project's own: the instruction enters as that feature
    for step in (*needed, *conditional):
        if step not in names:
            raise UserError(
                f"{path}: no step '{step}', which a {config.type} policy needs; the checkpoint is damaged, or of "
                "another version of LeRobot"
            )
    own, foreign = (NORMALIZER, UNNORMALIZER) if path.name == PREPROCESSOR else (UNNORMALIZER, NORMALIZER)
    for step, most in ((own, 1), (foreign, 0)):
        if names.count(step) > most:
            raise UserError(
                f"{path}: has {names.count(step)} steps '{step}', expected {'one' if most else 'none'}; "
                "the numbers would be scaled more than once"
            )
    for entry, name in zip(steps, names, strict=True):
        if name in (NORMALIZER, UNNORMALIZER):
            _check_statistics(config, path, entry, features, pads=known is not None and known.pads)
        elif name in (INSTRUCTION_TOKENIZER, INSTRUCTION_EMBEDDING):
            _check_own_step(config, path, name, entry.get("config") or {})


def _check_step(config: PreTrainedConfig, path: Path, place: int, entry: Any, loading: Loading) -> str:
    """The step's name. Raises UserError for anything but a registered step with a config that it has."""
    where = f"{path}: step {place}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {type(entry).__name__}; expected a mapping with 'registry_name'")
    if "class" in entry:
        raise UserError(
            f"{where} names the Python class '{str(entry['class'])[:100]}', which would be imported and called; "
            "only registered steps are loaded (registry_name)"
        )
    if unknown := sorted(entry.keys() - {"registry_name", "config", "state_file"}):
        raise UserError(f"{where} has the key '{unknown[0][:80]}'; expected registry_name, config, state_file")
    name, values = entry.get("registry_name"), entry.get("config", {})
    if not isinstance(name, str) or (name not in STEPS and name not in loading.allow):
        shown = str(name)[:80]
        raise UserError(
            f"{where} is '{shown}', which is no step of a known policy.{_close(shown, STEPS)}{allow_hint(shown)}"
        )
    if name not in STEPS and name not in ProcessorStepRegistry.list():
        register_third_party_plugins()
    if not isinstance(values, dict):
        raise UserError(f"{where} ({name}): 'config' is {type(values).__name__}; expected a mapping")
    if name in STEPS and (unknown := sorted(values.keys() - STEPS[name])):
        raise UserError(
            f"{where} ({name}): unknown key '{unknown[0][:80]}' in its config. "
            f"{nearest(unknown[0], STEPS[name]) if STEPS[name] else 'It has none.'}"
        )
    for key, value in values.items():
        check_value(path, key, value, MOST_INNER if key.endswith("pixels") else 10 * MOST_SIZE)
    if values.get("trust_remote_code", name == "action_tokenizer_processor") and not loading.allow_remote_code:
        raise UserError(
            f"{where} ({name}) runs Python out of a repository (trust_remote_code); if you trust it: "
            "allow_remote_code=true"
        )
    own = repositories_of(config.type, defaults_of(type(config)))
    own |= {value for value in vars(config).values() if isinstance(value, str)}  # which were checked before
    names = Names(path, own, loading.allow_repo, closed=name in STEPS)
    for key, value in values.items():
        if name != INSTRUCTION_EMBEDDING:  # of a text encoder on this disk nothing is run, see `toolkit.data.text`
            names.check(key, value)
    _check_state_file(path, where, entry.get("state_file"), "state_file" in entry)
    return name


def _check_state_file(path: Path, where: str, name: Any, given: bool) -> None:
    if not given:
        return
    if not isinstance(name, str) or not _STATE_FILE.fullmatch(name):
        raise UserError(
            f"{where}: state_file is '{str(name)[:100]}'; expected the plain name of a .safetensors file beside it"
        )
    try:
        read_shapes(path.with_name(name), MOST_STATE_NUMBERS)
    except ValueError as error:
        raise UserError(str(error).partition(", more with max_parameters")[0]) from error


def mode_of(config: PreTrainedConfig, feature: PolicyFeature) -> NormalizationMode:
    """How a policy normalises a feature."""
    modes = {str(getattr(kind, "value", kind)): mode for kind, mode in cast(Any, config).normalization_mapping.items()}
    return modes.get(feature.type.value, NormalizationMode.IDENTITY)


def _check_statistics(
    config: PreTrainedConfig, path: Path, entry: dict[str, Any], features: dict[str, PolicyFeature], pads: bool
) -> None:
    """Raise UserError unless a (un)normaliser has finite statistics for every feature that the policy normalises.

    LeRobot leaves a feature without them as it is, so actions would not be in the units of the robot.
    """
    values, name = entry.get("config") or {}, entry["registry_name"]
    tensors: dict[str, Tensor] = {}
    if "state_file" in entry:
        file = path.with_name(entry["state_file"])
        try:
            tensors = load_file(file)
            check_finite(tensors, f"{file}: ")
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(
                first_words(error) if str(file) in str(error) else f"{file}: {first_words(error)}"
            ) from error
    own, modes, only = (values.get(key) for key in ("features", "norm_map", "normalize_observation_keys"))
    if not isinstance(own, dict) or not isinstance(modes, dict):
        raise UserError(f"{path}: {name} lacks 'features' or 'norm_map'; expected both")
    for key, feature in features.items():
        mode = mode_of(config, feature)
        needed = NEEDED.get(mode)
        if needed is None:
            continue
        told = own.get(key)
        kind = told.get("type") if isinstance(told, dict) else None
        skipped = only is not None and feature.type is not FeatureType.ACTION and key not in only
        if kind != feature.type.value or modes.get(kind) != mode.value or skipped:
            raise UserError(f"{path}: {name} does not normalise '{key}' as config.json says ({mode.value})")
        width = (feature.shape[0], 1, 1) if feature.type is FeatureType.VISUAL else tuple(feature.shape)
        for statistic in needed:
            found = tensors.get(f"{key}.{statistic}")
            if found is None:
                raise UserError(
                    f"{path}: {name} has no statistics '{statistic}' of '{key}', so it would leave that as it is; "
                    "the checkpoint is damaged, or not trained on any data yet"
                )
            if not pads and tuple(found.shape) not in (
                width,
                width[:1] if feature.type is FeatureType.VISUAL else width,
            ):
                raise UserError(
                    f"{path}: statistics '{statistic}' of '{key}' have shape {tuple(found.shape)}, expected {width}"
                )


def _check_own_step(config: PreTrainedConfig, path: Path, name: str, values: dict[str, Any]) -> None:
    """Raise UserError unless a step of this project has the sizes of its policy."""
    if name == INSTRUCTION_TOKENIZER:
        sizes = {"length": "tokenizer_max_length", "buckets": "tokenizer_buckets"}
        expected = {key: getattr(config, field, None) for key, field in sizes.items()}
    else:
        feature = config.env_state_feature
        expected = {"width": None if feature is None else feature.shape[0]}
        if not isinstance(values.get("path"), str | None):
            raise UserError(f"{path}: {name}: 'path' is no text; expected a directory or null")
    for key, value in expected.items():
        if value is not None and (values.get(key) != value or isinstance(values.get(key), bool)):
            raise UserError(f"{path}: {name}: '{key}' is {str(values.get(key))[:40]}; config.json says {value}")


def _close(name: str, known: Collection[str]) -> str:
    told = nearest(name, known)
    return f" {told}" if told.startswith("Did you mean") else ""
