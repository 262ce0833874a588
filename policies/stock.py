"""Any LeRobot policy, run as LeRobot runs it: one scene at a time, one action for each picture, its own memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from torch import Tensor

from policies.factory import CONFIGS, PolicyObjective, load_weights, read_config
from toolkit.data.schema import IMAGE, STATE, TASK
from toolkit.errors import UserError


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

    def reset(self) -> None:
        """Forget the scene before."""
        self.policy.reset()
        self.preprocessor.reset()
        self.postprocessor.reset()

    @torch.no_grad()
    def predict_action_chunk(self, observation: dict[str, Any]) -> Tensor:
        """The next action of the one scene there is, (1, 1, A) in physical units."""
        frame = {self.image_key: observation[IMAGE], STATE: observation[STATE], TASK: observation[TASK]}
        return self.postprocessor(self.policy.select_action(self.preprocessor(frame)))[:, None]


def load_policy(directory: str | Path, device: str = "cpu") -> PolicyObjective | StockPolicy:
    """A checkpoint of this toolkit, or of any LeRobot policy with one picture and the state.

    Raises UserError if it is missing or damaged, or sees what the environments do not show.
    """
    directory = Path(directory)
    config = read_config(directory, any_type=True)
    if config.type in CONFIGS and config.n_obs_steps == 1:
        return PolicyObjective.from_pretrained(directory, device)
    image_key = _only_picture(config, directory)
    config.device = device
    try:
        policy = get_policy_class(config.type)(config)
        load_weights(policy, directory / "model.safetensors")
        overrides = {"device_processor": {"device": device}}
        processors = make_pre_post_processors(config, pretrained_path=str(directory), preprocessor_overrides=overrides)
    except UserError:
        raise
    except Exception as error:  # every policy type has requirements of its own
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(f"{directory}: LeRobot cannot load this '{config.type}' policy ({reason})") from error
    return StockPolicy(policy.to(device).eval(), processors[0], processors[1], image_key)


def _only_picture(config: PreTrainedConfig, directory: Path) -> str:
    features = config.input_features or {}
    pictures = [key for key, feature in features.items() if feature.type is FeatureType.VISUAL]
    others = sorted(set(features) - {*pictures, STATE})
    if len(pictures) != 1 or others:
        expected = ", ".join([*pictures, *others]) or "nothing"
        raise UserError(f"{directory}: the policy sees {expected}; the environments show one picture and {STATE}")
    return pictures[0]


def checkpoint_directory(checkpoint: str) -> Path:
    """A directory as it is, or a policy downloaded from the Hugging Face hub: JSON and safetensors alone.

    Raises UserError if it is neither.
    """
    if Path(checkpoint).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint):
        return Path(checkpoint)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # offline, not there, not allowed: the hub client has a class for each
        text = " ".join((str(error) or type(error).__name__).split())[:160]
        raise UserError(
            f"{checkpoint}: no such directory here, and the Hugging Face hub does not give it "
            f"({type(error).__name__}: {text})"
        ) from error
