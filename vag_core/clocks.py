"""The two clocks, (t_video, t_action): what is drawn in training, and so what may be sampled and scored.

Both run from noise, t = 1, to data, t = 0. A stream at 0 is given, and a mode of sampling is a way for both clocks.
Its training draws only some pairs of times: a mode that takes others is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from vag_core.config import ActionConfig, GivenConfig, UNetConfig
from vag_core.flow_matching import Times, sample_time

ORDERS = ("synchronised", "video_first", "actions_once", "actions_first")

SMALLEST_TIME = 1e-3  # a clean sample says nothing about the noise: velocities are not asked for below
# Shares of the joint clips on which one of two independent clocks is set to 0; on the rest they agree.
VIDEO_CLEAN = 0.25  # inverse dynamics
ACTIONS_CLEAN = 0.15  # forward dynamics
ACTIONS_CLEAN_FIRST = 0.5  # the same, where sampling begins with the actions
ACTIONS_UNKNOWN = 0.5  # share of t_action = 1 where it would follow the video, and the video comes first
ALL_NOISE = 0.5  # share of t_action = 1 where it does not follow the video: the actions' conditional mean


class Mode(StrEnum):
    """Ways to sample, with the times that they pass through."""

    JOINT = "joint"  # t_video = t_action
    VIDEO_FIRST = "video first"  # t_action = 1, then t_video = 0
    ACTIONS_FIRST = "actions first"  # a plan, then t_action = 0
    INVERSE_DYNAMICS = "inverse dynamics"  # t_video = 0
    FORWARD_DYNAMICS = "forward dynamics"  # t_action = 0
    PLAN = "plan"  # t_action = 1, no video is made or read
    ACTIONS_ALONE = "actions alone"  # t_action, where there is no video branch
    SCORE = "score"  # t_video = t_action: the loss of a pair


DENOISED = {Mode.JOINT, Mode.SCORE}
FOLLOWED = {Mode.INVERSE_DYNAMICS, Mode.FORWARD_DYNAMICS}


@dataclass(frozen=True)
class Clocks:
    """The clocks of one generator. order: how its samples are made if nobody says otherwise."""

    kind: str
    modes: frozenset[Mode]
    order: str
    plan_share: float = 0.0

    def draw(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Training times (t_video, t_action) of joint clips, each (B,); 0 marks a stream that is given, without loss.

        Plan clips are drawn beside them (`num_joint_clips`); theirs is t_action = 1, without a video.
        """
        t_video = sample_time(size, device)
        if self.kind in ("temporal", "framewise"):
            return t_video, torch.ones_like(t_video)
        if self.kind == "unet":
            return t_video, t_video
        if self.kind == "given":
            return t_video, torch.zeros_like(t_video)
        kind, own = torch.rand(size, device=device), torch.rand(size, device=device).clamp(min=SMALLEST_TIME)
        own = torch.where(torch.rand(size, device=device) < ALL_NOISE, torch.ones_like(own), own)
        if self.kind == "action_only":
            return own, own
        actions_clean = ACTIONS_CLEAN_FIRST if self.plan_share else ACTIONS_CLEAN
        together = 1 - VIDEO_CLEAN - actions_clean
        following = t_video
        if not self.plan_share:  # the video comes first then: it learns to do without actions
            following = t_video.masked_fill(torch.rand(size, device=device) < ACTIONS_UNKNOWN, 1.0)
        t_action = torch.where(kind < together, following, own)
        given_video = (kind >= together) & (kind < together + VIDEO_CLEAN)
        given_action = kind >= 1 - actions_clean
        return t_video.masked_fill(given_video, 0.0), t_action.masked_fill(given_action, 0.0)

    def num_joint_clips(self, size: int) -> int:
        """How many of a training batch are pairs of video and actions; of the rest only the actions are planned."""
        return max(1, size - round(self.plan_share * size))

    def check(self, mode: Mode) -> None:
        """Raise ValueError unless training draws what a mode passes through."""
        if mode not in self.modes:
            plans = f", action.plan_share = {self.plan_share:g}" if self.kind in ("transformer", "action_only") else ""
            raise ValueError(
                f"{mode}: a generator of action.kind = {self.kind}{plans} is never trained for it; it can do: "
                f"{', '.join(sorted(self.modes))}"
            )


def clocks_of(action: ActionConfig) -> Clocks:
    """What is drawn for this action branch."""
    plan_share = getattr(action, "plan_share", 0.0)
    if isinstance(action, GivenConfig):
        modes, order = {Mode.FORWARD_DYNAMICS}, "actions_once"
    elif isinstance(action, UNetConfig):
        modes, order = DENOISED, "synchronised"
    elif action.two_stage:
        modes, order = {Mode.VIDEO_FIRST, Mode.INVERSE_DYNAMICS, Mode.SCORE}, "actions_once"
    elif not action.makes_video:
        modes, order = {Mode.ACTIONS_ALONE, Mode.SCORE}, "actions_once"
    elif plan_share:
        modes, order = DENOISED | FOLLOWED | {Mode.ACTIONS_FIRST}, "actions_first"
    else:
        modes, order = DENOISED | FOLLOWED | {Mode.VIDEO_FIRST}, "actions_once"
    return Clocks(action.kind, frozenset(modes | ({Mode.PLAN} if plan_share else set())), order, plan_share)


def without_labels(t_video: Tensor, t_action: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Times (B,) where some videos have no actions: unknown actions are noise, and nothing is inferred from the video.

    labelled: (B,) bool.
    """
    t_action = torch.where(labelled, t_action, torch.ones_like(t_action))
    return torch.where(labelled | (t_video > 0), t_video, sample_time(len(t_video), t_video.device)), t_action


def sampling_modes(order: str, video_given: bool, actions_given: bool, makes_video: bool) -> list[Mode]:
    """What a sampler order and what is given amount to. Raises ValueError for an unknown order."""
    if order not in ORDERS:
        raise ValueError(f"sampler order {order!r}: expected one of {', '.join(ORDERS)}")
    if video_given or actions_given:
        return [Mode.INVERSE_DYNAMICS] * video_given + [Mode.FORWARD_DYNAMICS] * actions_given
    if order == "actions_first":
        return [Mode.ACTIONS_FIRST]
    if not makes_video:
        return [Mode.ACTIONS_ALONE]
    return [Mode.JOINT if order == "synchronised" else Mode.VIDEO_FIRST]


def schedule(num_steps: int, order: str = "synchronised", pinned: tuple[bool, bool] = (False, False)) -> list[Times]:
    """Clocks (t_video, t_action) from all noise to all data.

    synchronised: both streams in every step, as published. video_first: the video is finished before the actions
    begin, with as many steps for each. actions_once: the same, with one step for the actions, which are then their
    conditional mean given the video. actions_first: the actions are known before the video begins, so they are pinned,
    or, if the video is, follow it in one step. A pinned stream is known data and stays at t = 0.
    Raises ValueError for an unknown order, one that pins nothing where it must, or num_steps < 1.
    """
    if order not in ORDERS:
        raise ValueError(f"sampler order {order!r}: expected one of {', '.join(ORDERS)}")
    if order == "actions_first" and not any(pinned):
        raise ValueError("sampler order 'actions_first': expected actions that are known when the schedule begins")
    if num_steps < 1:
        raise ValueError(f"num_inference_steps = {num_steps}: expected at least 1")
    times = torch.linspace(1.0, 0.0, num_steps + 1).tolist()
    action_times = [1.0, 0.0] if order in ("actions_once", "actions_first") else times
    if pinned[1]:
        return [(0.0 if pinned[0] else t, 0.0) for t in times]
    if pinned[0]:
        return [(0.0, t) for t in action_times]
    if order == "synchronised":
        return [(t, t) for t in times]
    return [(t, 1.0) for t in times] + [(0.0, t) for t in action_times[1:]]
