"""What every action branch is: conditions, a noisy trajectory and a video in, a trajectory out.

Shapes: B clips, N actions, T latent frames, D = width of the branch's condition; trajectory (B, N, A + S).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from vag_core.config import GeneratorConfig
from vag_core.flow_matching import expand_time
from vag_core.layers import InstructionEncoder, TimeEmbedding


@dataclass
class VideoView:
    """What an action branch may read of the video: predicted beside it, or finished in a two-stage system."""

    latents: Tensor  # (B, C, T, h, w) clean, the first frame included
    hidden: Tensor | None = None  # (B, T-1, S, Dv) tokens of the video branch
    t: Tensor | None = None  # (B,) clock of the video
    frames: Tensor | None = None  # (B, 3, F, H, W) in [0, 1]


@runtime_checkable
class ActionBranch(Protocol):
    """One protocol for all systems; `config.ACTIONS` has a type for each."""

    predicts_velocity: bool  # else the clean trajectory

    def encode(
        self,
        image: Float[Tensor, "b 3 height width"],
        state: Float[Tensor, "b s"],
        instruction: list[str] | Tensor,
        keep: Shaped[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """image (B, 3, H, W) in [0, 1], normalised state (B, S) and B instructions -> condition (B, D).

        keep: (B,), 0 drops the instruction.
        """

    def __call__(
        self,
        noisy: Float[Tensor, "b n c"],
        t: Float[Tensor, " b"],
        condition: Float[Tensor, "b d"],
        video: VideoView | None,
    ) -> Float[Tensor, "b n c"]:
        """Noisy trajectory (B, N, A + S) at times t (B,) -> its velocity or the clean trajectory, of the same shape.

        condition: (B, D), of `encode`. video: None where there is none. Two-stage branches look at the video alone.
        """


class ConditionedBranch(nn.Module):
    """Instruction, state and time as one condition vector."""

    predicts_velocity = False

    def __init__(self, config: GeneratorConfig, width: int) -> None:
        """width: D, of the condition."""
        super().__init__()
        text = config.instruction
        self.latent_frames, self.steps = config.latent_shape[1] - 1, config.action_horizon
        self.instruction = InstructionEncoder(text.kind, width, text.length, text.embedding_width)
        self.state = nn.Linear(config.state_dim, width)
        if not config.action.two_stage:
            self.time = TimeEmbedding(width)

    def encode(
        self,
        image: Float[Tensor, "b 3 height width"],
        state: Float[Tensor, "b s"],
        instruction: list[str] | Tensor,
        keep: Shaped[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """As in `ActionBranch`."""
        return self.instruction(instruction, keep) + self.state(state)


def blank_pure_noise(noisy: Float[Tensor, " b *d"], t: Float[Tensor, " b"]) -> Float[Tensor, " b *d"]:
    """`noisy` (B, ...), with zeros in place of pure noise, t = 1: it says nothing, and to learn that takes long."""
    return noisy * expand_time(t < 1, noisy)
