"""What happens to a batch before and after `vag_policy`: LeRobot's own steps, without normalisation."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)

from policies.vag_policy.configuration_vag import VagConfig


def make_vag_policy_pre_post_processors(
    config: VagConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Rename, batch, to device; and back to the CPU. LeRobot finds it by name.

    The steps that normalise are there, with the identity for every feature: the generator has its own statistics.
    """
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        input_steps=[steps.rename_observations, steps.add_batch_dim, steps.normalize, steps.to_device],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
