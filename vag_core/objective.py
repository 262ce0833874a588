"""What the generator is trained on: flow matching of pairs, and plans from the scene alone.

A training batch is two draws: joint clips, pairs of video and actions, each stream at a time of its own (`clocks`),
and plan clips, of which the actions alone are asked for. It may be divided among processes: see `whole_batch`.

Shapes: as in `branches`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vag_core.actions import VideoView
from vag_core.branches import Branches, Conditioning
from vag_core.clocks import Mode, without_labels
from vag_core.flow_matching import interpolate, predict_clean, velocity
from vag_core.tokenizer import to_float_frames
from vag_core.trajectory import group_by_latent_frame
from vag_core.whole_batch import WholeBatch

SCORED_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass
class Clips:
    """A batch in the networks' units."""

    image: Tensor  # (B, 3, H, W) in [0, 1], the first frame
    state: Tensor  # (B, S) normalised, at the first frame
    instruction: list[str] | Tensor
    trajectory: Tensor  # (B, N, A + S)
    valid: Tensor  # (B, N) bool, False past the end of the episode
    labelled: Tensor | None  # (B,) bool, False for a video without actions; None = all have some
    frames: Tensor | None  # (B, 3, F, H, W) in [0, 1]
    latents: Tensor | None  # (B, C, T, h, w), if they were encoded beforehand

    def part(self, which: slice) -> Clips:
        """Some of the clips."""
        values: Any = {name: None if value is None else value[which] for name, value in vars(self).items()}
        return Clips(**values)


def read_clips(branches: Branches, batch: dict[str, Any]) -> Clips:
    """A batch as `training_loss` takes it."""
    frames = to_float_frames(batch["frames"]) if "frames" in batch else None
    image = frames[:, :, 0] if frames is not None else to_float_frames(batch["image"][:, None])[:, :, 0]
    trajectory = branches.trajectory.pack(batch["actions"], batch["states"])
    return Clips(
        image,
        branches.trajectory.normalise_state(batch["states"][:, 0]),
        batch["instruction"],
        trajectory,
        ~batch["is_pad"] if "is_pad" in batch else torch.ones_like(trajectory[..., 0], dtype=torch.bool),
        batch.get("has_actions"),
        frames,
        batch.get("latents"),
    )


def training_loss(branches: Branches, batch: dict[str, Any]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Loss of both streams of the joint clips, and of the plan clips' actions.

    batch: frames (B, F, H, W, 3) uint8, or latents (B, C, T, h, w) encoded beforehand with image (B, H, W, 3)
    uint8, the first frame; states (B, N + 1, S) and actions (B, N, A) in physical units; instruction;
    is_pad (B, N) bool, where True marks steps past the end of the episode: they do not count; has_actions (B,)
    bool, where False marks a video without action labels. The first `clocks.num_joint_clips(B)` are the joint clips;
    a plan clip without labels counts for nothing.
    Of a part of a batch (whole, with rows, size and has_actions of all; rng) the loss is such that the mean over all
    parts is the loss of the whole batch; so are the metrics.
    """
    labelled = batch.get("whole", batch).get("has_actions")  # of all clips
    whole = WholeBatch.of(batch, len(batch["states"]))
    clips = read_clips(branches, batch)
    labelled = None if labelled is None else labelled.to(clips.image.device)
    joint = branches.clocks.num_joint_clips(whole.size)
    paired = whole.first(joint)
    keep = paired.rand(clips.image.device) >= branches.config.instruction.dropout
    sample = branches.draw_time
    t_video, t_action = branches.clocks.draw(joint, clips.image.device, whole.rng, sample)
    if labelled is not None:
        t_video, t_action = without_labels(t_video, t_action, labelled[:joint], whole.rng, sample)
    own, times = len(paired.rows), (paired.own(t_video), paired.own(t_action))
    video, action = times
    if own:  # not so for each part of a small batch
        video, action = joint_loss(branches, clips.part(slice(own)), keep, *times, paired)
    if own < len(whole.rows):
        action = torch.cat([action, plan_loss(branches, clips.part(slice(own, None)))])
    t_action = F.pad(t_action, (0, whole.size - joint), value=1)
    if labelled is None:
        labelled = torch.ones_like(t_action, dtype=torch.bool)
    if branches.in_step and not own:
        video = torch.cat([video, idle_loss(branches, clips)])
    video_loss = whole.parts * video.sum() / (t_video > 0).sum().clamp(min=1)
    action_loss = whole.parts * (action * whole.own(labelled)).sum() / ((t_action > 0) & labelled).sum().clamp(min=1)
    metrics = {"video_loss": video_loss.detach(), "action_loss": action_loss.detach()}
    return video_loss + branches.config.action.loss_weight * action_loss, metrics


def idle_loss(branches: Branches, clips: Clips) -> Float[Tensor, " 1"]:
    """0, as are its gradients: of the video network, run on the first clip because other processes run theirs."""
    clip, one = clips.part(slice(1)), torch.ones(1, device=clips.image.device)
    video, action = joint_loss(branches, clip, one > 0, one, one, WholeBatch(1, range(1)))
    return 0 * (video + action)


def joint_loss(
    branches: Branches,
    clips: Clips,
    keep: Bool[Tensor, " b"],
    t_video: Float[Tensor, " b"],
    t_action: Float[Tensor, " b"],
    whole: WholeBatch,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Video and action loss, each (B,), of joint clips at these times; keep (B,), False drops the instruction."""
    if branches.tokenizer is None:
        latents = clips.image.new_zeros(len(clips.image), *branches.config.latent_shape)
    elif clips.latents is not None:
        latents = clips.latents
    else:
        with torch.no_grad():
            latents = branches.tokenizer.encode(clips.frames)
    conditions = branches.encode_conditions(clips.image, latents[:, :, :1], clips.state, clips.instruction, keep)
    noise = whole.randn(latents[:, :, 1:]), whole.randn(clips.trajectory)
    times = t_video, t_action
    return pair_loss(branches, latents, clips.trajectory, conditions, *times, clips.valid, clips.frames, noise)


def plan_loss(branches: Branches, clips: Clips) -> Float[Tensor, " b"]:
    """Loss (B,) of plan clips: their actions from the scene alone."""
    assert branches.action is not None
    planned = branches.plan(branches.action.encode(clips.image, clips.state, clips.instruction))
    return masked_mean((planned - clips.trajectory).square().mean(-1), clips.valid)


def pair_loss(
    branches: Branches,
    latents: Float[Tensor, "b c t h w"],
    trajectory: Float[Tensor, "b n a"],
    conditions: Conditioning,
    t_video: Float[Tensor, " b"],
    t_action: Float[Tensor, " b"],
    valid: Bool[Tensor, "b n"],
    frames: Float[Tensor, "b 3 f height width"] | None = None,
    noise: tuple[Float[Tensor, "b c k h w"], Float[Tensor, "b n a"]] | None = None,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Loss per pair of the video and of the action stream, each (B,).

    noise: of the latent frames after the first and of the trajectory; None = from torch's global generator. A stream
    at t = 0 is pinned, so its loss is 0. valid: (B, N), True for steps that count. frames:
    (B, 3, F, H, W), which frame-wise inverse dynamics read.
    """
    action, rest = branches.config.action, latents[:, :, 1:]
    video_noise, action_noise = noise or (torch.randn_like(rest), torch.randn_like(trajectory))
    noisy_trajectory = interpolate(trajectory, action_noise, t_action)
    video_error = view = None
    if branches.video is not None and not (action.two_stage and branches.video_is_taken):
        t_video = branches.video.within(t_video)
        noisy = interpolate(rest, video_noise, t_video)
        predicted, hidden = branches.video_step(noisy, t_video, conditions, noisy_trajectory, t_action)
        clean = torch.cat([latents[:, :, :1], predict_clean(noisy, predicted, t_video)], dim=2)
        view = VideoView(clean, hidden, t_video)
        video_error = (predicted - velocity(rest, video_noise)).square().mean(dim=(1, 3, 4))  # (B, T-1)
    if action.two_stage:
        view = VideoView(latents, frames=frames)
    action_loss = trajectory.new_zeros(len(trajectory))
    if branches.action is not None:
        output = branches.action_step(noisy_trajectory, t_action, conditions.action, view)
        wanted = velocity(trajectory, action_noise) if branches.action.predicts_velocity else trajectory
        action_loss = masked_mean((output - wanted).square().mean(-1), valid)
    video_loss = torch.zeros_like(action_loss)
    if video_error is not None:  # a latent frame with a padded step does not count
        whole = group_by_latent_frame(valid[..., None], rest.shape[2]).all(-1)
        video_loss = masked_mean(video_error, whole)
    return video_loss * (t_video > 0), action_loss * (t_action > 0)


@torch.no_grad()
def pair_score(
    branches: Branches,
    latents: Float[Tensor, "b c t h w"],
    trajectory: Float[Tensor, "b n a"],
    conditions: Conditioning,
    frames: Float[Tensor, "b 3 f height width"],
) -> Float[Tensor, " b"]:
    """Flow-matching loss of given pairs, averaged over fixed times and fixed noise: comparable, (B,).

    Raises ValueError for a generator whose training never draws both streams at one time.
    """
    branches.clocks.check(Mode.SCORE)
    total = torch.zeros(len(latents), device=latents.device)
    valid = torch.ones_like(trajectory[..., 0], dtype=torch.bool)
    rng = torch.Generator().manual_seed(0)  # on the CPU, so that a score is the same on every device
    for time in SCORED_TIMES:
        t = torch.full_like(total, time)
        rest, wanted = (
            torch.randn(x.shape[1:], generator=rng).to(x).expand_as(x) for x in (latents[:, :, 1:], trajectory)
        )
        video, action = pair_loss(branches, latents, trajectory, conditions, t, t, valid, frames, (rest, wanted))
        total += (video + action) / len(SCORED_TIMES)
    return total


def masked_mean(error: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Mean of (B, N) over what is valid, per row: (B,); 0 where nothing is."""
    return (error * valid).sum(1) / valid.sum(1).clamp(min=1)
