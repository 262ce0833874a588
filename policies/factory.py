"""One way to build a policy, whichever it is: ours, or any type of LeRobot by its own factory and processors.

`pi05_compact` is ours; `diffusion` is LeRobot's own, at CPU size, and `diffusion_compact` the same with our picture
encoder; both are told the instruction through `observation.environment_state`. All others are as LeRobot has them.
A action width, S state width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import AddBatchDimensionProcessorStep, PolicyProcessorPipeline
from lerobot.utils.import_utils import register_third_party_plugins

from policies.action_steps import with_steps
from policies.adapters import add_lora
from policies.checkpoint_config import CONFIG, STRICT, Loading, allow_hint, check_sizes, read_config
from policies.checkpoint_processors import remote_code
from policies.checkpoints import load_weights
from policies.diffusion_compact import DiffusionCompactConfig
from policies.instruction_embedding import InstructionEmbeddingProcessorStep
from policies.known_types import FIXED, POLICY_TYPES
from policies.objective import PolicyObjective, as_lerobot, check_features, freeze_vision
from policies.pi05_compact import Pi05CompactConfig
from policies.policy_types import (
    OURS,
    check_downloads,
    check_packages,
    check_trainable,
    from_data,
    kept_in_checkpoints,
    set_features,
    valid_options,
)
from policies.statistics import Statistics, usable_statistics
from toolkit.base.errors import UserError, first_line, nearest, warn
from toolkit.data.episode import ACTION, ENVIRONMENT_STATE, STATE
from vag_core.checkpoint import unfilled

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "pi05_compact": Pi05CompactConfig,
    "diffusion": DiffusionConfig,
    "diffusion_compact": DiffusionCompactConfig,
}

# LeRobot's own defaults ask for a download, two observations and 260 M parameters.
DIFFUSION_DEFAULTS: dict[str, Any] = {
    **{name: getattr(DiffusionCompactConfig, name) for name in vars(DiffusionCompactConfig)["__annotations__"]},
    "crop_shape": None,
}
# LeRobot's ResNet has stride 32: of a smaller picture it leaves one cell, whose keypoints are always its centre.
SMALLEST_DIFFUSION_PICTURE = 64
DEFAULTS: dict[str, dict[str, Any]] = {
    "pi05_compact": {},
    "diffusion": DIFFUSION_DEFAULTS,
    "diffusion_compact": {},
}
LOCAL: dict[str, Any] = {"device": "cpu", "push_to_hub": False}
# What a config raises for values that do not go together, and a network for a config.
REFUSALS = (
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    AssertionError,
    ImportError,
    OSError,
)


@dataclass(frozen=True)
class Wanted:
    """Which policy: a type and fields of its config, or those of a checkpoint (path) with other fields.

    lora_rank: of adapters, beside which the weights of the checkpoint stay as they are; None = all are trained.
    """

    type: str
    options: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    lora_rank: int | None = None
    freeze_vision_encoder: bool = False
    loading: Loading = STRICT


def check_choice(wanted: Wanted) -> None:
    """Raise UserError, before any data is decoded, for a policy that cannot be built here.

    That is what `check_options` refuses, a value that does not exist, a type that does not imitate, a checkpoint of
    another type, and what has to be downloaded first and is not within reach.
    """
    check_options(wanted)
    if wanted.path is None and wanted.type in OURS:
        return
    config = make_config(wanted, {})
    check_trainable(config)
    check_downloads(config)


def check_options(wanted: Wanted) -> None:
    """Raise UserError for a type or option that does not exist, a package that is not installed, and foreign code."""
    kind, loading = wanted.type, wanted.loading
    if kind in loading.allow and kind not in PreTrainedConfig.get_known_choices():
        register_third_party_plugins()
    if kind not in POLICY_TYPES and not (kind in loading.allow and kind in PreTrainedConfig.get_known_choices()):
        raise UserError(f"policy type '{kind}' is unknown. {nearest(kind, POLICY_TYPES)}{allow_hint(kind)}")
    valid = valid_options(kind)
    for name in wanted.options:
        if name not in valid:
            raise UserError(f"{kind} has no option '{name}'. {nearest(name, valid)}")
    check_packages(kind)
    known = POLICY_TYPES.get(kind)
    if known and known.remote_code is True and not loading.allow_remote_code:
        raise UserError(
            f"policy={kind}: LeRobot runs Python out of a repository for this type (trust_remote_code); if you trust "
            "it: allow_remote_code=true"
        )


def make_config(wanted: Wanted, values: dict[str, Any]) -> PreTrainedConfig:
    """The config of a new policy; values: fields that the data decide. Raises UserError as `check_choice`."""
    kind = wanted.type
    options = {**DEFAULTS.get(kind, {}), **wanted.options}
    config_class = PreTrainedConfig.get_choice_class(kind)
    try:
        if wanted.path is None:
            own = {"base_model_id": None} if kind == "fastwam" else {}  # whose weights LeRobot loads where they fit
            return cast(Any, config_class)(**{**LOCAL, **own, **values, **options})
        config = read_config(wanted.path, wanted.loading)
        if config.type != kind:
            raise UserError(f"policy.path={wanted.path}: of type '{config.type}'; choose policy={config.type}")
        # What is in the file of weights is not fetched from elsewhere.
        fixed = {**FIXED, **(POLICY_TYPES[kind].fixed if kind in POLICY_TYPES else {})}
        there = {name: value for name, value in fixed.items() if hasattr(config, name)}
        return replace(cast(Any, config), **{**values, **wanted.options, **there})
    except REFUSALS as error:
        raise UserError(f"{kind}: {first_line(error)}") from error


def build_policy(
    policy_type: str,
    *,
    cameras: dict[str, tuple[int, int, int]],
    state_dim: int,
    action_dim: int,
    stats: Statistics | Callable[[int], Statistics],
    options: dict[str, Any],
    text_encoder: str | Path | None = None,
    representation: str = "absolute",
    reference: Sequence[int] = (),
    wanted: Wanted | None = None,
    action_names: Sequence[str] = (),
) -> PolicyObjective:
    """A policy with random weights, or those of a checkpoint, for data of these features.

    policy_type: a key of POLICY_TYPES. cameras: shape (3, H, W) of the pictures by key. stats: LeRobot's by feature
    key, of actions as they are learned, or what gives them for the steps of a chunk. options: keywords of the policy's
    configuration. text_encoder: directory of a sentence-transformer or T5, for the diffusion policies, which take the
    instruction as a vector. representation, reference: see `vag_core.representation`. wanted: more about the policy,
    such as a checkpoint; its type and options do not count. action_names: of the dimensions.
    Raises UserError for an unknown type or option, a value or a picture size that the policy refuses, missing
    statistics, and a weight of a checkpoint that is missing, unexpected or of another shape.
    """
    wanted = replace(wanted or Wanted(policy_type), type=policy_type, options=options)
    check_choice(wanted)
    if policy_type in OURS:
        config, step = _own_config(wanted, cameras, state_dim, action_dim, text_encoder)
    else:
        config, step = _stock_config(wanted, cameras, state_dim, action_dim, action_names), None
        if text_encoder is not None:
            raise UserError(
                f"{policy_type} reads the words itself, if any; a text encoder is for the diffusion policies"
            )
    check_features(policy_type, config)
    check_sizes(policy_type, config)  # what could not be loaded again is not trained
    if representation != "absolute" and max(config.observation_delta_indices or [0]) > 0:
        raise UserError(
            f"action_representation={representation}: {policy_type} reads later states too; expected absolute"
        )
    stats = stats(len(config.action_delta_indices or [])) if callable(stats) else stats
    stats = usable_statistics(as_lerobot(stats, config), config)
    began = {name: getattr(config, name) for name in kept_in_checkpoints(config.type) if hasattr(config, name)}
    policy, (preprocessor, postprocessor) = _network(wanted, config, stats)
    if step is not None:
        steps = list(preprocessor.steps)
        after_batching = 1 + next(i for i, s in enumerate(steps) if isinstance(s, AddBatchDimensionProcessorStep))
        preprocessor.steps = [*steps[:after_batching], step, *steps[after_batching:]]
    if representation != "absolute":
        with_steps((preprocessor, postprocessor), representation, list(reference))
    objective = PolicyObjective(policy, preprocessor, postprocessor)
    objective.built_with = began
    if wanted.lora_rank is not None and wanted.path is None:
        warn(
            f"policy.lora_rank={wanted.lora_rank} without policy.path: of {policy_type} only adapters are trained, "
            "beside weights that are random but for what the type downloads"
        )
    _choose_trained(policy, wanted)
    return objective


def plan_policy(
    wanted: Wanted, cameras: dict[str, tuple[int, int]], state_dim: int, action_dim: int
) -> PreTrainedPolicy:
    """The network of a policy on the meta device, as it would be trained: no weight has memory, nothing is downloaded.

    cameras: (H, W) of each. Raises UserError for what cannot be built, or not there.
    """
    shapes: dict[str, tuple[int, int, int]] = {camera: (3, *size) for camera, size in cameras.items()}
    if wanted.type in OURS:
        config, _ = _own_config(wanted, shapes, state_dim, action_dim, None)
    else:
        config = _stock_config(wanted, shapes, state_dim, action_dim, [])
    check_trainable(config)
    if hasattr(config, "pretrained_backbone_weights"):
        config.pretrained_backbone_weights = None
    if hasattr(config, "load_vlm_weights"):
        config.load_vlm_weights = False
    try:
        with remote_code(allowed=False, directory=Path(wanted.type)), unfilled():
            policy = get_policy_class(config.type)(config)
    except UserError:
        raise
    except REFUSALS as error:
        raise UserError(f"{wanted.type}: cannot be built without its weights ({first_line(error)})") from error
    _choose_trained(policy, wanted)
    return policy


def _choose_trained(policy: PreTrainedPolicy, wanted: Wanted) -> None:
    """Put in adapters and freeze what sees, as asked: in this order, so that adapters in there stay still too."""
    if wanted.lora_rank is not None:
        add_lora(policy, wanted.lora_rank)
    if wanted.freeze_vision_encoder:
        freeze_vision(policy)


def _own_config(
    wanted: Wanted,
    cameras: dict[str, tuple[int, int, int]],
    state_dim: int,
    action_dim: int,
    text_encoder: str | Path | None,
) -> tuple[PreTrainedConfig, InstructionEmbeddingProcessorStep | None]:
    """Config of a type of this project, and the step that tells it the instruction as a vector, if it wants one."""
    inputs, outputs = _features(cameras, state_dim, action_dim)
    step = None
    if issubclass(CONFIGS[wanted.type], DiffusionConfig):
        step = InstructionEmbeddingProcessorStep(path=None if text_encoder is None else str(text_encoder))
        inputs[ENVIRONMENT_STATE] = PolicyFeature(FeatureType.ENV, (step.width,))
        if wanted.type == "diffusion":
            # Named even where it is the size of the data: `lerobot-eval` passes on what the simulator renders.
            _, *size = next(iter(cameras.values()))
            if (smallest := min(size)) < SMALLEST_DIFFUSION_PICTURE:
                size = [-(-side * SMALLEST_DIFFUSION_PICTURE // smallest) for side in size]
            wanted = replace(wanted, options={"resize_shape": tuple(size), **wanted.options})
    elif text_encoder is not None:
        raise UserError(f"{wanted.type} reads the words themselves; a text encoder is for the diffusion policies")
    return make_config(wanted, {"input_features": inputs, "output_features": outputs}), step


def _stock_config(
    wanted: Wanted,
    cameras: dict[str, tuple[int, int, int]],
    state_dim: int,
    action_dim: int,
    action_names: Sequence[str],
) -> PreTrainedConfig:
    """Config of one of LeRobot's types for a dataset, as `lerobot.policies.factory.make_policy` would leave it."""
    inputs, outputs = _features(cameras, state_dim, action_dim)
    if wanted.type == "fastwam":
        if odd := [camera for camera in cameras if not camera.startswith("observation.images.")]:
            raise UserError(
                f"policy=fastwam: sees cameras named observation.images.NAME alone, not '{odd[0]}'; "
                f"rename={{{odd[0]}: observation.images.image}}"
            )
        features: dict[str, Any] = {"input_features": None, "output_features": None}  # which it makes of its own sizes
    else:
        features = {"input_features": inputs, "output_features": outputs}
    config = make_config(wanted, {**from_data(wanted.type, list(cameras), state_dim, action_dim), **features})
    shapes = {camera: {"dtype": "video", "shape": (*shape[1:], 3)} for camera, shape in cameras.items()}
    numbers = {STATE: {"dtype": "float32", "shape": (state_dim,)}, ACTION: {"dtype": "float32", "shape": (action_dim,)}}
    try:
        set_features(config, {**shapes, **numbers}, action_names)
        config.validate_features()
    except REFUSALS as error:
        raise UserError(f"{wanted.type}: {first_line(error)}") from error
    return config


def _features(
    cameras: dict[str, tuple[int, int, int]], state_dim: int, action_dim: int
) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    pictures = {camera: PolicyFeature(FeatureType.VISUAL, tuple(shape)) for camera, shape in cameras.items()}
    state = PolicyFeature(FeatureType.STATE, (state_dim,))
    return {**pictures, STATE: state}, {ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))}


def _network(
    wanted: Wanted, config: PreTrainedConfig, stats: Statistics
) -> tuple[PreTrainedPolicy, tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]]:
    """The policy and new processors. Raises UserError for what its class refuses, or its weights do not fit."""
    where = wanted.path or Path(wanted.type)
    try:
        with remote_code(wanted.loading.allow_remote_code or wanted.type in OURS, where):
            if wanted.path is None:
                policy = get_policy_class(config.type)(config)
            else:
                config.pretrained_path = wanted.path  # so that no type fetches weights which are here
                policy = load_weights(config, wanted.path, wanted.loading, new_robot=True)
            config = policy.config
            for name, value in kept_in_checkpoints(config.type).items():
                if hasattr(config, name):
                    setattr(config, name, value)
            config.pretrained_path = None
            return policy, make_pre_post_processors(config, dataset_stats=cast(Any, stats))
    except UserError as error:
        raise UserError(f"{error}{_other_widths(wanted, config)}") from error
    except REFUSALS as error:
        raise UserError(f"{wanted.type}: {first_line(error)}") from error


def _other_widths(wanted: Wanted, config: PreTrainedConfig) -> str:
    """In words where data are wider or narrower than those of the checkpoint; empty where they are not."""
    if wanted.path is None:
        return ""
    trained, told = read_config(wanted.path, wanted.loading), ""
    for features, own, key in (
        (trained.input_features, config.input_features, STATE),
        (trained.output_features, config.output_features, ACTION),
    ):
        before, now = ((part or {}).get(key) for part in (features, own))
        if before is not None and now is not None and tuple(before.shape) != tuple(now.shape):
            told += f"; {key} has {before.shape[0]} numbers in the checkpoint, {now.shape[0]} in the data"
    return told


__all__ = ["CONFIG", "CONFIGS", "PolicyObjective", "Statistics", "Wanted", "build_policy", "check_choice"]
