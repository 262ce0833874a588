"""The networks of a generator and one evaluation of each: what training and sampling have in common.

Shapes: B clips, F video frames, T latent frames, N = (F - 1) * frame_stride actions, A action and S state width;
trajectory (B, N, A + S), normalised: see `trajectory`. Grouped by latent frame it is (B, T-1, n).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from vag_core.actions import ActionBranch, VideoView, blank_pure_noise, build_action_branch
from vag_core.clocks import TimeDraw, clocks_of
from vag_core.config import GeneratorConfig, PretrainedConfig
from vag_core.flow_matching import sample_time
from vag_core.trajectory import Trajectory, group_by_latent_frame
from vag_core.video_branch import build_video_branch


@dataclass
class Conditioning:
    """What a pair starts from, computed once per sample. None for a branch that is not there."""

    first: Tensor | None  # (B, C, 1, h, w) latent of the first frame
    tokens: Tensor | None  # (B, S, D) first frame at full resolution, for the video branch
    video: Tensor | None  # (B, D) condition of the video branch, or (B, L, Dt) tokens of text
    action: Tensor | None  # (B, Da) condition of the action branch


class Branches(nn.Module):
    """Tokenizer, video branch, action branch, their clocks and units.

    tokenizer and video are None in a system without video, action is None where actions are given.
    """

    tokenizer: Any
    video: Any  # VideoBranch | None
    action: ActionBranch | None

    def __init__(self, config: GeneratorConfig, attach: bool = True) -> None:
        """attach: load the pretrained video model that the config names, if it names one."""
        super().__init__()
        config.validate()
        self.config = config
        self.clocks = clocks_of(config.action)
        self.tokenizer, self.video = build_video_branch(config) if config.action.makes_video else (None, None)
        self.action = build_action_branch(config)
        self.trajectory = Trajectory(config.action_dim, config.state_dim, config.action_representation)
        self.video_is_taken = False  # from another generator: it is not trained
        self.in_step = False  # other processes hold parts of the video network: each pass of one runs it in all
        self.base: Any = None  # `backbones.directory.ModelDirectory` of the pretrained video model
        if attach and isinstance(config.video, PretrainedConfig) and self.video is not None:
            from vag_core.backbones.models import load_model, weights_type

            self.attach(load_model(config.video.path, weights_type(config.video)))

    def attach(self, model: Any) -> None:
        """Take in a pretrained video model, a `backbones.models.VideoModel`, with its tokenizer.

        Raises ValueError for one that does not fit the config.
        """
        model.check(self.config)
        self.video.attach(model.network)
        self.tokenizer, self.base = model.tokenizer, model.directory

    def is_saved(self, name: str) -> bool:
        """Whether a checkpoint holds the weight of this name: not those of a pretrained video model as it came."""
        if self.config.video.kind != "pretrained" or self.video is None:
            return True
        part, _, rest = name.partition(".")
        return part != "tokenizer" and (part != "video" or self.video.is_trained(rest))

    @property
    def draw_time(self) -> TimeDraw:
        """How times of training are drawn for the video, as `sample_time`."""
        return sample_time if self.video is None else self.video.draw_time

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.trajectory.mean.device

    def check_instruction(self, instruction: list[str] | Tensor) -> None:
        """Raise ValueError for an instruction that cannot be read, such as one that is too long."""
        if self.video is not None:
            self.video.check_instruction(instruction)
        else:
            reader: Any = self.action
            reader.instruction(instruction)

    def encode_conditions(
        self,
        image: Float[Tensor, "b 3 height width"],
        first: Float[Tensor, "b c 1 h w"] | None,
        state: Float[Tensor, "b s"],
        instruction: list[str] | Tensor,
        keep: Shaped[Tensor, " b"] | None = None,
    ) -> Conditioning:
        """Conditions of both branches.

        image: (B, 3, H, W) in [0, 1], first: its latent (B, C, 1, h, w), state: (B, S) normalised,
        keep: (B,), 0 drops the instruction.
        """
        action = None if self.action is None else self.action.encode(image, state, instruction, keep)
        tokens, video = (None, None) if self.video is None else self.video.encode(image, state, instruction, keep)
        return Conditioning(first, tokens, video, action)

    def video_step(
        self,
        noisy: Float[Tensor, "b c k h w"],
        t: Float[Tensor, " b"],
        conditions: Conditioning,
        trajectory: Float[Tensor, "b n a"],
        t_action: Float[Tensor, " b"],
        asked: float | None = None,
    ) -> tuple[Float[Tensor, "b c k h w"], Float[Tensor, "b k s d"] | None]:
        """Velocity of the latent frames after the first, as `noisy` (B, C, T-1, h, w), and their hidden tokens.

        trajectory: (B, N, A + S), noisy by its own clock; ignored unless the video branch follows actions. It is not
        looked at where t_action = 1: see `blank_pure_noise`. asked: see `VideoBranch`. Hidden tokens may be None where
        nothing reads them.
        """
        assert self.video is not None
        grouped = group_by_latent_frame(blank_pure_noise(trajectory, t_action), noisy.shape[2])
        return self.video(noisy, conditions.first, t, conditions.tokens, conditions.video, grouped, t_action, asked)

    def action_step(
        self,
        noisy: Float[Tensor, "b n a"],
        t: Float[Tensor, " b"],
        condition: Float[Tensor, "b d"] | None,
        video: VideoView | None,
    ) -> Float[Tensor, "b n a"]:
        """Velocity or clean trajectory (`action.predicts_velocity`), as `noisy` (B, N, A + S), at times t (B,).

        condition: (B, Da). video: what the branch may read of it.
        """
        assert self.action is not None
        assert condition is not None
        return self.action(noisy, t, condition, video)

    def plan(self, condition: Float[Tensor, "b d"] | None) -> Float[Tensor, "b n a"]:
        """Trajectory (B, N, A + S) from the scene alone, its conditional mean: no video is made or read."""
        assert condition is not None
        size, ones = len(condition), torch.ones(len(condition), device=condition.device)
        noise = condition.new_zeros(size, self.config.action_horizon, self.trajectory.mean.numel())
        return self.action_step(noise, ones, condition, None)
