"""The one door for policy checkpoints: this project's and LeRobot's, from a directory or from the hub.

LeRobot's own loaders do what a checkpoint's JSON says: import a class by its dotted path, download and run what a field
names, build a network of any size. So the JSON is read here first and checked against what is known
(`known_types.py`), the weights' file is compared with the network before that is built, and only then is LeRobot asked.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, cast

import draccus
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline, ProcessorStepRegistry
from lerobot.utils.import_utils import register_third_party_plugins
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import policies.diffusion_compact
import policies.instruction_embedding
import policies.pi05_compact  # noqa: F401  (types and steps register themselves)
from policies.known_types import (
    FIXED,
    INSTRUCTION_EMBEDDING,
    INSTRUCTION_TOKENIZER,
    NORMALIZER,
    POLICY_TYPES,
    RELATIVE,
    STEPS,
    TEXTS,
    UNNORMALIZER,
    WORDS,
    PolicyType,
)
from toolkit.base.errors import UserError, nearest
from toolkit.base.reading import read_json
from vag_core.checkpoint import MOST_PARAMETERS, check_finite, load_network, read_shapes

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
LAYOUT = f"{CONFIG}, {WEIGHTS}, {PREPROCESSOR}, {POSTPROCESSOR}"

# Statistics that each normalisation mode divides by; without them LeRobot silently leaves a feature as it is.
NEEDED = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}

MOST_CONFIG_BYTES = 1 << 20
MOST_STEPS = 64
MOST_STATE_NUMBERS = 10_000_000  # of the statistics of one step
MOST_ITEMS, MOST_LETTERS = 10_000, 4_000  # of a list, of a text
# Largest whole numbers: of a field, or a hundred times its default; inside the configs of other libraries, which hold
# vocabularies; of a picture's side, since networks try a picture of that size out as they are built.
MOST_SIZE, MOST_INNER, MOST_SIDE = 10_000, 10_000_000, 2_048
OF_PICTURES = ("shape", "resolution", "image_size", "resize")
INNER = (
    *("vlm_config", "florence_config", "video_dit_config", "action_dit_config", "dataset_feature_names"),
    "actor_learner_config",  # which holds a port
)

_WORD = re.compile(r"[\w.+-]*(:\d+)?")
_STATE_FILE = re.compile(r"[\w-][\w.-]*\.safetensors")


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


# ---------------------------------------------------------------------------------------------------------- config.json


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
        raise UserError(f"{path}: no 'type'; this is the checkpoint of something else, expected a policy")
    _check_type(path, kind, types or POLICY_TYPES.keys(), loading.allow if types is None else ())
    known, config_class = POLICY_TYPES.get(kind), PreTrainedConfig.get_choice_class(kind)
    defaults = _defaults(config_class)
    fixed = FIXED | dict(known.fixed if known else {})
    values |= {name: value for name, value in fixed.items() if name in defaults}
    _check_remote_code(path, kind, known, values, loading)
    names = Names(path, _repositories(kind, defaults), loading.allow_repo, closed=known is not None)
    _check_values(path, values, defaults)
    for name, value in values.items():
        names.check(name, value, defaults.get(name))
    try:
        config = draccus.decode(config_class, values)
    except Exception as error:  # draccus has its own family of errors; a config class checks what it likes
        # Of a config class that refuses a value, draccus tells only that it does.
        told = error.__cause__ if "instantiate" in str(error) and error.__cause__ is not None else error
        raise UserError(f"{path}: not a valid {kind} configuration ({_reason(told)})") from error
    check_sizes(path, config)  # what was text may be a number now
    return config


def check_sizes(where: str | Path, config: PreTrainedConfig) -> None:
    """Raise UserError that begins with `where` if a number, text, list or feature is larger than any policy's is."""
    _check_values(where, draccus.encode(config), _defaults(type(config)))
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
            + _allow_hint(shown) * (len(expected) == len(POLICY_TYPES))
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


def _defaults(config_class: type) -> dict[str, Any]:
    """Field -> default of a config class."""
    result = {}
    for one in fields(cast(Any, config_class)):
        if one.init:
            made = one.default_factory() if one.default_factory is not MISSING else None
            result[one.name] = one.default if one.default is not MISSING else made
    return result


def _repositories(kind: str, defaults: dict[str, Any]) -> set[str]:
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
    if not 1 <= len(shape) <= 4 or not all(isinstance(n, int) and 1 <= n <= most for n in shape) or (picture and len(shape) != 3):
        raise UserError(
            f"{path}: feature '{key}' has shape {list(shape)[:8]}; expected {'3' if picture else '1 to 4'} whole "
            f"numbers from 1 to {most}"
        )


# -------------------------------------------------------------------------------------------------------------- weights


def load_weights(config: PreTrainedConfig, directory: Path, loading: Loading = STRICT) -> PreTrainedPolicy:
    """The policy of a config with the weights of its directory, on the CPU.

    Raises UserError if the file is missing, damaged or above `max_parameters`, if the config asks for another network
    than the file holds, before that is built, or if a weight is missing, unexpected, of another shape or not finite.
    """
    try:
        policy_class = get_policy_class(config.type)
        with _remote_code(loading.allow_remote_code, directory):
            return load_network(
                lambda: policy_class(copy.deepcopy(config)),
                directory / WEIGHTS,
                loading.max_parameters,
                f"{config.type} policy",
            )
    except UserError:
        raise
    except Exception as error:  # every policy type has requirements of its own
        text = _reason(error)
        if not text.startswith(str(directory)):
            text = f"{directory}: LeRobot cannot build this '{config.type}' policy ({text})"
        raise UserError(text) from error


@contextmanager
def _remote_code(allowed: bool, directory: Path) -> Iterator[None]:
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


# ----------------------------------------------------------------------------------------------------------- processors


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
        with _remote_code(loading.allow_remote_code, directory):
            return make_pre_post_processors(
                config,
                pretrained_path=str(directory),
                preprocessor_overrides={"device_processor": {"device": device}},
            )
    except UserError:
        raise
    except Exception as error:  # every step has requirements of its own
        raise UserError(f"{directory}: cannot load the processors ({_reason(error)}); expected {LAYOUT}") from error


def _check_pipeline(
    config: PreTrainedConfig,
    path: Path,
    needed: tuple[str, ...],
    features: dict[str, PolicyFeature],
    loading: Loading,
) -> None:
    if not path.is_file():
        raise UserError(f"{path}: not found, so the processors cannot be loaded; expected {LAYOUT}")
    values = read_json(path, dict, MOST_CONFIG_BYTES)
    steps = values.get("steps")
    if not isinstance(steps, list) or len(steps) > MOST_STEPS:
        raise UserError(f"{path}: expected 'steps', a list of at most {MOST_STEPS}")
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
            raise UserError(f"{path}: no step '{step}', which a {config.type} policy needs; the checkpoint is damaged")
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
            f"{where} is '{shown}', which is no step of a known policy.{_close(shown, STEPS)}{_allow_hint(shown)}"
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
    own = _repositories(config.type, _defaults(type(config)))
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
            raise UserError(_reason(error) if str(file) in str(error) else f"{file}: {_reason(error)}") from error
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


def try_out(directory: Path, predict: Callable[[], Tensor], shape: tuple[int, ...]) -> None:
    """Raise UserError unless `predict`, of one blank observation, gives finite actions of `shape`; 0 fits any size.

    Steps that are known one by one may still make no sense in a row. The random state stays as it is.
    """
    try:
        with torch.random.fork_rng():
            actions = predict()
        got = tuple(actions.shape)
        fits = len(got) == len(shape) and all(want in (0, side) for want, side in zip(shape, got, strict=True))
        finite = bool(torch.isfinite(actions).all())
    except UserError:
        raise
    except Exception as error:  # every step and network has requirements of its own
        raise UserError(f"{directory}: its network and processors do not fit each other ({_reason(error)})") from error
    if not fits:
        raise UserError(f"{directory}: its processors give actions of shape {got}; expected {shape}, as in config.json")
    if not finite:
        raise UserError(f"{directory}: gives actions that are not finite")


# -------------------------------------------------------------------------------------------------------------- the hub


def checkpoint_directory(checkpoint: str, loading: Loading = STRICT) -> Path:
    """A directory as it is, or a policy downloaded from the Hugging Face hub: JSON and safetensors at its top alone.

    Its config is read and checked before the rest is downloaded. Raises UserError if it is neither, or is refused.
    """
    if Path(checkpoint).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint):
        return Path(checkpoint)
    folder = _download(checkpoint, allow_patterns=[CONFIG])
    read_config(folder, loading)
    # The folder's name is the commit, so that the rest is of the same one.
    return _download(
        checkpoint, revision=folder.name, allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["*/*"]
    )


def _download(checkpoint: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, **options))
    except Exception as error:  # offline, not there, not allowed: the hub client has a class for each
        text = " ".join((str(error) or type(error).__name__).split())[:160]
        raise UserError(
            f"{checkpoint}: no such directory here, and the Hugging Face hub does not give it "
            f"({type(error).__name__}: {text})"
        ) from error


# --------------------------------------------------------------------------------------------------------------- saving

_WRITTEN = re.compile(
    r"config\.json|train_config\.json|model\.safetensors|seen_scenes\.json|conventions\.json"
    r"|policy_(pre|post)processor(_step_\d+_\w+)?\.(json|safetensors)"
)


def is_written(name: Path) -> bool:
    """If a file of a checkpoint's directory is one that this project and LeRobot write there."""
    return _WRITTEN.fullmatch(str(name)) is not None


def check_savable(policy: PreTrainedPolicy, *processors: PolicyProcessorPipeline) -> None:
    """Raise UserError if a weight or a statistic is not finite, so that a good checkpoint is not replaced by it."""
    try:
        check_finite(policy.state_dict(), f"the {policy.name} policy is not written: weight ")
        for pipeline in processors:
            for state in pipeline.state_dict().values():
                check_finite(state, f"the {policy.name} policy is not written: statistic ")
    except ValueError as error:
        raise UserError(str(error)) from error


def _close(name: str, known: Collection[str]) -> str:
    told = nearest(name, known)
    return f" {told}" if told.startswith("Did you mean") else ""


def _allow_hint(name: str) -> str:
    return f" If you trust the package that has it: allow=[{name}]" if re.fullmatch(r"\w[\w-]*", name) else ""


def _reason(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
