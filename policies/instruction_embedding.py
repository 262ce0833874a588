"""Gives a policy without a language input the instruction as `observation.environment_state`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import ProcessorStep, ProcessorStepRegistry
from torch import Tensor

from toolkit.data.episode import ENVIRONMENT_STATE, STATE, TASK
from toolkit.data.text import InstructionEmbedder


@ProcessorStepRegistry.register(name="vag_instruction_embedding")
@dataclass
class InstructionEmbeddingProcessorStep(ProcessorStep):
    """Embeds `task` (see `InstructionEmbedder`) and scales it to unit variance, like the normalised state beside it.

    A state with a time axis (B, n_obs_steps, S) gets an embedding with one; otherwise it is (B, width).
    """

    width: int = 64
    path: str | None = None

    def __post_init__(self) -> None:
        self._embedder = InstructionEmbedder(self.width, self.path)
        self.width = self._embedder.width

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Raises ValueError if the batch has no `task`."""
        tasks = (transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get(TASK)
        if tasks is None:
            raise ValueError(f"no '{TASK}' in the batch: the policy needs one instruction per sample")
        observation = dict(transition.get(TransitionKey.OBSERVATION) or {})
        embedding = self._embedder.embed([tasks] if isinstance(tasks, str) else list(tasks)) * self.width**0.5
        state = observation.get(STATE)
        if isinstance(state, Tensor):
            embedding = embedding.to(state.device)
            if state.ndim == 3:
                embedding = embedding[:, None].expand(-1, state.shape[1], -1)
        transition = transition.copy()
        transition[TransitionKey.OBSERVATION] = {**observation, ENVIRONMENT_STATE: embedding}
        return transition

    def get_config(self) -> dict[str, Any]:
        return {"width": self.width, "path": self.path}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        added = {ENVIRONMENT_STATE: PolicyFeature(FeatureType.ENV, (self.width,))}
        features[PipelineFeatureType.OBSERVATION] = {
            **features.get(PipelineFeatureType.OBSERVATION, {}),
            **added,
        }
        return features
