"""Cosmos-Predict2, Cosmos-Predict2.5 and Wan2.2-TI2V as velocity networks of flow matching.

Cosmos-Predict2 is published in EDM's terms (arXiv 2206.00364): with t = sigma / (1 + sigma) its preconditioning is
c_in = c_skip = 1 - t, c_out = -t, so the network itself predicts noise - x_0 at x_t. The others are published so.

Shapes: latents (B, C, T, h, w), text (B, L, D) token embeddings of the model's own encoder, with zeros as padding;
for Cosmos-Predict2.5 as the encoder gives them or projected, as `text` keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vag_core.backbones.clock import SIGMA_MAX, SIGMA_MIN, VideoClock, karras_clock, scheduler_clock

CLEAN = 1e-4  # noise level that Cosmos networks are told of the clean first latent


class PretrainedNetwork(nn.Module):
    """What all of them offer.

    guidance_offset: added to a pipeline's guidance scale: Cosmos means c + g (c - f), Wan f + g (c - f). unit: what the
    network is told at t = 1. limits: least and largest t that it knows. shift: of training times towards noise.
    """

    guidance_offset = 0.0
    unit = 1.0
    limits = (0.0, 1.0)
    shift = 1.0
    embedding: str  # names of the layer that makes tokens of patches, and of the list of blocks
    block_list: str

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        """transformer, scheduler: of diffusers."""
        super().__init__()
        self.transformer = transformer
        self.scheduler = scheduler
        self.dtype: torch.dtype = transformer.dtype  # adapters that are added may have another

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, in order."""
        return getattr(self.transformer, self.block_list)

    def clock(self, steps: int, method: str | None = None) -> VideoClock:
        """A new clock for one sample. method: None is the model's own solver, unipc that of diffusers; for any other
        the grid of times alone. Raises ValueError for too few steps."""
        clock = self.own_clock(steps)
        if method == "unipc":  # which ends at 0
            other = scheduler_clock(self.unipc(), steps, self.unit, truncated=self.truncates())
            return replace(other, first_scale=clock.first_scale)
        return clock if method is None else replace(clock, stepper=None)

    def truncates(self) -> bool:
        """Whether the network is told a scheduler's whole numbers in place of the grid's times."""
        return False

    def own_clock(self, steps: int) -> VideoClock:
        """The clock of the model's pipeline."""
        return scheduler_clock(self.scheduler, steps, self.unit, truncated=self.truncates())

    def unipc(self) -> Any:
        """diffusers' UniPC scheduler (arXiv 2302.04867) for this model."""
        from diffusers import UniPCMultistepScheduler

        shipped = isinstance(self.scheduler, UniPCMultistepScheduler)
        return self.scheduler if shipped else UniPCMultistepScheduler(**self.unipc_options())

    def unipc_options(self) -> dict[str, Any]:
        """Of the UniPC scheduler where the model's own is another one."""
        return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": self.shift}

    def set_fps(self, fps: float) -> None:
        """Frames a second of the clips; most networks do not ask."""

    def within(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Times (B,) between the `limits`; those of 0 stay: they are of data."""
        return torch.where(t > 0, t.clamp(*self.limits), t)

    def forward(
        self,
        noisy: Float[Tensor, "b c k h w"],
        first: Float[Tensor, "b c 1 h w"],
        t: Float[Tensor, " b"],
        text: Float[Tensor, "b l d"],
        asked: float | None = None,
        added: Float[Tensor, "b k v"] | None = None,
        read_depth: int = 0,
    ) -> tuple[Float[Tensor, "b c k h w"], Float[Tensor, "b k s v"] | None]:
        """Velocity of noisy (B, C, T-1, h, w) at times t (B,), after the clean first (B, C, 1, h, w).

        text: (B, L, D). asked: time in the network's own unit instead of t, for all clips: see `VideoClock`. added:
        (B, T-1, W), to the tokens of each noisy latent frame. The second value is the tokens (B, T-1, S, W) of these
        frames after `read_depth` blocks, None for 0.
        """
        time = self.unit * t.clamp(*self.limits) if asked is None else torch.full_like(t, asked)
        x = torch.cat([first, noisy], dim=2).to(self.dtype)
        found = list[Tensor]()
        with self._hooked(added, found if read_depth else None, read_depth):
            velocity = self.evaluate(x, time, text.to(x.dtype))[:, :, 1:].to(noisy.dtype)
        if not read_depth:
            return velocity, None
        return velocity, rearrange(found[0], "b (t s) w -> b t s w", t=x.shape[2])[:, 1:]

    @contextmanager
    def _hooked(self, added: Tensor | None, found: list[Tensor] | None, read_depth: int) -> Iterator[None]:
        """Inside, tokens get something added and are looked at. No hook stays, also not for the second run of a block
        under activation checkpointing, which would keep its tokens for ever."""
        handles = []
        if added is not None:
            embedding = getattr(self.transformer, self.embedding)
            handles.append(embedding.register_forward_hook(lambda layer, inputs, tokens: self.add(tokens, added)))
        if found is not None:
            block = self.blocks[read_depth - 1]
            handles.append(block.register_forward_hook(lambda layer, inputs, tokens: found.append(tokens)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, tokens: Tensor, added: Tensor) -> Tensor:
        """Tokens of patches, as the network's first layer gives them, with (B, T-1, W) added to the noisy frames."""
        raise NotImplementedError

    def evaluate(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """Output (B, C, T, h, w) of the network for x (B, C, T, h, w), of which the first latent is clean."""
        raise NotImplementedError


class Cosmos2(PretrainedNetwork):
    """CosmosTransformer3DModel of Cosmos-Predict2 Video2World."""

    guidance_offset = 1.0
    clean = CLEAN / (1 + CLEAN)
    limits = (SIGMA_MIN / (1 + SIGMA_MIN), SIGMA_MAX / (1 + SIGMA_MAX))  # no shift was published
    embedding, block_list = "patch_embed", "transformer_blocks"

    def __init__(self, transformer: Any, scheduler: Any, fps: float = 16.0) -> None:
        """fps: frames a second of the clips, by which the network counts time."""
        super().__init__(transformer, scheduler)
        self.fps: float | None = fps

    def own_clock(self, steps: int) -> VideoClock:
        """See `PretrainedNetwork`."""
        return karras_clock(steps)

    def unipc_options(self) -> dict[str, Any]:
        """See `PretrainedNetwork`: on the same levels of noise."""
        levels = {"use_karras_sigmas": True, "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
        return super().unipc_options() | levels

    def set_fps(self, fps: float) -> None:
        """See `PretrainedNetwork`."""
        self.fps = None if self.fps is None else fps

    def add(self, tokens: Float[Tensor, "b t h w d"], added: Float[Tensor, "b k d"]) -> Float[Tensor, "b t h w d"]:
        """See `PretrainedNetwork`."""
        own = added[:, :, None, None].to(tokens.dtype)
        return torch.cat([tokens[:, :1], tokens[:, 1:] + own], dim=1)

    def evaluate(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """See `PretrainedNetwork`. The mask channel says which latent is clean."""
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
    limits = (1e-3, 200 / 201)
    shift = 5.0  # as in diffusers' training script for this model

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__(transformer, scheduler)
        self.fps = None
        transformer.crossattn_proj = TextProjection(*transformer.crossattn_proj)

    def own_clock(self, steps: int) -> VideoClock:
        """See `PretrainedNetwork`."""
        return PretrainedNetwork.own_clock(self, steps)

    def project(self, text: Float[Tensor, "b l raw"]) -> Float[Tensor, "b l d"]:
        """Text of the encoder -> what the network attends to; it may be called with either."""
        return self.transformer.crossattn_proj(text.to(self.transformer.dtype)).to(text.dtype)


class Wan22(PretrainedNetwork):
    """WanTransformer3DModel of Wan2.2-TI2V, which is told a time for each token: 0 for those of the first frame."""

    unit = 1000.0
    limits = (1e-3, 1.0)
    embedding, block_list = "patch_embedding", "blocks"

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__(transformer, scheduler)
        self.shift = scheduler.config.get("flow_shift") or scheduler.config.get("shift", 1.0)  # of its grid

    def truncates(self) -> bool:
        """See `PretrainedNetwork`: its pipeline does so with UniPC."""
        return type(self.scheduler).__name__ == "UniPCMultistepScheduler"

    def add(self, tokens: Float[Tensor, "b d t h w"], added: Float[Tensor, "b k d"]) -> Float[Tensor, "b d t h w"]:
        """See `PretrainedNetwork`."""
        own = added.transpose(1, 2)[..., None, None].to(tokens.dtype)
        return torch.cat([tokens[:, :, :1], tokens[:, :, 1:] + own], dim=2)

    def evaluate(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """See `PretrainedNetwork`."""
        _, patch_height, patch_width = self.transformer.config.patch_size
        spatial = (x.shape[3] // patch_height) * (x.shape[4] // patch_width)
        times = time[:, None].repeat(1, x.shape[2] * spatial)
        times[:, :spatial] = 0
        return self.transformer(hidden_states=x, timestep=times, encoder_hidden_states=text, return_dict=False)[0]


def shifted(t: Float[Tensor, " b"], shift: float) -> Float[Tensor, " b"]:
    """Times moved towards noise (arXiv 2403.03206, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


NETWORKS: dict[str, Callable[..., PretrainedNetwork]] = {"cosmos": Cosmos2, "cosmos25": Cosmos25, "wan": Wan22}
