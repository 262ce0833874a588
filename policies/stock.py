"""Any LeRobot policy, run as LeRobot runs it: one scene at a time, one action for each picture, its own memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from torch import Tensor

from policies.checkpoint_config import STRICT, Loading, read_config
from policies.checkpoint_processors import load_processors
from policies.checkpoints import load_weights, try_out
from policies.generator_kinds import acts_as_generator
from policies.objective import PolicyObjective, blank_observation, cameras_in, predicts_chunks
from policies.policy_types import OURS, visual
from policies.vag_policy.objective import load_generator_policy
from toolkit.base.errors import UserError
from toolkit.base.randomness import isolated_randomness
from toolkit.data.episode import ENVIRONMENT_STATE, STATE, TASK


class StockPolicy:
    """A policy with a memory, or of a type of which it is not known that it has none."""

    n_action_steps = 1

    def __init__(
        self, policy: PreTrainedPolicy, preprocessor: PolicyProcessorPipeline, postprocessor: PolicyProcessorPipeline
    ) -> None:
        self.policy, self.preprocessor, self.postprocessor = policy, preprocessor, postprocessor
        self.policy_type = str(policy.config.type)

    @property
    def cameras(self) -> list[str]:
        """Keys of the pictures that it sees."""
        return visual(self.policy.config)

    @property
    def picture_sizes(self) -> dict[str, tuple[int, int]]:
        """(H, W) of each camera's pictures."""
        features = self.policy.config.input_features or {}
        return {camera: (features[camera].shape[1], features[camera].shape[2]) for camera in self.cameras}

    @property
    def picture_size(self) -> tuple[int, int]:
        """(H, W) of the first camera's pictures."""
        return next(iter(self.picture_sizes.values()))

    def reset(self) -> None:
        """Forget the scene before."""
        self.policy.reset()
        self.preprocessor.reset()
        self.postprocessor.reset()

    @torch.no_grad()
    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Sequence[int] | None = None) -> Tensor:
        """The next action of the one scene there is, (1, 1, A) in physical units.

        observation: a picture of each camera, or of the only one there is under any name, state and instruction.
        noise_seeds: the one that everything drawn for it comes from; None = torch's global generator, which goes on.
        Raises UserError if a camera is missing, or the state is not as wide as the policy's.
        """
        feature = (self.policy.config.input_features or {}).get(STATE)
        got = tuple(observation[STATE].shape)
        if feature is not None and got != (1, *feature.shape):
            raise UserError(f"{STATE}: got shape {got}, expected {(1, *feature.shape)} ({self.policy_type} policy)")
        pictures = cameras_in(observation)
        if len(self.cameras) == len(pictures) == 1:
            pictures = dict(zip(self.cameras, pictures.values(), strict=True))
        if missing := [camera for camera in self.cameras if camera not in pictures]:
            raise UserError(f"{self.policy_type}: sees '{missing[0]}', but there is {', '.join(pictures)} alone")
        frame = {camera: pictures[camera] for camera in self.cameras}
        frame |= {STATE: observation[STATE], TASK: observation[TASK]}
        with nullcontext() if noise_seeds is None else isolated_randomness(*noise_seeds):
            return self.postprocessor(self.policy.select_action(self.preprocessor(frame)))[:, None]


def load_policy(directory: str | Path, device: str = "cpu", loading: Loading = STRICT) -> PolicyObjective | StockPolicy:
    """A checkpoint of this toolkit, a generator among them, or of any LeRobot policy that sees pictures and the state.

    Raises UserError if it is missing or damaged, for what `loading` does not allow, or if it sees what the
    environments do not show.
    """
    directory = Path(directory)
    if acts_as_generator(directory):
        return load_generator_policy(directory, device, loading)
    config = read_config(directory, loading)
    if predicts_chunks(config):
        return PolicyObjective.from_pretrained(directory, device, loading)
    _check_inputs(config, directory)
    config.pretrained_path = directory  # so that no type fetches weights which are here
    policy = load_weights(config, directory, loading)
    processors = load_processors(config, directory, device, loading)
    policy.config.device = device
    stock = StockPolicy(policy.to(device).eval(), *processors)
    blank = {STATE: torch.zeros(1, 1), **blank_observation(config)}
    stock.reset()
    try_out(directory, lambda: stock.predict_action_chunk(blank), (1, 1, 0))  # some types give more than the robot has
    stock.reset()
    return stock


def _check_inputs(config: PreTrainedConfig, directory: Path) -> None:
    pictures = visual(config)
    own = {ENVIRONMENT_STATE} if config.type in OURS else set()  # the instruction
    others = sorted(set(config.input_features or {}) - {*pictures, *own, STATE})
    others = [key for key in others if "empty_camera" not in key]
    if not pictures or others:
        expected = ", ".join([*pictures, *others]) or "nothing"
        raise UserError(f"{directory}: the policy sees {expected}; the environments show pictures and {STATE}")
