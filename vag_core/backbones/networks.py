"""Cosmos-Predict2, Cosmos-Predict2.5 and Wan2.2-TI2V as velocity networks of flow matching.

Cosmos-Predict2 is published in EDM's terms (arXiv 2206.00364): with t = sigma / (1 + sigma) its preconditioning is
c_in = c_skip = 1 - t, c_out = -t, so the network itself predicts noise - x_0 at x_t. The others are published so.

Shapes: latents (B, C, T, h, w), text (B, L, D) token embeddings of the model's own encoder, with zeros as padding;
for Cosmos-Predict2.5 as the encoder gives them or projected, as `text` keeps them.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vag_core.backbones.clock import SIGMA_MAX, SIGMA_MIN, VideoClock, karras_clock, scheduler_clock

CLEAN = 1e-4  # noise level that Cosmos networks are told of the clean first latent


class PretrainedBackbone(Protocol):
    """What a pretrained video model offers."""

    guidance_offset: float  # added to a pipeline's guidance scale: Cosmos means c + g (c - f), Wan f + g (c - f)

    def clock(self, steps: int) -> VideoClock:
        """A new clock for one sample. Raises ValueError for too few steps."""

    def training_time(self, t: Tensor) -> Tensor:
        """Times (B,) drawn for training -> those that the model was trained on, with the published shift."""

    def __call__(self, noisy: Tensor, first: Tensor, t: Tensor, text: Tensor, asked: float | None = None) -> Tensor:
        """Velocity of noisy (B, C, T-1, h, w) at times t (B,), after the clean first (B, C, 1, h, w).

        text: (B, L, D). asked: time in the network's own unit instead of t, for all clips: see `VideoClock`.
        """


class _Network(nn.Module):
    guidance_offset = 0.0
    unit = 1.0  # what the network is told at t = 1

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        """transformer, scheduler: of diffusers."""
        super().__init__()
        self.transformer = transformer
        self.scheduler = scheduler

    def forward(
        self,
        noisy: Float[Tensor, "b c k h w"],
        first: Float[Tensor, "b c 1 h w"],
        t: Float[Tensor, " b"],
        text: Float[Tensor, "b l d"],
        asked: float | None = None,
    ) -> Float[Tensor, "b c k h w"]:
        """See `PretrainedBackbone`."""
        time = self.unit * t if asked is None else torch.full_like(t, asked)
        x = torch.cat([first, noisy], dim=2).to(self.transformer.dtype)
        return self.evaluate(x, time, text.to(x.dtype))[:, :, 1:].to(noisy.dtype)

    def evaluate(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """Output (B, C, T, h, w) of the network for x (B, C, T, h, w), of which the first latent is clean."""
        raise NotImplementedError


class Cosmos2(_Network):
    """CosmosTransformer3DModel of Cosmos-Predict2 Video2World."""

    guidance_offset = 1.0
    clean = CLEAN / (1 + CLEAN)

    def __init__(self, transformer: Any, scheduler: Any, fps: float = 16.0) -> None:
        """fps: frames a second of the clips, by which the network counts time."""
        super().__init__(transformer, scheduler)
        self.fps: float | None = fps

    def clock(self, steps: int) -> VideoClock:
        """See `PretrainedBackbone`."""
        return karras_clock(steps)

    def training_time(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Kept between the ends of the sampling grid; no shift was published."""
        return t.clamp(SIGMA_MIN / (1 + SIGMA_MIN), SIGMA_MAX / (1 + SIGMA_MAX))

    def evaluate(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """See `_Network`. The mask channel says which latent is clean."""
        size, _, frames, height, width = x.shape
        mask = x.new_zeros(size, 1, frames, height, width)
        mask[:, :, 0] = 1
        times = time.view(-1, 1, 1, 1, 1).repeat(1, 1, frames, 1, 1)
        times[:, :, 0] = self.clean
        return self.transformer(
            hidden_states=x,
            timestep=times,
            encoder_hidden_states=text,
            fps=self.fps,
            condition_mask=mask,
            padding_mask=x.new_zeros(1, 1, height, width),
            return_dict=False,
        )[0]


class TextProjection(nn.Sequential):
    """A linear layer and what follows; text (B, L, D) that is as wide as its output has been through it already."""

    def forward(self, text: Tensor) -> Tensor:
        """(B, L, in or out) -> (B, L, out)."""
        return super().forward(text) if text.shape[-1] == self[0].in_features else text


class Cosmos25(Cosmos2):
    """CosmosTransformer3DModel of Cosmos-Predict2.5: another clock, and time counted in frames."""

    clean = CLEAN
    shift = 5.0

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__(transformer, scheduler)
        self.fps = None
        transformer.crossattn_proj = TextProjection(*transformer.crossattn_proj)

    def clock(self, steps: int) -> VideoClock:
        """See `PretrainedBackbone`."""
        return scheduler_clock(self.scheduler, steps, self.unit, truncated=False)

    def project(self, text: Float[Tensor, "b l raw"]) -> Float[Tensor, "b l d"]:
        """Text of the encoder -> what the network attends to; it may be called with either."""
        return self.transformer.crossattn_proj(text.to(self.transformer.dtype)).to(text.dtype)

    def training_time(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Shifted by 5, as in diffusers' training script for this model, and at most 200/201."""
        return shifted(t, self.shift).clamp(max=200 / 201)


class Wan22(_Network):
    """WanTransformer3DModel of Wan2.2-TI2V, which is told a time for each token: 0 for those of the first frame."""

    unit = 1000.0

    def clock(self, steps: int) -> VideoClock:
        """See `PretrainedBackbone`."""
        unipc = type(self.scheduler).__name__ == "UniPCMultistepScheduler"
        return scheduler_clock(self.scheduler, steps, self.unit, truncated=unipc)

    def training_time(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Shifted as the scheduler's grid is."""
        config = self.scheduler.config
        return shifted(t, config.get("flow_shift") or config.get("shift", 1.0))

    def evaluate(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """See `_Network`."""
        _, patch_height, patch_width = self.transformer.config.patch_size
        spatial = (x.shape[3] // patch_height) * (x.shape[4] // patch_width)
        times = time[:, None].repeat(1, x.shape[2] * spatial)
        times[:, :spatial] = 0
        return self.transformer(hidden_states=x, timestep=times, encoder_hidden_states=text, return_dict=False)[0]


def shifted(t: Float[Tensor, " b"], shift: float) -> Float[Tensor, " b"]:
    """Times moved towards noise (arXiv 2403.03206, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


NETWORKS: dict[str, Any] = {"cosmos": Cosmos2, "cosmos25": Cosmos25, "wan": Wan22}
