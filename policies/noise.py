"""Chunks whose noise belongs to each sample: the same alone and in any batch, and for every policy of the same shape.

B samples, T action steps, A action width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel, DiffusionPolicy
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from policies.pi05_compact import Pi05CompactPolicy
from policies.vag_policy.modeling_vag import VagPolicy
from toolkit.base.randomness import isolated_randomness

OF_PADDED_ACTIONS = ("smolvla", "pi0", "pi05")  # whose noise, handed over, has the width of their weights


def predict_chunk(policy: PreTrainedPolicy, batch: dict[str, Any], noise_seeds: Sequence[int] | None) -> Tensor:
    """Normalised actions (B, T, A) of a preprocessed batch, with noise from a seed for each sample.

    None: from torch's global generator, as LeRobot does. Noise is drawn on the CPU, so that a seed means the same on
    every device; of a policy that cannot be handed noise, each sample is predicted alone and noise is the device's.
    """
    if noise_seeds is None:
        return policy.predict_action_chunk(batch)
    if isinstance(policy, VagPolicy):
        return policy.predict_action_chunk(batch, noise_seeds)
    config = cast(Any, policy.config)
    if policy.name == "act":  # which draws nothing
        return policy.predict_action_chunk(batch)
    if policy.name not in OF_PADDED_ACTIONS and not isinstance(policy, Pi05CompactPolicy | DiffusionPolicy):
        parts = []
        for row, seed in enumerate(noise_seeds):
            alone = {k: v[row : row + 1] if isinstance(v, Tensor | list) else v for k, v in batch.items()}
            with isolated_randomness(seed):
                parts.append(policy.predict_action_chunk(alone))
        return torch.cat(parts)
    generators = [torch.Generator().manual_seed(seed) for seed in noise_seeds]
    steps = config.horizon if isinstance(policy, DiffusionPolicy) else config.chunk_size
    width = config.max_action_dim if policy.name in OF_PADDED_ACTIONS else config.action_feature.shape[0]
    shape, like = (steps, width), next(policy.parameters())
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(like)  # (B, T, A)
    if policy.name in OF_PADDED_ACTIONS:
        return policy.predict_action_chunk(batch, noise=noise.float())
    if isinstance(policy, Pi05CompactPolicy):
        return policy.predict_action_chunk(batch, noise=config.sampling_temperature * noise)
    with _steps_draw_from(policy.diffusion, generators):
        return policy.predict_action_chunk(batch, noise=noise)


@contextmanager
def _steps_draw_from(diffusion: DiffusionModel, generators: list[torch.Generator]) -> Iterator[None]:
    """Inside, a stochastic solver (DDPM) takes the noise of its steps from the generator of each sample.

    LeRobot's sampler hands `generator` on to diffusers, which takes a list, but nobody hands it to the sampler.
    """
    cast(Any, diffusion).conditional_sample = partial(diffusion.conditional_sample, generator=generators)
    try:
        yield
    finally:
        del diffusion.conditional_sample
