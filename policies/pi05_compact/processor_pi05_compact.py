"""What happens to a batch before and after `pi05_compact`: normalisation and instruction tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    ProcessorStep,
    ProcessorStepRegistry,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS

from policies.pi05_compact.configuration_pi05_compact import Pi05CompactConfig
from toolkit.base.errors import UserError, warn
from toolkit.data.episode import TASK
from toolkit.data.text import InstructionTokenizer, split_words


@ProcessorStepRegistry.register(name="pi05_compact_instruction_tokenizer")
@dataclass
class InstructionTokenizerProcessorStep(ProcessorStep):
    """Adds the hashed word ids of `task` and their mask to the observation."""

    length: int = 16
    buckets: int = 4096

    def __post_init__(self) -> None:
        self._tokenizer = InstructionTokenizer(self.length, self.buckets)

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Raises ValueError if the batch has no `task`."""
        tasks = (transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get(TASK)
        if tasks is None:
            raise ValueError(f"no '{TASK}' in the batch: the policy needs one instruction per sample")
        ids, mask = self._tokenizer.encode([tasks] if isinstance(tasks, str) else list(tasks))
        transition = transition.copy()
        transition[TransitionKey.OBSERVATION] = {
            **(transition.get(TransitionKey.OBSERVATION) or {}),
            OBS_LANGUAGE_TOKENS: ids,
            OBS_LANGUAGE_ATTENTION_MASK: mask,
        }
        return transition

    def check(self, tasks: Sequence[str]) -> None:
        """Warn where only a part of an instruction is read; raise UserError where two of them then are the same."""
        read: dict[tuple[str, ...], str] = {}
        for task in dict.fromkeys(tasks):
            words = split_words(task)
            other = read.setdefault(tuple(words[: self.length]), task)
            if split_words(other) != words:
                raise UserError(
                    f"'{task:.200}' and '{other:.200}' differ after the {self.length} words that the policy reads; "
                    f"train one with policy.options.tokenizer_max_length={max(len(words), len(split_words(other)))}"
                )
            if len(words) > self.length:
                warn(f"'{task:.200}' has {len(words)} words; the policy reads the first {self.length}")

    def get_config(self) -> dict[str, Any]:
        return {"length": self.length, "buckets": self.buckets}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        return features


def make_pi05_compact_pre_post_processors(
    config: Pi05CompactConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Rename, batch, normalise, tokenise, to device; and back: unnormalise, to CPU. LeRobot finds it by name."""
    steps = make_default_policy_processor_steps(config, dataset_stats)
    tokenize = InstructionTokenizerProcessorStep(config.tokenizer_max_length, config.tokenizer_buckets)
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            steps.normalize,
            tokenize,
            steps.to_device,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
