"""The two clocks, (t_video, t_action): what is drawn in training, and so what may be sampled and scored.

Both run from noise, t = 1, to data, t = 0; a stream at 0 is pinned. A mode of sampling is a way for both clocks. The
training of a generator draws only some pairs of times, and a mode that passes through others is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vag_core.config import ActionConfig
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


Drawn = tuple[Float[Tensor, " b"], Float[Tensor, " b"]]
TimeDraw = Callable[..., Float[Tensor, " b"]]  # as `sample_time`


@dataclass(frozen=True)
class Clocks:
    """The clocks of one generator: what its training draws, and by that the modes that it may be used in.

    draw(size, device, rng, sample) gives training times (t_video, t_action) of joint clips, each (B,); 0 marks a stream
    that is pinned, without loss; rng None is torch's global generator; sample draws a time of the video. Plan clips are
    drawn beside them (`num_joint_clips`); theirs is t_action = 1, without a video.
    order: how samples are made if nobody says otherwise.
    """

    draw: Callable[..., Drawn]
    order: str
    modes: frozenset[Mode]
    kind: str = ""  # of the action branch
    plan_share: float = 0.0

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


def draw_shared(
    size: int, device: torch.device, rng: torch.Generator | None = None, sample: TimeDraw = sample_time
) -> Drawn:
    """As published: both streams at one time."""
    t_video = sample(size, device, rng=rng)
    return t_video, t_video


def draw_independent(
    size: int,
    device: torch.device,
    rng: torch.Generator | None = None,
    sample: TimeDraw = sample_time,
    *,
    plans: bool,
) -> Drawn:
    """Together, or one of them pinned. Without plans also the video alone, since it comes first then."""
    t_video, (share, own) = sample(size, device, rng=rng), _own_time(size, device, rng)
    actions_clean = ACTIONS_CLEAN_FIRST if plans else ACTIONS_CLEAN
    together = 1 - VIDEO_CLEAN - actions_clean
    following = t_video
    if not plans:
        following = t_video.masked_fill(torch.rand(size, generator=rng, device=device) < ACTIONS_UNKNOWN, 1.0)
    t_action = torch.where(share < together, following, own)
    video_pinned = (share >= together) & (share < together + VIDEO_CLEAN)
    actions_pinned = share >= 1 - actions_clean
    return t_video.masked_fill(video_pinned, 0.0), t_action.masked_fill(actions_pinned, 0.0)


def draw_actions(
    size: int, device: torch.device, rng: torch.Generator | None = None, sample: TimeDraw = sample_time
) -> Drawn:
    """There is no video: both times are that of the actions."""
    sample(size, device, rng=rng)  # of a video that is not there: the numbers drawn after it stay those of all systems
    own = _own_time(size, device, rng)[1]
    return own, own


def draw_video(
    size: int,
    device: torch.device,
    rng: torch.Generator | None = None,
    sample: TimeDraw = sample_time,
    *,
    t_action: float,
) -> Drawn:
    """The video alone is denoised."""
    t_video = sample(size, device, rng=rng)
    return t_video, torch.full_like(t_video, t_action)


def _own_time(size: int, device: torch.device, rng: torch.Generator | None) -> Drawn:
    """Uniform numbers (B,) that share the clips out, and times of the actions (B,) that do not follow the video."""
    share, own = (
        torch.rand(size, generator=rng, device=device),
        torch.rand(size, generator=rng, device=device).clamp(min=SMALLEST_TIME),
    )
    return share, torch.where(torch.rand(size, generator=rng, device=device) < ALL_NOISE, torch.ones_like(own), own)


DENOISED = frozenset({Mode.JOINT, Mode.SCORE})
PINNED = frozenset({Mode.INVERSE_DYNAMICS, Mode.FORWARD_DYNAMICS})
ALONE = frozenset({Mode.ACTIONS_ALONE, Mode.SCORE})
TWO_STAGE = Clocks(
    partial(draw_video, t_action=1.0),
    "actions_once",
    frozenset({Mode.VIDEO_FIRST, Mode.INVERSE_DYNAMICS, Mode.SCORE}),
)
CLOCKS = {  # by the kind of the action branch, and whether there are plan clips
    ("unet", False): Clocks(draw_shared, "synchronised", DENOISED),
    ("transformer", True): Clocks(
        partial(draw_independent, plans=True), "actions_first", DENOISED | PINNED | {Mode.PLAN, Mode.ACTIONS_FIRST}
    ),
    ("transformer", False): Clocks(
        partial(draw_independent, plans=False), "actions_once", DENOISED | PINNED | {Mode.VIDEO_FIRST}
    ),
    ("action_only", True): Clocks(draw_actions, "actions_once", ALONE | {Mode.PLAN}),
    ("action_only", False): Clocks(draw_actions, "actions_once", ALONE),
    ("temporal", False): TWO_STAGE,
    ("framewise", False): TWO_STAGE,
    ("forward_dynamics", False): Clocks(
        partial(draw_video, t_action=0.0), "actions_once", frozenset({Mode.FORWARD_DYNAMICS})
    ),
}


def clocks_of(action: ActionConfig) -> Clocks:
    """The clocks of a generator with this action branch."""
    share = getattr(action, "plan_share", 0.0)
    return replace(CLOCKS[action.kind, share > 0], kind=action.kind, plan_share=share)


def without_labels(
    t_video: Float[Tensor, " b"],
    t_action: Float[Tensor, " b"],
    labelled: Bool[Tensor, " b"],
    rng: torch.Generator | None = None,
    sample: TimeDraw = sample_time,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Times (B,) where some videos have no actions: unknown actions are noise, and nothing is inferred from the video.

    labelled: (B,) bool.
    """
    t_action = torch.where(labelled, t_action, torch.ones_like(t_action))
    again = sample(len(t_video), t_video.device, rng=rng)
    return torch.where(labelled | (t_video > 0), t_video, again), t_action


def sampling_modes(order: str, video_pinned: bool, actions_pinned: bool, makes_video: bool) -> list[Mode]:
    """What a sampler order and pinned streams amount to. Raises ValueError for an unknown order."""
    if order not in ORDERS:
        raise ValueError(f"sampler order {order!r}: expected one of {', '.join(ORDERS)}")
    if video_pinned or actions_pinned:
        return [Mode.INVERSE_DYNAMICS] * video_pinned + [Mode.FORWARD_DYNAMICS] * actions_pinned
    if order == "actions_first":
        return [Mode.ACTIONS_FIRST]
    if not makes_video:
        return [Mode.ACTIONS_ALONE]
    return [Mode.JOINT if order == "synchronised" else Mode.VIDEO_FIRST]


def schedule(
    num_steps: int,
    order: str = "synchronised",
    pinned: tuple[bool, bool] = (False, False),
    grid: Sequence[float] | None = None,
) -> list[Times]:
    """Clocks (t_video, t_action) from all noise to all data.

    grid: times of a video that has its own, which need not run from 1 to 0; the actions do so all the same.

    synchronised: both streams in every step, as published. video_first: the video is finished before the actions
    begin, with as many steps for each. actions_once: the same, with one step for the actions, which are then their
    conditional mean given the video. actions_first: the actions are there before the video begins, so they are pinned,
    or, if the video is, follow it in one step. A pinned stream is data and stays at t = 0.
    Raises ValueError for an unknown order, one that pins nothing where it must, or num_steps < 1.
    """
    if order not in ORDERS:
        raise ValueError(f"sampler order {order!r}: expected one of {', '.join(ORDERS)}")
    if order == "actions_first" and not any(pinned):
        raise ValueError("sampler order 'actions_first': expected actions that are known when the schedule begins")
    if num_steps < 1:
        raise ValueError(f"num_inference_steps = {num_steps}: expected at least 1")
    even = torch.linspace(1.0, 0.0, num_steps + 1).tolist()
    times = even if grid is None else list(grid)
    action_times = [1.0, 0.0] if order in ("actions_once", "actions_first") else even
    if pinned[1]:
        return [(0.0 if pinned[0] else t, 0.0) for t in times]
    if pinned[0]:
        return [(0.0, t) for t in action_times]
    if order == "synchronised":
        return list(zip(times, [1.0, *times[1:-1], 0.0], strict=True))
    return [(t, 1.0) for t in times] + [(0.0, t) for t in action_times[1:]]
