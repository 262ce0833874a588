"""One way to build, train, run, save and load a policy, whichever it is.

`pi05_compact` is ours; `diffusion` is LeRobot's own, at CPU size, and `diffusion_compact` the same with our picture
encoder; both are told the instruction through `observation.environment_state`. B samples, T action steps in a chunk,
A action width, S state width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import AddBatchDimensionProcessorStep, DeviceProcessorStep, PolicyProcessorPipeline
from lerobot.processor.normalize_processor import hotswap_stats
from torch import Tensor, nn

from policies.action_steps import converting_step, with_steps
from policies.checkpoint_config import CONFIG, STRICT, Loading, check_sizes, read_config
from policies.checkpoint_processors import load_processors
from policies.checkpoints import check_savable, is_written, load_weights, try_out
from policies.diffusion_compact import DiffusionCompactConfig
from policies.instruction_embedding import InstructionEmbeddingProcessorStep
from policies.noise import predict_chunk
from policies.optimizer import own_groups
from policies.pi05_compact import Pi05CompactConfig
from policies.pi05_compact.processor_pi05_compact import InstructionTokenizerProcessorStep
from policies.pi05_compact.training_draws import training_draws
from policies.statistics import Statistics, usable_statistics
from toolkit.base.errors import UserError, first_line, nearest
from toolkit.base.files import atomic_directory
from toolkit.data.batches import RNG, WHOLE
from toolkit.data.episode import (
    ACTION,
    ACTION_DIM_IS_PAD,
    ACTION_IS_PAD,
    ENVIRONMENT_STATE,
    STATE,
    SYNTHETIC,
    TASK,
)

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
VISION_ENCODERS = {
    "pi05_compact": "model.image_encoder",
    "diffusion": "diffusion.rgb_encoder",
    "diffusion_compact": "diffusion.rgb_encoder",
}

# Set by the factory from the data, so they are not options.
FEATURE_FIELDS = ("input_features", "output_features")


class PolicyObjective(nn.Module):
    """A policy with its processors: physical units in, physical units out, `loss` for the training loop.

    Only the policy's weights are in `state_dict`; the normalisation statistics live in the processors.
    """

    def __init__(
        self,
        policy: PreTrainedPolicy,
        preprocessor: PolicyProcessorPipeline,
        postprocessor: PolicyProcessorPipeline,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.preprocessor = preprocessor
        self.postprocessor = postprocessor

    # -------------------------------------------------------------------------------------------- sizes

    @property
    def config(self) -> Any:
        """The policy's own configuration."""
        return self.policy.config

    @property
    def policy_type(self) -> str:
        return str(self.config.type)

    @property
    def cameras(self) -> list[str]:
        """Keys of the pictures that it sees, in the order of its features."""
        return list(self.config.image_features)

    @property
    def picture_size(self) -> tuple[int, int]:
        """(H, W) of the pictures, which is the same for all cameras."""
        _, height, width = self.config.image_features[self.cameras[0]].shape
        return height, width

    @property
    def state_dim(self) -> int:
        return int(self.config.input_features[STATE].shape[0])

    @property
    def action_dim(self) -> int:
        return int(self.config.output_features[ACTION].shape[0])

    @property
    def horizon(self) -> int:
        """T: action steps of a training sample."""
        return len(self.config.action_delta_indices)

    @property
    def n_action_steps(self) -> int:
        """Steps of a predicted chunk that are executed."""
        return int(self.config.n_action_steps)

    @property
    def representation(self) -> tuple[str, list[int]]:
        """How it learns actions: kind and reference, see `vag_core.representation`."""
        step = converting_step(self.preprocessor)
        return ("absolute", []) if step is None else (step.representation, step.reference)

    # ---------------------------------------------------------------------------------------------- use

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Training loss of the policy, and what else it reports.

        batch: a picture of each camera (B, 3, H, W) float in [0, 1], observation.state (B, S), action (B, T, A),
        action_is_pad (B, T) bool, task (B strings); where a mixture has padded narrower robots, action_dim_is_pad
        (B, A) bool. Of a part of a batch (toolkit.data.batches) the mean over all parts is the loss of the whole one.
        Raises UserError if a size is not the policy's, or if it cannot leave dimensions out.
        """
        self._check(batch, with_action=True)
        if ACTION_DIM_IS_PAD in batch and not isinstance(self.config, Pi05CompactConfig):
            raise UserError(f"{self.policy_type} cannot mix actions of different widths; use pi05_compact")
        prepared = self._prepare({k: v for k, v in batch.items() if k not in (SYNTHETIC, WHOLE, RNG)})
        if RNG in batch and isinstance(self.config, Pi05CompactConfig):
            prepared |= training_draws(self.config, batch)
        loss, report = self.policy.forward(prepared)
        metrics = {key: float(value) for key, value in (report or {}).items() if key != "loss"}
        if SYNTHETIC in batch:
            metrics["synthetic_fraction"] = float(batch[SYNTHETIC].mean())
        return loss, metrics

    @torch.no_grad()
    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Sequence[int] | None = None) -> Tensor:
        """Actions to execute next, (B, n_action_steps, A) in physical units on the CPU.

        observation: as a batch of `loss`, without actions; a policy of one camera takes the only picture there is.
        noise_seeds: one for each sample, whose actions then do not depend on the others; None = noise from torch's
        global generator. Nothing is remembered between calls. Raises UserError if a size is not the policy's.
        """
        if len(self.cameras) == 1 and self.cameras[0] not in observation:
            observation = {**observation, **dict(zip(self.cameras, cameras_in(observation).values(), strict=True))}
        self._check(observation, with_action=False)
        was_training = self.policy.training
        self.policy.eval()
        self.policy.reset()
        kept = {key: observation[key] for key in (*self.cameras, STATE, TASK)}
        chunk = predict_chunk(self.policy, self._prepare(kept), noise_seeds)
        self.policy.train(was_training)
        return self.postprocessor(chunk[:, : self.n_action_steps])

    def check_instructions(self, tasks: Sequence[str]) -> None:
        """Warn where the policy reads a part of an instruction alone; raise UserError where two then are the same."""
        for step in self.preprocessor.steps:
            if isinstance(step, InstructionTokenizerProcessorStep):
                step.check(tasks)

    def optimizer_groups(self) -> tuple[list[dict[str, Any]], float]:
        """As the training loop asks: see `policies.optimizer.own_groups`."""
        return own_groups(self.policy)

    def freeze_vision_encoder(self) -> None:
        """Leave what turns the picture into features as it is from now on."""
        self.policy.get_submodule(VISION_ENCODERS[self.policy_type]).requires_grad_(False)

    def refit_statistics(self, stats: Statistics) -> None:
        """Replace the normalisation statistics; by default fine-tuning keeps those of pretraining."""
        stats = usable_statistics(stats, self.config)
        self.preprocessor = hotswap_stats(self.preprocessor, stats)
        self.postprocessor = hotswap_stats(self.postprocessor, stats)

    def _prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = next(self.policy.parameters()).device
        for step in self.preprocessor.steps:
            if isinstance(step, DeviceProcessorStep) and step.tensor_device != device:
                step.device, step.tensor_device, step.non_blocking = (
                    device.type,
                    device,
                    device.type == "cuda",
                )
        prepared = self.preprocessor(batch)
        if self.config.observation_delta_indices is not None:  # the policy expects (B, n_obs_steps, ...)
            for key in (*self.cameras, STATE, ENVIRONMENT_STATE):
                if key in prepared:
                    prepared[key] = prepared[key][:, None]
        return prepared

    def _check(self, batch: dict[str, Any], with_action: bool) -> None:
        keys = (*self.cameras, STATE, TASK, *((ACTION, ACTION_IS_PAD) if with_action else ()))
        missing = [key for key in keys if key not in batch]
        if missing:
            raise UserError(f"batch: no '{missing[0]}'; expected {', '.join(keys)}")
        size = len(batch[TASK])
        expected: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(self.cameras, (size, 3, *self.picture_size)),
            STATE: (size, self.state_dim),
        }
        if with_action:
            expected[ACTION] = (size, self.horizon, self.action_dim)
            expected[ACTION_IS_PAD] = (size, self.horizon)
        for key, shape in expected.items():
            got = tuple(batch[key].shape)
            if got != shape:
                raise UserError(
                    f"{key}: got shape {got}, expected {shape} ({self.policy_type} policy, {size} instructions)"
                )
        for camera in self.cameras:
            if not batch[camera].is_floating_point():
                raise UserError(f"{camera}: got {batch[camera].dtype}, expected floating point in [0, 1]")

    # --------------------------------------------------------------------------------------------- disk

    def save_pretrained(self, directory: str | Path) -> None:
        """Write LeRobot's `pretrained_model` layout, complete or not at all; an older one there is replaced.

        Raises UserError, before anything is written, if `directory` holds something else than a policy checkpoint, or
        a weight or statistic is not finite.
        """
        directory = Path(directory)
        occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
        if occupied and not (directory / CONFIG).is_file():
            raise UserError(f"{directory}: exists and is not a policy checkpoint; it is left as it is")
        check_savable(self.policy, self.preprocessor, self.postprocessor)
        with atomic_directory(directory, may_go=is_written) as partial:
            for part in (self.policy, self.preprocessor, self.postprocessor):
                part.save_pretrained(partial)

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: str = "cpu", loading: Loading = STRICT) -> PolicyObjective:
        """Load a checkpoint written by `save_pretrained`, in evaluation mode.

        Only JSON and safetensors are read, see `policies.checkpoints`. Raises UserError if the directory is missing or
        holds something else, for what `loading` does not allow, or if a weight, step or statistic is missing.
        """
        directory = Path(directory)
        config = read_config(directory, loading, CONFIGS)
        _check_features(directory / CONFIG, config)
        policy = load_weights(config, directory, loading)
        processors = load_processors(config, directory, device, loading)
        policy.config.device = device
        objective = cls(policy.to(device), *processors).eval()
        blank = {
            **{camera: torch.zeros(1, 3, *objective.picture_size) for camera in objective.cameras},
            STATE: torch.zeros(1, objective.state_dim),
            TASK: ["try"],
        }
        shape = (1, objective.n_action_steps, objective.action_dim)
        try_out(directory, lambda: objective.predict_action_chunk(blank), shape)
        return objective


def _check_features(path: Path, config: PreTrainedConfig) -> None:
    """Raise UserError unless a policy sees pictures of one size, a state and the instruction, all of this moment."""
    inputs, outputs = config.input_features or {}, config.output_features or {}
    pictures = {key: feature.shape for key, feature in inputs.items() if feature.type is FeatureType.VISUAL}
    if not pictures:
        raise UserError(f"{path}: the policy has no feature of type VISUAL; expected the picture of a camera")
    if len(set(pictures.values())) > 1:
        sizes = ", ".join(f"'{key[:100]}' {shape}" for key, shape in list(pictures.items())[:4])
        raise UserError(f"{path}: the policy sees pictures of several sizes, {sizes}; expected one size of all cameras")
    for features, key, kind in (
        (inputs, STATE, FeatureType.STATE),
        (outputs, ACTION, FeatureType.ACTION),
    ):
        if key not in features or features[key].type is not kind:
            raise UserError(f"{path}: the policy has no feature '{key}' of type {kind.value}; expected one")
    if others := sorted({*inputs, *outputs} - {*pictures, STATE, ENVIRONMENT_STATE, ACTION}):
        raise UserError(f"{path}: the policy has the feature '{others[0][:100]}'; expected pictures, {STATE}, {ACTION}")
    if config.n_obs_steps != 1:
        raise UserError(f"{path}: n_obs_steps is {config.n_obs_steps}; expected 1, since batches hold one observation")


def cameras_in(observation: dict[str, Any]) -> dict[str, Tensor]:
    """The pictures of an observation, by camera."""
    return {key: value for key, value in observation.items() if isinstance(value, Tensor) and value.ndim == 4}


def check_choice(policy_type: str, options: dict[str, Any]) -> None:
    """Raise UserError for a type or an option that does not exist, before any data is decoded."""
    if policy_type not in CONFIGS:
        raise UserError(f"policy type '{policy_type}' is unknown. {nearest(policy_type, CONFIGS)}")
    valid = {field.name for field in fields(CONFIGS[policy_type])} - set(FEATURE_FIELDS)
    for name in options:
        if name not in valid:
            raise UserError(f"{policy_type} has no option '{name}'. {nearest(name, valid)}")


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
) -> PolicyObjective:
    """A new policy with random weights.

    policy_type: a key of CONFIGS. cameras: shape (3, H, W) of the pictures by key, the same for all. stats: LeRobot's
    by feature key, of actions as they are learned, or what gives them for the steps of a chunk. options: keywords of
    the policy's configuration. text_encoder: directory of a sentence-transformer or T5, for the diffusion policies,
    which take the instruction as a vector. representation, reference: see `vag_core.representation`. Raises UserError
    for an unknown type or option, a value or a picture size the policy refuses, or missing statistics.
    """
    check_choice(policy_type, options)
    config_class = CONFIGS[policy_type]
    inputs = {
        **{camera: PolicyFeature(FeatureType.VISUAL, tuple(shape)) for camera, shape in cameras.items()},
        STATE: PolicyFeature(FeatureType.STATE, (state_dim,)),
    }
    step = None
    if issubclass(config_class, DiffusionConfig):
        step = InstructionEmbeddingProcessorStep(path=None if text_encoder is None else str(text_encoder))
        inputs[ENVIRONMENT_STATE] = PolicyFeature(FeatureType.ENV, (step.width,))
        if policy_type == "diffusion":
            # Named even where it is the size of the data: `lerobot-eval` passes on what the simulator renders.
            _, *size = next(iter(cameras.values()))
            if (smallest := min(size)) < SMALLEST_DIFFUSION_PICTURE:
                size = [-(-side * SMALLEST_DIFFUSION_PICTURE // smallest) for side in size]
            options = {"resize_shape": tuple(size), **options}
    elif text_encoder is not None:
        raise UserError(f"{policy_type} reads the words themselves; a text encoder is for the diffusion policies")
    outputs = {ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))}
    features: dict[str, Any] = {"input_features": inputs, "output_features": outputs}
    local = {"device": "cpu", "push_to_hub": False}
    try:
        config = config_class(**{**local, **DEFAULTS[policy_type], **options, **features})
        if config.n_obs_steps != 1:
            raise ValueError(f"n_obs_steps is {config.n_obs_steps}; batches hold one observation")
        check_sizes(policy_type, config)  # what could not be loaded again is not trained
        stats = stats(len(config.action_delta_indices)) if callable(stats) else stats
        policy = get_policy_class(policy_type)(config)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{policy_type}: {first_line(error)}") from error
    preprocessor, postprocessor = make_pre_post_processors(
        config, dataset_stats=cast(Any, usable_statistics(stats, config))
    )
    if step is not None:
        steps = list(preprocessor.steps)
        after_batching = 1 + next(i for i, s in enumerate(steps) if isinstance(s, AddBatchDimensionProcessorStep))
        preprocessor.steps = [*steps[:after_batching], step, *steps[after_batching:]]
    if representation != "absolute":
        with_steps((preprocessor, postprocessor), representation, list(reference))
    return PolicyObjective(policy, preprocessor, postprocessor)
