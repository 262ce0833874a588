"""Any LeRobot policy, run as LeRobot runs it: one scene at a time, one action for each picture, its own memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from torch import Tensor

from policies.checkpoint_config import STRICT, Loading, read_config
from policies.checkpoint_processors import load_processors
from policies.checkpoints import load_weights, try_out
from policies.factory import CONFIGS, PolicyObjective, cameras_in
from policies.generator_kinds import acts_as_generator
from policies.vag_policy.objective import load_generator_policy
from toolkit.base.errors import UserError
from toolkit.base.randomness import isolated_randomness
from toolkit.data.episode import STATE, TASK


class StockPolicy:
    """A policy of another type, or with a longer memory, than `PolicyObjective` trains."""

    n_action_steps = 1

    def __init__(
        self,
        policy: PreTrainedPolicy,
        preprocessor: PolicyProcessorPipeline,
        postprocessor: PolicyProcessorPipeline,
        image_key: str,
    ) -> None:
        self.policy, self.preprocessor, self.postprocessor = policy, preprocessor, postprocessor
        self.image_key = image_key
        self.policy_type = str(policy.config.type)

    @property
    def picture_size(self) -> tuple[int, int]:
        """(H, W)."""
        _, height, width = (self.policy.config.input_features or {})[self.image_key].shape
        return height, width

    def reset(self) -> None:
        """Forget the scene before."""
        self.policy.reset()
        self.preprocessor.reset()
        self.postprocessor.reset()

    @torch.no_grad()
    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Sequence[int] | None = None) -> Tensor:
        """The next action of the one scene there is, (1, 1, A) in physical units.

        noise_seeds: the one that everything drawn for it comes from; None = torch's global generator, which goes on.
        Raises UserError if the state is not as wide as the policy's.
        """
        feature = (self.policy.config.input_features or {}).get(STATE)
        got = tuple(observation[STATE].shape)
        if feature is not None and got != (1, *feature.shape):
            raise UserError(f"{STATE}: got shape {got}, expected {(1, *feature.shape)} ({self.policy_type} policy)")
        (picture,) = cameras_in(observation).values()
        frame = {self.image_key: picture, STATE: observation[STATE], TASK: observation[TASK]}
        with nullcontext() if noise_seeds is None else isolated_randomness(*noise_seeds):
            return self.postprocessor(self.policy.select_action(self.preprocessor(frame)))[:, None]


def load_policy(directory: str | Path, device: str = "cpu", loading: Loading = STRICT) -> PolicyObjective | StockPolicy:
    """A checkpoint of this toolkit, a generator among them, or of any LeRobot policy with one picture and the state.

    Raises UserError if it is missing or damaged, for what `loading` does not allow, or if it sees what the
    environments do not show.
    """
    directory = Path(directory)
    if acts_as_generator(directory):
        return load_generator_policy(directory, device, loading)
    config = read_config(directory, loading)
    if config.type in CONFIGS and config.n_obs_steps == 1:
        return PolicyObjective.from_pretrained(directory, device, loading)
    image_key = _only_picture(config, directory)
    config.pretrained_path = directory  # so that no type fetches weights which are here
    policy = load_weights(config, directory, loading)
    processors = load_processors(config, directory, device, loading)
    policy.config.device = device
    stock = StockPolicy(policy.to(device).eval(), *processors, image_key)
    features = config.input_features or {}
    state = features[STATE].shape if STATE in features else (1,)
    blank = {image_key: torch.zeros(1, *features[image_key].shape), STATE: torch.zeros(1, *state), TASK: ["try"]}
    stock.reset()
    try_out(directory, lambda: stock.predict_action_chunk(blank), (1, 1, 0))  # some types give more than the robot has
    stock.reset()
    return stock


def _only_picture(config: PreTrainedConfig, directory: Path) -> str:
    features = config.input_features or {}
    pictures = [key for key, feature in features.items() if feature.type is FeatureType.VISUAL]
    others = sorted(set(features) - {*pictures, STATE})
    if len(pictures) != 1 or others:
        expected = ", ".join([*pictures, *others]) or "nothing"
        raise UserError(f"{directory}: the policy sees {expected}; the environments show one picture and {STATE}")
    return pictures[0]
