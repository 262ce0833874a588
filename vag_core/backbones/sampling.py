"""Sampling the video alone, by the backbone's own clock."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vag_core.backbones.networks import PretrainedNetwork
from vag_core.flow_matching import Streams, Times, integrate


@torch.no_grad()
def sample_latents(
    backbone: PretrainedNetwork,
    noise: Float[Tensor, "b c k h w"],
    first: Float[Tensor, "b c 1 h w"],
    text: Float[Tensor, "b l d"],
    free: Float[Tensor, "b l d"] | None,
    steps: int,
    guidance_scale: float = 1.0,
) -> Float[Tensor, "b c k h w"]:
    """Latents (B, C, T-1, h, w) after the clean first (B, C, 1, h, w), as the model's own pipeline makes them.

    noise: standard normal. text, free: (B, L, D) of the prompt and of the negative one. guidance_scale: as the
    pipeline counts it; up to 1 there is no guidance. Raises ValueError for guidance without a negative prompt.
    """
    guided = guidance_scale > 1
    if guided and free is None:
        raise ValueError(f"guidance_scale = {guidance_scale}: expected the embedding of a negative prompt")
    clock, scale = backbone.clock(steps), guidance_scale + backbone.guidance_offset
    asked = dict(zip(clock.times, clock.asked, strict=False))

    def velocity(streams: Streams, times: Times) -> Streams:
        t = torch.full((len(first),), times[0], device=first.device)
        given, _ = backbone(streams[0], first, t, text, asked[times[0]])
        if not guided or free is None:
            return (given,)
        without, _ = backbone(streams[0], first, t, free, asked[times[0]])
        return (without + scale * (given - without),)

    times = [(time,) for time in clock.times]
    (latents,) = integrate(velocity, (clock.start(noise),), times, steppers=(clock.stepper,))
    return clock.finish(latents)
