"""What the video branch is made of: a tokenizer and a backbone, each chosen by its `kind`.

Another small network takes part as a module that keeps to one of the two protocols and an entry in the table below. A
pretrained video model does not yet: its text encoder, noise schedule and causal groups of frames are not in them.

Shapes: frames (B, 3, F, H, W) in [0, 1]; latents (B, C, T, h, w) of unit variance, C, T, h, w =
`GeneratorConfig.latent_shape`: one latent frame for the first frame and one for each `temporal_stride` after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from vag_core.config import GeneratorConfig
from vag_core.layers import InstructionEncoder
from vag_core.scene_encoder import SceneEncoder
from vag_core.tokenizer import VideoTokenizer
from vag_core.video_dit import VideoDiT


class Tokenizer(Protocol):
    """Frames <-> latents, causal: the first latent frame depends on the first frame alone."""

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, F, H, W) -> (B, C, T, h, w)."""

    def encode_first(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, 1, h, w)."""

    def decode(self, latents: Tensor, first_frame: Tensor | None = None) -> Tensor:
        """(B, C, T, h, w) -> (B, 3, F, H, W); `first_frame` (B, 3, H, W) comes back as it is."""

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Objective of its own training on batch["frames"]."""

    def calibrate(self, frames: Tensor) -> None:
        """Measure on (B, 3, F, H, W) what brings the latents to unit variance."""


class Backbone(Protocol):
    """Noisy latents, time and conditions -> velocity and hidden tokens."""

    def __call__(
        self,
        noisy: Tensor,
        first: Tensor,
        t: Tensor,
        scene: Tensor,
        condition: Tensor,
        grouped: Tensor,
        t_action: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """noisy: (B, C, T-1, h, w) at times t (B,), first: (B, C, 1, h, w) clean.

        scene: (B, S, D) tokens of the first frame and condition: (B, D) of instruction and state, where D =
        `video.width` and S = h w / `video.patch_size` squared. grouped: (B, T-1, n) noisy trajectory at times t_action
        (B,), to be left alone unless `action.video_follows_actions`. Returns the velocity, as noisy, and the hidden
        tokens (B, T-1, S, D) of the same frames, which the action branch reads.
        """


TOKENIZERS: dict[str, Callable[[GeneratorConfig], Any]] = {
    "conv": lambda config: VideoTokenizer(config.tokenizer),
}
BACKBONES: dict[str, Callable[[GeneratorConfig], Any]] = {
    "dit": lambda config: VideoDiT(
        config.video, config.latent_shape[0], config.group_width if config.action.video_follows_actions else 0
    ),
}


class VideoBranch(nn.Module):
    """A backbone, and the encoders of what it is conditioned on."""

    def __init__(self, config: GeneratorConfig, backbone: Any) -> None:
        super().__init__()
        text, width = config.instruction, config.video.width
        self.backbone = backbone
        self.scene = SceneEncoder(config, width, with_tokens=True)
        self.instruction = InstructionEncoder(text.kind, width, text.length, text.embedding_width)
        self.state = nn.Linear(config.state_dim, width)

    def encode(
        self,
        image: Float[Tensor, "b 3 height width"],
        state: Float[Tensor, "b s"],
        instruction: list[str] | Tensor,
        keep: Shaped[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b d"]]:
        """image (B, 3, H, W) in [0, 1], normalised state (B, S), B instructions -> tokens (B, S, D), condition (B, D).

        keep: (B,), 0 drops the instruction.
        """
        tokens, summary = self.scene(image)
        return tokens, summary + self.instruction(instruction, keep) + self.state(state)


def build_video_branch(config: GeneratorConfig) -> tuple[Any, VideoBranch]:
    """Tokenizer and video branch. Raises ValueError for a kind that is in no table."""
    for name, kind, table in (
        ("tokenizer.kind", config.tokenizer.kind, TOKENIZERS),
        ("video.kind", config.video.kind, BACKBONES),
    ):
        if kind not in table:
            raise ValueError(f"{name} = {kind!r}: expected one of {', '.join(table)}")
    tokenizer = TOKENIZERS[config.tokenizer.kind](config)
    return tokenizer, VideoBranch(config, BACKBONES[config.video.kind](config))
