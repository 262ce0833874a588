"""What makes the video: a tokenizer and a branch, ours trained from scratch or a pretrained model (`backbones`).

A further video model takes part as a branch that keeps to `VideoBranch`, with its tokenizer, and an entry in BUILDERS.

Shapes: frames (B, 3, F, H, W) in [0, 1]; latents (B, C, T, h, w) of about unit variance, C, T, h, w =
`GeneratorConfig.latent_shape`: one latent frame for the first frame and one for each `temporal_stride` after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from vag_core.clocks import TimeDraw
from vag_core.config import ConvTokenizerConfig, DiTConfig, GeneratorConfig
from vag_core.flow_matching import sample_time
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


class TrainableTokenizer(Tokenizer, Protocol):
    """One that is trained with the generator."""

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Objective of its own training on batch["frames"]."""

    def calibrate(self, frames: Tensor) -> None:
        """Measure on (B, 3, F, H, W) what brings the latents to unit variance."""


class VideoBranch(Protocol):
    """Noisy latents, time and conditions -> velocity and hidden tokens."""

    guidance_offset: float  # added to a guidance scale: Cosmos means c + g (c - f), all others f + g (c - f)
    draw_time: TimeDraw  # times of training

    def check_instruction(self, instruction: list[str] | Tensor) -> None:
        """Raise ValueError for an instruction that cannot be read, such as one that is too long."""

    def encode(
        self, image: Tensor, state: Tensor, instruction: list[str] | Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """image (B, 3, H, W) in [0, 1], normalised state (B, S), B instructions -> tokens of the first frame (B, S, D)
        or None, and the condition: (B, D), or (B, L, Dt) tokens of text. keep: (B,), 0 drops the instruction."""

    def clock(self, steps: int, method: str | None = None) -> Any:
        """A new `backbones.clock.VideoClock` for a sample of so many steps; None for even steps from 1 to 0. method:
        the solver, None for the model's own."""

    def within(self, t: Tensor) -> Tensor:
        """Times (B,) between the ends that the network knows; 0, a pinned video, stays 0."""

    def __call__(
        self,
        noisy: Tensor,
        first: Tensor,
        t: Tensor,
        scene: Tensor | None,
        condition: Tensor,
        grouped: Tensor,
        t_action: Tensor,
        asked: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """noisy: (B, C, T-1, h, w) at times t (B,), first: (B, C, 1, h, w) clean; scene, condition: of `encode`.

        grouped: (B, T-1, n) noisy trajectory at times t_action (B,), to be left alone unless
        `action.video_follows_actions`. asked: a time in the network's own unit in place of t. Returns the velocity, as
        noisy, and hidden tokens (B, T-1, S, D) of the same frames, which the action branch reads; D = `video.width`, S
        = h w / `video.patch_size` squared.
        """


class DiTBranch(nn.Module):
    """Our transformer, and the encoders of what it is conditioned on."""

    guidance_offset = 0.0
    draw_time = staticmethod(sample_time)

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        text, width = config.instruction, config.video.width
        assert isinstance(config.video, DiTConfig)
        group = config.group_width if config.action.video_follows_actions else 0
        self.backbone = VideoDiT(config.video, config.latent_shape[0], group)
        self.scene = SceneEncoder(config, width, with_tokens=True)
        self.instruction = InstructionEncoder(text.kind, width, text.length, text.embedding_width)
        self.state = nn.Linear(config.state_dim, width)

    def check_instruction(self, instruction: list[str] | Tensor) -> None:
        """See `VideoBranch`."""
        self.instruction(instruction)

    def encode(
        self,
        image: Float[Tensor, "b 3 height width"],
        state: Float[Tensor, "b s"],
        instruction: list[str] | Tensor,
        keep: Shaped[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b d"]]:
        """See `VideoBranch`."""
        tokens, summary = self.scene(image)
        return tokens, summary + self.instruction(instruction, keep) + self.state(state)

    def clock(self, steps: int, method: str | None = None) -> None:
        """See `VideoBranch`."""

    def within(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """See `VideoBranch`."""
        return t

    def forward(
        self,
        noisy: Float[Tensor, "b c k h w"],
        first: Float[Tensor, "b c 1 h w"],
        t: Float[Tensor, " b"],
        scene: Float[Tensor, "b s d"],
        condition: Float[Tensor, "b d"],
        grouped: Float[Tensor, "b k n"],
        t_action: Float[Tensor, " b"],
        asked: float | None = None,
    ) -> tuple[Float[Tensor, "b c k h w"], Float[Tensor, "b k s d"]]:
        """See `VideoBranch`."""
        return self.backbone(noisy, first, t, scene, condition, grouped, t_action)


def _from_scratch(config: GeneratorConfig) -> tuple[Any, Any]:
    # In this order: weights are drawn from one stream of random numbers.
    assert isinstance(config.tokenizer, ConvTokenizerConfig)
    tokenizer = VideoTokenizer(config.tokenizer)
    return tokenizer, DiTBranch(config)


def _pretrained(config: GeneratorConfig) -> tuple[Any, Any]:
    from vag_core.backbones.branch import PretrainedBranch

    return None, PretrainedBranch(config)


BUILDERS: dict[str, Callable[[GeneratorConfig], tuple[Any, Any]]] = {
    "dit": _from_scratch,
    "pretrained": _pretrained,  # without the model and its tokenizer: see `Branches.attach`
}


def build_video_branch(config: GeneratorConfig) -> tuple[Any, Any]:
    """Tokenizer and `VideoBranch` of a config that is valid."""
    return BUILDERS[config.video.kind](config)
