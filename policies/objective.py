"""A policy with its processors, as training and evaluation see it, whichever it is.

B samples, T action steps in a chunk, n observations of a sample, A action width, S state width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import DeviceProcessorStep, PolicyProcessorPipeline
from lerobot.processor.normalize_processor import hotswap_stats
from lerobot.utils.constants import IMAGENET_STATS
from torch import Tensor, nn

from policies.action_steps import converting_step
from policies.adapters import merge_lora
from policies.checkpoint_config import CONFIG, STRICT, Loading, read_config
from policies.checkpoint_processors import load_processors
from policies.checkpoints import check_savable, is_written, load_weights, try_out
from policies.noise import predict_chunk
from policies.optimizer import own_groups
from policies.pi05_compact import Pi05CompactConfig
from policies.pi05_compact.processor_pi05_compact import InstructionTokenizerProcessorStep
from policies.pi05_compact.training_draws import training_draws
from policies.policy_types import OURS, check_trainable, traits_of, visual
from policies.statistics import Statistics, usable_statistics
from toolkit.base.errors import UserError, warn
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


class PolicyObjective(nn.Module):
    """A policy with its processors: physical units in, physical units out, `loss` for the training loop.

    Only the policy's weights are in `state_dict`; the normalisation statistics live in the processors.
    """

    memory_helps = (  # where a GPU has no memory for a step, beside smaller batches
        "runtime.mixed_precision=bf16, policy.lora_rank=16, freeze_vision_encoder=true, smaller pictures, a larger GPU"
    )

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
        self.built_with: dict[str, Any] = {}  # fields of the config that a checkpoint has no more, such as downloads

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
        return visual(self.config)

    @property
    def picture_sizes(self) -> dict[str, tuple[int, int]]:
        """(H, W) of each camera's pictures, by its features."""
        shapes = {camera: self.config.input_features[camera].shape for camera in self.cameras}
        return {camera: (shape[1], shape[2]) for camera, shape in shapes.items()}

    @property
    def picture_size(self) -> tuple[int, int]:
        """(H, W) of the first camera's pictures."""
        return next(iter(self.picture_sizes.values()))

    @property
    def state_dim(self) -> int | None:
        """S, None of a policy that sees no state."""
        feature = self.config.input_features.get(STATE)
        return None if feature is None else int(feature.shape[0])

    @property
    def action_dim(self) -> int:
        return int(self.config.output_features[ACTION].shape[0])

    @property
    def action_deltas(self) -> list[int]:
        """Steps of the actions of a training sample, by their distance from its own step."""
        return list(self.config.action_delta_indices)

    @property
    def observation_deltas(self) -> list[int]:
        """The same of its observations: [0] of most, older ones of a policy with a memory, later ones of one that
        learns what will be seen."""
        return list(self.config.observation_delta_indices or [0])

    @property
    def horizon(self) -> int:
        """T: action steps of a training sample."""
        return len(self.action_deltas)

    @property
    def chunks(self) -> bool:
        """If it predicts a chunk from one observation; others act step by step, see `policies.stock`."""
        return predicts_chunks(self.config)

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

        batch: a picture of each camera (B, 3, H, W) float in [0, 1], observation.state (B, S), both with an axis (B, n,
        ...) where `observation_deltas` are several, action (B, T, A), action_is_pad (B, T) bool, task (B strings);
        where a mixture has padded narrower robots, action_dim_is_pad
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
        metrics = {key: float(value) for key, value in (report or {}).items() if key != "loss" and _is_number(value)}
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
        kept = {key: observation[key] for key in (*self.cameras, STATE, TASK) if key in observation}
        chunk = predict_chunk(self.policy, self._prepare(kept), noise_seeds)
        self.policy.train(was_training)
        return self.postprocessor(chunk[:, : self.n_action_steps])

    def check_instructions(self, tasks: Sequence[str]) -> None:
        """Warn where the policy reads a part of an instruction alone, or none; raise UserError where two then are the
        same."""
        distinct = len(set(tasks))
        if not traits_of(self.policy_type).words and distinct > 1:
            warn(f"{self.policy_type} does not read instructions: it cannot tell the {distinct} of the data apart")
        for step in self.preprocessor.steps:
            if isinstance(step, InstructionTokenizerProcessorStep):
                step.check(tasks)

    def optimizer_groups(self) -> tuple[list[dict[str, Any]], float]:
        """As the training loop asks: see `policies.optimizer.own_groups`."""
        return own_groups(self.policy)

    @property
    def block_classes(self) -> Sequence[str]:
        """As `parallelism.dp_shard` asks: see `PolicyTraits.blocks`."""
        return traits_of(self.policy_type).blocks

    @property
    def calls_layers(self) -> bool:
        """As `parallelism.dp_shard` asks: see `PolicyTraits`."""
        return traits_of(self.policy_type).calls_layers

    def freeze_vision_encoder(self) -> None:
        """See `freeze_vision`."""
        freeze_vision(self.policy)

    def refit_statistics(self, stats: Statistics) -> None:
        """Replace the normalisation statistics; by default fine-tuning keeps those of pretraining."""
        stats = usable_statistics(as_lerobot(stats, self.config), self.config)
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
        if self.config.observation_delta_indices is not None and self.observation_deltas == [0]:
            for key in (*self.cameras, STATE, ENVIRONMENT_STATE):  # the policy expects (B, n_obs_steps, ...)
                if key in prepared:
                    prepared[key] = prepared[key][:, None]
        return prepared

    def _check(self, batch: dict[str, Any], with_action: bool) -> None:
        state = () if self.state_dim is None else (STATE,)
        keys = (*self.cameras, *state, TASK, *((ACTION, ACTION_IS_PAD) if with_action else ()))
        missing = [key for key in keys if key not in batch]
        if missing:
            raise UserError(f"batch: no '{missing[0]}'; expected {', '.join(keys)}")
        size = len(batch[TASK])
        lead = (size, len(self.observation_deltas)) if with_action and self.observation_deltas != [0] else (size,)
        expected: dict[str, tuple[int, ...]] = {key: (*lead, *self.config.input_features[key].shape) for key in state}
        if not traits_of(self.policy_type).resizes:
            expected |= {camera: (*lead, 3, *own) for camera, own in self.picture_sizes.items()}
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

        Adapters are merged into the weights for good, see `settle`.

        Raises UserError, before anything is written, if `directory` holds something else than a policy checkpoint, or
        a weight or statistic is not finite.
        """
        directory = Path(directory)
        occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
        if occupied and not (directory / CONFIG).is_file():
            raise UserError(f"{directory}: exists and is not a policy checkpoint; it is left as it is")
        self.settle()
        check_savable(self.policy, self.preprocessor, self.postprocessor)
        with atomic_directory(directory, may_go=is_written) as partial:
            for part in (self.policy, self.preprocessor, self.postprocessor):
                part.save_pretrained(partial)

    def settle(self) -> None:
        """Make of the policy what LeRobot's loaders can read: adapters become a part of the weights."""
        merge_lora(self.policy)

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: str = "cpu", loading: Loading = STRICT) -> PolicyObjective:
        """Load a checkpoint written by `save_pretrained`, in evaluation mode.

        Only JSON and safetensors are read, see `policies.checkpoints`. Raises UserError if the directory is missing or
        holds something else, for what `loading` does not allow, or if a weight, step or statistic is missing.
        """
        directory = Path(directory)
        config = read_config(directory, loading)
        check_features(directory / CONFIG, config)
        config.pretrained_path = directory  # so that no type fetches weights which are here
        policy = load_weights(config, directory, loading)
        processors = load_processors(config, directory, device, loading)
        policy.config.pretrained_path, policy.config.device = None, device
        objective = cls(policy.to(device), *processors).eval()
        if objective.chunks:
            blank = blank_observation(config)
            shape = (1, objective.n_action_steps, objective.action_dim)
            try_out(directory, lambda: objective.predict_action_chunk(blank), shape)
        return objective


def freeze_vision(policy: PreTrainedPolicy) -> None:
    """Leave what turns the picture into features as it is from now on.

    Raises UserError for a type of which it is not known what that is.
    """
    frozen = [policy.get_submodule(name) for name in traits_of(policy.name).vision]
    if policy.name == "fastwam":
        model: Any = policy.get_submodule("model")
        frozen = [model.video_expert, *(layer.blocks["video"] for layer in model.mot.layers)]
    if not frozen:
        raise UserError(f"freeze_vision_encoder=true: it is not known which part of {policy.name} sees")
    for module in frozen:
        module.requires_grad_(False)


def predicts_chunks(config: PreTrainedConfig) -> bool:
    """If a policy of this config predicts a chunk from one observation, remembering nothing."""
    alone = all(delta >= 0 for delta in config.observation_delta_indices or [0])
    ensemble = getattr(config, "temporal_ensemble_coeff", None) is not None
    return alone and not ensemble and traits_of(config.type).chunks


def blank_observation(config: PreTrainedConfig) -> dict[str, Any]:
    """One black observation of all that a policy sees."""
    features = config.input_features or {}
    keys = [*visual(config), *([STATE] if STATE in features else [])]
    return {**{key: torch.zeros(1, *features[key].shape) for key in keys}, TASK: ["try"]}


def as_lerobot(stats: Statistics, config: PreTrainedConfig) -> Statistics:
    """Statistics with those of ImageNet for cameras, as LeRobot's training has them; of our types the data's own."""
    if config.type in OURS:
        return stats
    imagenet = {name: np.array(value, np.float32).reshape(3, 1, 1) for name, value in IMAGENET_STATS.items()}
    return {**stats, **{camera: {**stats.get(camera, {}), **imagenet} for camera in visual(config)}}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def check_features(path: str | Path, config: PreTrainedConfig) -> None:
    """Raise UserError unless a policy sees pictures, and no more than a state and the instruction beside them."""
    inputs, outputs = config.input_features or {}, config.output_features or {}
    pictures = {key for key, feature in inputs.items() if feature.type is FeatureType.VISUAL}
    if not pictures:
        raise UserError(f"{path}: the policy has no feature of type VISUAL; expected the picture of a camera")
    needed = [
        (outputs, ACTION, FeatureType.ACTION),
        *([(inputs, STATE, FeatureType.STATE)] if config.type in OURS else []),
    ]
    for features, key, kind in needed:
        if key not in features or features[key].type is not kind:
            raise UserError(f"{path}: the policy has no feature '{key}' of type {kind.value}; expected one")
    own = {ENVIRONMENT_STATE} if config.type in OURS else set()
    if others := sorted({*inputs, *outputs} - {*pictures, *own, STATE, ACTION}):
        raise UserError(f"{path}: the policy has the feature '{others[0][:100]}'; expected pictures, {STATE}, {ACTION}")
    check_trainable(config)


def cameras_in(observation: dict[str, Any]) -> dict[str, Tensor]:
    """The pictures of an observation, by camera."""
    return {key: value for key, value in observation.items() if isinstance(value, Tensor) and value.ndim == 4}
