"""From a first picture, a state and an instruction to video, actions and states.

Shapes: as in `branches`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vag_core import flow_matching
from vag_core.actions import VideoView
from vag_core.branches import Branches, Conditioning
from vag_core.clocks import Mode, sampling_modes, schedule
from vag_core.flow_matching import Streams, Times, expand_time, integrate, predict_clean
from vag_core.objective import pair_score
from vag_core.tokenizer import to_float_frames, to_uint8_frames

METHODS = (*flow_matching.METHODS, "unipc")  # the last for the video of a pretrained model


@dataclass
class GeneratedBatch:
    """frames (B, F, H, W, 3) uint8, actions (B, N, A), states (B, N + 1, S) in physical units, loss (B,) if asked for.

    `loss` is the generator's own flow-matching loss on the pair it made: lower = the model finds it likelier.
    `function_evaluations` counts the passes through the generator that made the pairs.
    """

    frames: Tensor
    actions: Tensor
    states: Tensor
    function_evaluations: int
    loss: Tensor | None = None


class Guided:
    """Velocities of both streams under classifier-free guidance (arXiv 2207.12598), and how many passes they took."""

    def __init__(self, branches: Branches, guided: Conditioning, free: Conditioning | None, settings: Settings) -> None:
        """free: without the instruction; None = no guidance."""
        self.branches, self.guided, self.free, scale = branches, guided, free, settings.guidance_scale
        self.scales = scale if branches.video is None else scale + branches.video.guidance_offset, scale
        self.evaluations = 0
        # Of the video, where it has one of its own.
        steps, method = settings.num_inference_steps, settings.method
        self.clock = None if branches.video is None else branches.video.clock(steps, method)
        self.asked = {} if self.clock is None else dict(zip(self.clock.times, self.clock.asked, strict=False))

    def __call__(self, streams: Streams, times: Times) -> Streams:
        self.evaluations += 1 if self.free is None else 2
        asked = self.asked.get(times[0])
        slopes = velocities(self.branches, streams, times, self.guided, asked)
        if self.free is None:
            return slopes
        free = velocities(self.branches, streams, times, self.free, asked)
        return tuple(f + scale * (g - f) for g, f, scale in zip(slopes, free, self.scales, strict=True))


def velocities(
    branches: Branches, streams: Streams, times: Times, conditions: Conditioning, asked: float | None = None
) -> Streams:
    """Velocities of both streams; zero for one that is pinned. asked: see `VideoBranch`."""
    noisy, noisy_trajectory = streams
    t_video, t_action = (torch.full((len(noisy),), time, device=noisy.device) for time in times)
    video, view = torch.zeros_like(noisy), None
    if branches.video is not None:
        assert conditions.first is not None
        video, hidden = branches.video_step(noisy, t_video, conditions, noisy_trajectory, t_action, asked)
        view = VideoView(torch.cat([conditions.first, predict_clean(noisy, video, t_video)], dim=2), hidden, t_video)
    if branches.action is None or branches.config.action.two_stage or times[1] == 0:
        return video, torch.zeros_like(noisy_trajectory)
    action = branches.action_step(noisy_trajectory, t_action, conditions.action, view)
    if not branches.action.predicts_velocity:
        action = (noisy_trajectory - action) / expand_time(t_action, action)
    return video, action


@dataclass
class PinnedStreams:
    """Streams that are data: frames (B, F, H, W, 3) uint8; actions (B, N, A) with states (B, N + 1, S), physical."""

    frames: Tensor | None = None
    actions: Tensor | None = None
    states: Tensor | None = None

    def check(self, branches: Branches, size: int) -> PinnedStreams:
        """Itself on the generator's device. Raises ValueError for shapes that do not fit, or half a trajectory."""
        config = branches.config
        if (self.actions is None) != (self.states is None):
            raise ValueError("actions and states are given together, or neither")
        steps = config.action_horizon
        for name, shape in (
            ("frames", (size, config.num_frames, *config.image_size, 3)),
            ("actions", (size, steps, config.action_dim)),
            ("states", (size, steps + 1, config.state_dim)),
        ):
            stream = getattr(self, name)
            if stream is not None and tuple(stream.shape) != shape:
                raise ValueError(f"{name}: expected {shape}, got {tuple(stream.shape)}")
        return PinnedStreams(
            *(None if x is None else x.to(branches.device) for x in (self.frames, self.actions, self.states))
        )


@dataclass
class Settings:
    """How to sample: `Generator.sample` explains them."""

    num_inference_steps: int
    guidance_scale: float
    method: str | None
    order: str
    rng: torch.Generator | list[torch.Generator] | None
    score: bool
    negative: Tensor | None = None


@torch.no_grad()
def sample(
    branches: Branches,
    image: Tensor,
    state: Tensor,
    instruction: list[str] | Tensor,
    pinned: PinnedStreams,
    settings: Settings,
) -> GeneratedBatch:
    """See `Generator.sample`."""
    units, two_stage = branches.trajectory, branches.config.action.two_stage
    image, state = check_inputs(branches, image, state, instruction)
    pinned = pinned.check(branches, len(image))
    check_modes(branches, pinned, settings)
    picture = to_float_frames(image[:, None])[:, :, 0]
    first = None if branches.tokenizer is None else branches.tokenizer.encode_first(picture)
    normal, ones = units.normalise_state(state), torch.ones(len(image), device=branches.device)
    guided = branches.encode_conditions(picture, first, normal, instruction, ones)
    free = None
    if settings.guidance_scale > 1 if branches.base else settings.guidance_scale != 1:
        free = branches.encode_conditions(picture, first, normal, instruction, 0 * ones)
        if settings.negative is not None and branches.video is not None:
            free.video = branches.video.encode(picture, normal, settings.negative.expand(len(image), -1, -1))[1]
    slopes = Guided(branches, guided, free, settings)
    rest, trajectory, planned = solve(branches, state, slopes, pinned, settings)
    if first is None:  # there is no video: the first image, repeated
        latents = torch.cat([torch.zeros_like(rest[:, :, :1]), rest], dim=2)
        video = image[:, None].expand(-1, branches.config.num_frames, -1, -1, -1)
    else:
        latents = torch.cat([first, rest], dim=2)
        recorded = pinned.frames
        video = to_uint8_frames(branches.tokenizer.decode(latents, picture)) if recorded is None else recorded
    inferred = two_stage and pinned.actions is None
    if inferred:
        view = VideoView(latents, frames=to_float_frames(video))
        trajectory = branches.action_step(trajectory, ones, guided.action, view)
    actions, after = units.unpack(units.clip(trajectory, state), state)
    if pinned.actions is not None and pinned.states is not None:
        actions, after = pinned.actions, pinned.states[:, 1:]
    return GeneratedBatch(
        frames=video,
        actions=actions,
        states=torch.cat([state[:, None], after], dim=1),
        function_evaluations=slopes.evaluations + planned + inferred,
        loss=pair_score(branches, latents, trajectory, guided, to_float_frames(video)) if settings.score else None,
    )


def solve(
    branches: Branches, state: Tensor, slopes: Guided, pinned: PinnedStreams, settings: Settings
) -> tuple[Tensor, Tensor, bool]:
    """Latents after the first (B, C, T-1, h, w), trajectory (B, N, A + S) of a sample, and whether it was planned.

    state: (B, S), physical.
    """
    config, size = branches.config, len(state)
    channels, latent_frames, height, width = config.latent_shape
    shapes = (channels, latent_frames - 1, height, width), (config.action_horizon, branches.trajectory.mean.numel())
    # Noise is drawn on the CPU, so that a seed means the same sample on every device.
    sources = settings.rng if isinstance(settings.rng, list) else [settings.rng] * size
    rest, trajectory = (
        torch.stack([torch.randn(shape, generator=source) for source in sources]).to(branches.device)
        for shape in shapes
    )
    if pinned.frames is not None:
        rest = branches.tokenizer.encode(to_float_frames(pinned.frames))[:, :, 1:]
    if pinned.actions is not None and pinned.states is not None:
        trajectory = branches.trajectory.pack(pinned.actions, pinned.states)
    planned = settings.order == "actions_first" and pinned.frames is None and pinned.actions is None
    if planned:
        trajectory = branches.trajectory.clip(branches.plan(slopes.guided.action), state)
    still = (
        pinned.frames is not None or branches.video is None,
        pinned.actions is not None or planned or config.action.two_stage,
    )
    if slopes.clock is not None and not still[0]:
        return *_by_own_clock(slopes, rest, trajectory, still, settings), planned
    if still != (True, True):
        if settings.method == "unipc" and slopes.clock is None:
            raise ValueError(
                "sampler method 'unipc': a pretrained video model alone has it; leave it out, or take heun"
            )
        times = schedule(settings.num_inference_steps, settings.order, still)
        method = "euler" if settings.method in (None, "unipc") else settings.method
        rest, trajectory = integrate(slopes, (rest, trajectory), times, method)
    return rest, trajectory, planned


def _by_own_clock(
    slopes: Guided, rest: Tensor, trajectory: Tensor, still: tuple[bool, bool], settings: Settings
) -> tuple[Tensor, Tensor]:
    """Latents and trajectory of a sample whose video has a clock of its own; rest: noise (B, C, T-1, h, w).

    Where the video comes first, its latents are finished before the actions begin.
    """
    clock, steps, order = slopes.clock, settings.num_inference_steps, settings.order
    method = "euler" if settings.method in (None, "unipc") else settings.method
    assert clock is not None
    assert method is not None
    alone = order in ("video_first", "actions_once") and not still[1]
    times = [(t, 1.0) for t in clock.times] if alone else schedule(steps, order, still, clock.times)
    streams = clock.start(rest), trajectory
    rest, trajectory = integrate(slopes, streams, times, method, (clock.stepper, None))
    rest = clock.finish(rest)
    if alone:
        times = schedule(steps, order, (True, False))
        rest, trajectory = integrate(slopes, (rest, trajectory), times, method)
    return rest, trajectory


@torch.no_grad()
def plan_actions(
    branches: Branches, image: Tensor, state: Tensor, instruction: list[str] | Tensor
) -> tuple[Tensor, Tensor]:
    """See `Generator.plan_actions`."""
    branches.clocks.check(Mode.PLAN)
    assert branches.action is not None
    image, state = check_inputs(branches, image, state, instruction)
    units, picture = branches.trajectory, to_float_frames(image[:, None])[:, :, 0]
    planned = branches.plan(branches.action.encode(picture, units.normalise_state(state), instruction))
    actions, states = units.unpack(units.clip(planned, state), state)
    return actions, torch.cat([state[:, None], states], dim=1)


def check_modes(branches: Branches, pinned: PinnedStreams, settings: Settings) -> None:
    """Raise ValueError for what the generator was never trained for."""
    modes = sampling_modes(
        settings.order, pinned.frames is not None, pinned.actions is not None, branches.config.action.makes_video
    )
    for mode in [*modes, *([Mode.SCORE] if settings.score else [])]:
        branches.clocks.check(mode)


def check_inputs(
    branches: Branches, image: Tensor, state: Tensor, instruction: list[str] | Tensor
) -> tuple[Tensor, Tensor]:
    """image (B, H, W, 3) and state (B, S) on the generator's device. Raises ValueError for shapes that do not fit."""
    config = branches.config
    expected = (*config.image_size, 3)
    if tuple(image.shape[1:]) != expected or image.dtype != torch.uint8:
        raise ValueError(f"image: expected (B, {expected}) uint8, got {tuple(image.shape)} {image.dtype}")
    if tuple(state.shape) != (len(image), config.state_dim):
        raise ValueError(f"state: expected {(len(image), config.state_dim)}, got {tuple(state.shape)}")
    if len(instruction) != len(image):
        raise ValueError(f"instruction: expected {len(image)}, one per image, got {len(instruction)}")
    return image.to(branches.device), state.to(branches.device, torch.float32)
