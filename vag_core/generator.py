"""The dual-stream generator: first image + state + instruction -> video, actions and states.

Reads top to bottom: conditions -> the two branches -> loss -> sampler -> checkpoint.

Shapes: B clips, F video frames, T latent frames, N = (F - 1) * frame_stride actions, A action and S state width.
The trajectory stream holds [action_t, state_{t+1}], t = 0 .. N-1, normalised: (B, N, A + S). Its chunks (B, T-1, n)
are the same numbers, grouped by the latent frame that they lead to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vag_core.action_transformer import ActionTransformer
from vag_core.action_unet import ActionUNet
from vag_core.checkpoint import MOST_PARAMETERS, check_finite, first_line, load_network, read_config
from vag_core.config import GeneratorConfig
from vag_core.flow_matching import expand_time, interpolate, predict_clean, sample_time, velocity
from vag_core.inverse_dynamics import FramewiseInverseDynamics, TemporalInverseDynamics
from vag_core.layers import InstructionEncoder, TimeEmbedding
from vag_core.pooling_bridge import PoolingBridge
from vag_core.sampler import Streams, Times, integrate, schedule
from vag_core.scene_encoder import SceneEncoder
from vag_core.video_branch import build_video_branch
from vag_core.video_tokenizer import to_float_frames, to_uint8_frames

CHECKPOINT_TYPE = "vag_generator"

NO_LIMIT = torch.finfo(torch.float32).max  # not infinity, of which no average can be kept
SMALLEST_TIME = 1e-3  # a clean sample says nothing about the noise: velocities are not asked for below
# Shares of the training clips on which one of two independent clocks is set to 0; on the rest they agree.
VIDEO_CLEAN = 0.25  # inverse dynamics
ACTIONS_CLEAN = 0.15  # forward dynamics
ACTIONS_CLEAN_FIRST = 0.5  # the same, where sampling begins with the actions
ACTIONS_UNKNOWN = 0.5  # share of t_action = 1 where it would follow the video, and the video comes first
ALL_NOISE = 0.5  # share of t_action = 1 where it does not follow the video: the actions' conditional mean


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


@dataclass
class Scene:
    """What a pair starts from, as the branches see it; computed once per sample."""

    first: Tensor  # (B, C, 1, h, w) latent of the first frame
    tokens: Tensor  # (B, S, D) first frame at full resolution, for the video branch
    video: Tensor  # (B, D) condition of the video branch
    action: Tensor  # (B, Da) condition of the action branch


class Generator(nn.Module):
    """VAG (arXiv 2604.09330) and its relatives: a flow-matching video branch and an action branch.

    Which system it is follows from the config: the published one (a U-Net that reads the pooled clean video, one
    clock for both), ours (a transformer whose tokens read the video tokens of their instant, two clocks, gradients
    and actions flowing back into the video), two-stage ones (inverse dynamics on the finished video), actions alone.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        text, width, action = config.instruction, config.video.width, config.action
        side = config.latent_shape[2] // config.video.patch_size
        trajectory, chunk = config.action_dim + config.state_dim, config.chunk
        self.tokenizer, self.video = build_video_branch(config)
        self.video_scene = SceneEncoder(config.scene, config.image_size, side, width)
        self.video_instruction = InstructionEncoder(text.kind, width, text.length, text.embedding_width)
        self.video_state = nn.Linear(config.state_dim, width)
        inner = config.bridge.width if action.kind == "unet" else action.width
        self.action_instruction = InstructionEncoder(text.kind, inner, text.length, text.embedding_width)
        self.action_state = nn.Linear(config.state_dim, inner)
        if action.kind in ("unet", "transformer"):
            self.action_time = TimeEmbedding(inner)
        if action.kind == "unet":
            self.bridge = PoolingBridge(config.bridge, config.latent_shape)
            self.action: nn.Module = ActionUNet(action, trajectory, inner + self.bridge.out_width)
        elif action.kind == "transformer":
            self.action_scene = SceneEncoder(config.scene, config.image_size, 0, inner)
            self.video_time = TimeEmbedding(inner)
            tokens = side * side if action.reads == "hidden" else 0
            self.action = ActionTransformer(action, chunk, tokens, width)
        elif action.kind == "temporal":
            self.action = TemporalInverseDynamics(action, chunk, config.latent_shape)
        else:
            self.action = FramewiseInverseDynamics(action, chunk)
        self.video_is_given = False
        self._freeze_unused()
        # Normalisation and range of [action, state], measured on the training data by `set_statistics`.
        for name, value in (("mean", 0.0), ("std", 1.0), ("low", -NO_LIMIT), ("high", NO_LIMIT)):
            self.register_buffer(name, torch.full((trajectory,), value))

    def _freeze_unused(self) -> None:
        """No gradients for what this system never looks at: processes that train together wait for all of them."""
        action, unused = self.config.action, list[str]()
        if not self.config.makes_video:
            unused += ["tokenizer", "video"]
        if action.clocks == "given":
            unused += ["action", "video_time"]
        if action.kind == "resnet":
            unused += ["action_instruction", "action_state"]
        if action.plan_share == 0:
            unused.append("action.unread")
        for name, parameter in self.named_parameters():
            if name.startswith(tuple(unused)):
                parameter.requires_grad_(False)

    def set_statistics(self, mean: Any, std: Any, low: Any = -NO_LIMIT, high: Any = NO_LIMIT) -> None:
        """Mean, deviation, least and largest value of [action, state] in physical units, each (A + S,).

        Samples are clipped to [low, high]: a command that no operator gave, past a joint's or gripper's limit, would
        widen the range that policies normalise with.
        """
        for buffer, value in ((self.mean, mean), (self.std, std), (self.low, low), (self.high, high)):
            buffer.copy_(torch.as_tensor(value, dtype=torch.float32))

    def take_video_branch(self, other: Generator) -> None:
        """Copy tokenizer and video branch of another generator; training then leaves them as they are.

        So systems that differ in the action branch alone can share one video, weight for weight. Raises ValueError if
        what they see differs, or the video branch was not trained by itself but listens to actions.
        """
        if self.config.video.hears_actions or other.config.video.hears_actions:
            raise ValueError("a video branch that hears actions belongs to its action branch and cannot be shared")
        parts = ("image_size", "num_frames", "frame_stride", "tokenizer", "scene", "video", "instruction")
        for name in parts:
            ours, theirs = getattr(self.config, name), getattr(other.config, name)
            if ours != theirs:
                raise ValueError(f"the other generator has {name} = {theirs}, this one {ours}: no video to share")
        for name in ("tokenizer", "video", "video_scene", "video_instruction", "video_state"):
            self._take(name, other)
        states = slice(self.config.action_dim, None)  # as the video branch learned to see them
        self.mean[states], self.std[states] = other.mean[states], other.std[states]
        self.video_is_given = True

    def take_tokenizer(self, other: Generator) -> None:
        """Copy the tokenizer of another generator; training then leaves it as it is. Raises as `take_video_branch`."""
        self._take("tokenizer", other)

    def _take(self, name: str, other: Generator) -> None:
        try:
            getattr(self, name).load_state_dict(getattr(other, name).state_dict())
        except RuntimeError as error:
            raise ValueError(f"the other generator's '{name}' has other shapes ({error})") from error
        getattr(self, name).requires_grad_(False)

    @property
    def order(self) -> str:
        """How samples are best made: both streams in step, as published, or actions in one step of their own."""
        if self.config.action.plan_share > 0 and self.config.video.hears_actions:
            return "actions_first"
        return "actions_once" if self.config.action.prediction == "sample" else "synchronised"

    # --- the two branches ---

    def see(self, image: Tensor, first: Tensor, state: Tensor, instruction: list[str] | Tensor, keep: Tensor) -> Scene:
        """Conditions of both branches.

        image: (B, 3, H, W) in [0, 1], first: its latent (B, C, 1, h, w), state: (B, S) normalised,
        keep: (B,), 0 drops the instruction.
        """
        action = self.see_for_actions(image, state, instruction, keep)
        if not self.config.makes_video:
            return Scene(first, first, first, action)  # nobody looks at the others
        tokens, summary = self.video_scene(image)
        text = torch.where(keep[:, None].bool(), self.video_instruction(instruction), self.video_instruction.null)
        video = summary + text + self.video_state(state)
        return Scene(first, tokens, video, action)

    def see_for_actions(
        self, image: Tensor, state: Tensor, instruction: list[str] | Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Condition of the action branch alone, (B, Da); arguments as for `see`."""
        text = self.action_instruction(instruction)
        if keep is not None:
            text = torch.where(keep[:, None].bool(), text, self.action_instruction.null)
        condition = text + self.action_state(state)
        if self.config.action.kind == "transformer":
            condition = condition + self.action_scene(image)[1]
        return condition

    def video_step(
        self, noisy: Tensor, t: Tensor, scene: Scene, trajectory: Tensor, t_action: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocity of the latent frames after the first, as `noisy` (B, C, T-1, h, w), and their hidden tokens.

        trajectory: (B, N, A + S), noisy by its own clock; ignored unless the video branch hears actions. It is not
        looked at where t_action = 1: see `known`.
        """
        heard = self.chunks(known(trajectory, t_action))
        return self.video(noisy, scene.first, t, scene.tokens, scene.video, heard, t_action)

    def action_step(
        self, noisy: Tensor, t: Tensor, view: Tensor, clean: Tensor | None, hidden: Tensor | None, t_video: Tensor
    ) -> Tensor:
        """Velocity or clean trajectory (`action.prediction`), as `noisy` (B, N, A + S).

        view: (B, Da) condition, clean: predicted clean video (B, C, T, h, w), hidden: tokens of the video branch,
        t_video: its clock.
        """
        config = self.config.action
        if config.prediction == "sample":
            noisy = known(noisy, t)
        condition = view + self.action_time(t)
        if config.kind == "unet":
            assert clean is not None
            return self.action(noisy, torch.cat([condition, self.bridge(clean.detach())], dim=-1))
        if config.reads == "nothing":
            hidden = None
        elif hidden is not None:
            hidden = hidden.detach() if config.detach else hidden
            condition = condition + self.video_time(t_video)
        return self.unchunked(self.action(self.chunks(noisy), hidden, condition))

    def plan(self, view: Tensor) -> Tensor:
        """Trajectory (B, N, A + S) from the scene alone, its conditional mean: no video is made or read."""
        ones = torch.ones(len(view), device=view.device)
        noise = view.new_zeros(len(view), self.config.action_horizon, self.mean.numel())
        return self.action_step(noise, ones, view, None, None, ones)

    def infer_actions(self, latents: Tensor, frames: Tensor | None, scene: Scene) -> Tensor:
        """Second stage of a two-stage system: trajectory (B, N, A + S) from a finished video.

        latents: (B, C, T, h, w), frames: (B, 3, F, H, W) in [0, 1]; either may be what the system does not read.
        """
        if self.config.action.kind == "temporal":
            return self.unchunked(self.action(latents, scene.action))
        assert frames is not None
        return self.unchunked(self.action(frames[:, :, :: self.config.tokenizer.temporal_stride]))

    def chunks(self, trajectory: Tensor) -> Tensor:
        """(B, N, A + S) -> (B, T-1, n): what belongs to one latent frame stands together."""
        return trajectory.reshape(len(trajectory), self.config.latent_shape[1] - 1, -1)

    def unchunked(self, chunks: Tensor) -> Tensor:
        """Inverse of `chunks`."""
        return chunks.reshape(len(chunks), self.config.action_horizon, -1)

    # --- training ---

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow-matching loss of both streams, each at its own time.

        batch: frames (B, F, H, W, 3) uint8, or latents (B, C, T, h, w) encoded beforehand with image (B, H, W, 3)
        uint8, the first frame; states (B, N + 1, S) and actions (B, N, A) in physical units; instruction;
        is_pad (B, N) bool, where True marks steps past the end of the episode: they do not count; has_actions (B,)
        bool, where False marks a video without action labels.
        """
        if self.config.action.plan_share > 0 and "has_actions" in batch:
            batch = labelled_last(batch)  # what is planned needs labels, a video does not
        frames = to_float_frames(batch["frames"]) if "frames" in batch else None
        image = frames[:, :, 0] if frames is not None else to_float_frames(batch["image"][:, None])[:, :, 0]
        trajectory = self.pack(batch["actions"], batch["states"])
        state, instruction = self._normalise_state(batch["states"][:, 0]), batch["instruction"]
        size, device = len(image), image.device
        pairs = self.pairs_of(size)
        if frames is not None:
            frames = frames[:pairs]
        if not self.config.makes_video:
            latents = image.new_zeros(pairs, *self.config.latent_shape)
        elif "latents" in batch:
            latents = batch["latents"][:pairs]
        else:
            assert frames is not None
            with torch.no_grad():
                latents = self.tokenizer.encode(frames)
        keep = torch.rand(pairs, device=device) >= self.config.instruction.dropout
        scene = self.see(image[:pairs], latents[:, :, :1], state[:pairs], instruction[:pairs], keep)
        valid = ~batch["is_pad"] if "is_pad" in batch else torch.ones_like(trajectory[..., 0], dtype=torch.bool)
        labelled = batch.get("has_actions", torch.ones(size, dtype=torch.bool, device=device))
        t_video, t_action = self.draw_clocks(pairs, device)
        if "has_actions" in batch:  # actions that are not known are noise to both, and nothing follows the video
            t_action = torch.where(labelled[:pairs], t_action, torch.ones_like(t_action))
            t_video = torch.where(labelled[:pairs] | (t_video > 0), t_video, sample_time(pairs, device))
        video, action = self.pair_loss(latents, trajectory[:pairs], scene, t_video, t_action, valid[:pairs], frames)
        if pairs < size:
            view = self.see_for_actions(image[pairs:], state[pairs:], instruction[pairs:])
            planned = self.plan(view)
            error = (planned - trajectory[pairs:]).square().mean(-1)
            action = torch.cat([action, masked_mean(error, valid[pairs:])])
            t_action = F.pad(t_action, (0, size - pairs), value=1)
        video_loss = video.sum() / (t_video > 0).sum().clamp(min=1)
        action_loss = (action * labelled).sum() / ((t_action > 0) & labelled).sum().clamp(min=1)
        metrics = {"video_loss": video_loss.detach(), "action_loss": action_loss.detach()}
        return video_loss + self.config.action.loss_weight * action_loss, metrics

    def pairs_of(self, size: int) -> int:
        """How many of a training batch are pairs of video and actions; of the rest only the actions are planned."""
        return max(1, size - round(self.config.action.plan_share * size))

    def tokens_of(self, size: int) -> int:
        """Tokens that the transformers of both branches read for a training batch of `size` clips."""
        config = self.config
        _, frames, height, width = config.latent_shape
        tokens = 0
        if config.makes_video and not (config.two_stage and self.video_is_given):
            tokens += self.pairs_of(size) * frames * (height * width // config.video.patch_size**2)
        if config.action.kind in ("transformer", "temporal") and config.action.clocks != "given":
            tokens += size * (frames - 1)
        return tokens

    def draw_clocks(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Training times (t_video, t_action), each (B,); 0 marks a stream that is given and has no loss."""
        t_video = sample_time(size, device)
        if self.config.two_stage:
            return t_video, torch.ones_like(t_video)
        if self.config.action.clocks == "shared":
            return t_video, t_video
        if self.config.action.clocks == "given":
            return t_video, torch.zeros_like(t_video)
        kind, own = torch.rand(size, device=device), torch.rand(size, device=device).clamp(min=SMALLEST_TIME)
        own = torch.where(torch.rand(size, device=device) < ALL_NOISE, torch.ones_like(own), own)
        if not self.config.makes_video:
            return own, own
        actions_clean = ACTIONS_CLEAN if self.order != "actions_first" else ACTIONS_CLEAN_FIRST
        together = 1 - VIDEO_CLEAN - actions_clean
        if self.order == "actions_once":  # the video comes first then: it learns to do without actions
            blind = torch.rand(size, device=device) < ACTIONS_UNKNOWN
            t_action = torch.where(kind < together, t_video.masked_fill(blind, 1.0), own)
        else:
            t_action = torch.where(kind < together, t_video, own)
        given_video = (kind >= together) & (kind < together + VIDEO_CLEAN)
        given_action = kind >= 1 - actions_clean
        return t_video.masked_fill(given_video, 0.0), t_action.masked_fill(given_action, 0.0)

    def pair_loss(
        self,
        latents: Tensor,
        trajectory: Tensor,
        scene: Scene,
        t_video: Tensor,
        t_action: Tensor,
        valid: Tensor,
        frames: Tensor | None = None,
        same_noise: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Loss per pair of the video and of the action stream, each (B,), with noise for each or one for all.

        A stream at t = 0 is given, so its loss is 0. valid: (B, N), True for steps that count. frames:
        (B, 3, F, H, W), which frame-wise inverse dynamics read.
        """
        config, rest = self.config, latents[:, :, 1:]
        draws = slice(1) if same_noise else slice(None)
        video_noise, action_noise = (torch.randn_like(x[draws]).expand_as(x) for x in (rest, trajectory))
        noisy_trajectory = interpolate(trajectory, action_noise, t_action)
        video_error = clean = hidden = None
        if config.makes_video and not (config.two_stage and self.video_is_given):
            noisy = interpolate(rest, video_noise, t_video)
            predicted, hidden = self.video_step(noisy, t_video, scene, noisy_trajectory, t_action)
            clean = torch.cat([scene.first, predict_clean(noisy, predicted, t_video)], dim=2)
            video_error = (predicted - velocity(rest, video_noise)).square().mean(dim=(1, 3, 4))  # (B, T-1)
        if config.action.clocks == "given":
            action_error = torch.zeros_like(trajectory)
        elif config.two_stage:
            action_error = (self.infer_actions(latents, frames, scene) - trajectory).square()
        else:
            output = self.action_step(noisy_trajectory, t_action, scene.action, clean, hidden, t_video)
            wanted = trajectory if config.action.prediction == "sample" else velocity(trajectory, action_noise)
            action_error = (output - wanted).square()
        action_loss = masked_mean(action_error.mean(-1), valid)
        video_loss = torch.zeros_like(action_loss)
        if video_error is not None:  # a latent frame with a padded step does not count
            video_loss = masked_mean(video_error, self.chunks(valid[..., None]).all(-1))
        return video_loss * (t_video > 0), action_loss * (t_action > 0)

    # --- sampling ---

    @torch.no_grad()
    def sample(
        self,
        image: Tensor,
        state: Tensor,
        instruction: list[str] | Tensor,
        *,
        frames: Tensor | None = None,
        actions: Tensor | None = None,
        states: Tensor | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.0,
        method: str = "euler",
        order: str | None = None,
        rng: torch.Generator | list[torch.Generator] | None = None,
        score: bool = False,
    ) -> GeneratedBatch:
        """Generate one video-action pair per first image; what is given is kept and the other stream follows it.

        image: (B, H, W, 3) uint8; state: (B, S) in physical units; instruction: B strings.
        frames: (B, F, H, W, 3) uint8, known video: inverse dynamics. actions (B, N, A) with states (B, N + 1, S),
        known trajectory: forward dynamics.
        order: see `schedule`; None is what suits the system, `self.order`. A two-stage system has the video first.
        rng: where noise comes from; with one generator per pair, a pair does not depend on those beside it.
        guidance_scale: classifier-free guidance on the instruction (arXiv 2207.12598); 1 = off. It does not touch
        actions that are planned first, which are a mean.
        score: also compute `loss`, at the cost of five more evaluations.
        Without a video branch the frames repeat the first image.
        Raises ValueError for an image or state of another size than the generator was trained on, and for an order
        that it does not know.
        """
        config = self.config
        image, state = self._check_inputs(image, state, instruction)
        if config.action.clocks == "given" and actions is None:
            raise ValueError("a generator with action.clocks = given makes videos for actions that are given")
        device, size = self.mean.device, len(image)
        first_image = to_float_frames(image[:, None])[:, :, 0]
        first = self.tokenizer.encode_first(first_image)
        normal = self._normalise_state(state)
        ones = torch.ones(size, device=device)
        guided = self.see(first_image, first, normal, instruction, ones)
        free = self.see(first_image, first, normal, instruction, 0 * ones) if guidance_scale != 1 else None

        evaluations = 0

        def velocities(streams: Streams, times: Times) -> Streams:
            nonlocal evaluations
            evaluations += 1 if free is None else 2
            slopes = self._velocities(streams, times, guided)
            if free is None:
                return slopes
            return tuple(
                f + guidance_scale * (g - f)
                for g, f in zip(slopes, self._velocities(streams, times, free), strict=True)
            )

        channels, latent_frames, height, width = config.latent_shape
        shapes = (channels, latent_frames - 1, height, width), (config.action_horizon, self.mean.numel())
        # Noise is drawn on the CPU, so that a seed means the same sample on every device.
        sources = rng if isinstance(rng, list) else [rng] * size
        streams = [torch.stack([torch.randn(shape, generator=g) for g in sources]).to(device) for shape in shapes]
        if frames is not None:
            streams[0] = self.tokenizer.encode(to_float_frames(frames.to(device)))[:, :, 1:]
        self._check_given(size, frames, actions, states)
        if actions is not None and states is not None:
            streams[1] = self.pack(actions.to(device), states.to(device))
        order = order or self.order
        planned = order == "actions_first" and (frames, actions) == (None, None)
        if planned:
            if config.action.plan_share == 0 or not config.video.hears_actions:
                raise ValueError(
                    "sampler order 'actions_first': expected a generator with action.plan_share > 0 and "
                    "video.hears_actions = True"
                )
            streams[1] = self._limited(self.plan(guided.action))
            evaluations += 1
        pinned = (frames is not None or not config.makes_video, actions is not None or planned or config.two_stage)
        if pinned != (True, True):
            times = schedule(num_inference_steps, order, pinned)
            streams = list(integrate(velocities, streams, times, method))
        latents = torch.cat([first, streams[0]], dim=2)
        if not config.makes_video:
            video = image[:, None].expand(-1, config.num_frames, -1, -1, -1)
        elif frames is not None:
            video = frames.to(device)
        else:
            video = to_uint8_frames(self.tokenizer.decode(latents, first_image))
        trajectory = streams[1]
        if config.two_stage and actions is None:
            trajectory = self.infer_actions(latents, to_float_frames(video), guided)
            evaluations += 1
        if actions is not None and states is not None:
            made_actions, made_states = actions.to(device), states[:, 1:].to(device)
        else:
            made_actions, made_states = self.unpack(self._limited(trajectory))
        return GeneratedBatch(
            frames=video,
            actions=made_actions,
            states=torch.cat([state[:, None], made_states], dim=1),
            function_evaluations=evaluations,
            loss=self.pair_score(latents, trajectory, guided, to_float_frames(video)) if score else None,
        )

    @torch.no_grad()
    def plan_actions(self, image: Tensor, state: Tensor, instruction: list[str] | Tensor) -> tuple[Tensor, Tensor]:
        """The plan that a sample of order `actions_first` begins with: actions (B, N, A) and states (B, N + 1, S).

        Arguments as for `sample`. Raises ValueError for inputs that do not fit, and for a generator without plans.
        """
        if self.config.action.plan_share == 0:
            raise ValueError("plans: expected a generator with action.plan_share > 0")
        image, state = self._check_inputs(image, state, instruction)
        picture, normal = to_float_frames(image[:, None])[:, :, 0], self._normalise_state(state)
        actions, states = self.unpack(self._limited(self.plan(self.see_for_actions(picture, normal, instruction))))
        return actions, torch.cat([state[:, None], states], dim=1)

    def _limited(self, trajectory: Tensor) -> Tensor:
        """A normalised trajectory within the range of the training data: see `set_statistics`."""
        return ((trajectory * self.std + self.mean).clamp(self.low, self.high) - self.mean) / self.std

    def _velocities(self, streams: Streams, times: Times, scene: Scene) -> Streams:
        """Velocities of both streams; zero for one that is given."""
        config, size = self.config, len(streams[0])
        noisy, noisy_trajectory = streams
        t_video, t_action = (torch.full((size,), time, device=noisy.device) for time in times)
        video, clean, hidden = torch.zeros_like(noisy), None, None
        if config.makes_video:
            video, hidden = self.video_step(noisy, t_video, scene, noisy_trajectory, t_action)
            clean = torch.cat([scene.first, predict_clean(noisy, video, t_video)], dim=2)
        if config.two_stage or times[1] == 0:
            return video, torch.zeros_like(noisy_trajectory)
        action = self.action_step(noisy_trajectory, t_action, scene.action, clean, hidden, t_video)
        if config.action.prediction == "sample":
            action = (noisy_trajectory - action) / expand_time(t_action, action)
        return video, action

    @torch.no_grad()
    def pair_score(self, latents: Tensor, trajectory: Tensor, scene: Scene, frames: Tensor) -> Tensor:
        """Flow-matching loss of given pairs, averaged over fixed times and fixed noise: comparable, (B,)."""
        times = (0.1, 0.3, 0.5, 0.7, 0.9)
        total = torch.zeros(len(latents), device=latents.device)
        valid = torch.ones_like(trajectory[..., 0], dtype=torch.bool)
        with torch.random.fork_rng(devices=[latents.device] if latents.is_cuda else []):
            torch.manual_seed(0)
            for time in times:
                t = torch.full_like(total, time)
                video, action = self.pair_loss(latents, trajectory, scene, t, t, valid, frames, same_noise=True)
                total += (video + action) / len(times)
        return total

    # --- units ---

    def pack(self, actions: Tensor, states: Tensor) -> Tensor:
        """Physical actions (B, N, A) and states (B, N+1, S) -> normalised trajectory (B, N, A + S)."""
        return (torch.cat([actions, states[:, 1:]], dim=-1) - self.mean) / self.std

    def unpack(self, trajectory: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `pack`: actions (B, N, A) and the states after them (B, N, S)."""
        physical = trajectory * self.std + self.mean
        return physical[..., : self.config.action_dim], physical[..., self.config.action_dim :]

    def _normalise_state(self, state: Tensor) -> Tensor:
        action_dim = self.config.action_dim
        return (state - self.mean[action_dim:]) / self.std[action_dim:]

    def _check_inputs(self, image: Tensor, state: Tensor, instruction: list[str] | Tensor) -> tuple[Tensor, Tensor]:
        config, device = self.config, self.mean.device
        expected = (config.image_size, config.image_size, 3)
        if tuple(image.shape[1:]) != expected or image.dtype != torch.uint8:
            raise ValueError(f"image: expected (B, {expected}) uint8, got {tuple(image.shape)} {image.dtype}")
        if tuple(state.shape) != (len(image), config.state_dim):
            raise ValueError(f"state: expected {(len(image), config.state_dim)}, got {tuple(state.shape)}")
        if len(instruction) != len(image):
            raise ValueError(f"instruction: expected {len(image)}, one per image, got {len(instruction)}")
        return image.to(device), state.to(device, torch.float32)

    def _check_given(self, size: int, frames: Tensor | None, actions: Tensor | None, states: Tensor | None) -> None:
        config = self.config
        if (actions is None) != (states is None):
            raise ValueError("actions and states are given together, or neither")
        side, steps = config.image_size, config.action_horizon
        for name, given, shape in (
            ("frames", frames, (size, config.num_frames, side, side, 3)),
            ("actions", actions, (size, steps, config.action_dim)),
            ("states", states, (size, steps + 1, config.state_dim)),
        ):
            if given is not None and tuple(given.shape) != shape:
                raise ValueError(f"{name}: expected {shape}, got {tuple(given.shape)}")
        if actions is not None and not config.video.hears_actions:
            raise ValueError("actions are given, but the video of this generator hears none (video.hears_actions)")
        reads_video = config.makes_video and (config.action.kind != "transformer" or config.action.reads != "nothing")
        if frames is not None and not reads_video:
            raise ValueError("frames are given, but the actions of this generator read no video")

    # --- checkpoint ---

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing or new directory.

        Raises ValueError, before anything is written, if a weight is not finite.
        """
        directory = Path(directory)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        check_finite(tensors, f"{directory}: not written, ")
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / "model.safetensors")
        payload = {"type": CHECKPOINT_TYPE, **self.config.to_dict()}
        (directory / "config.json").write_text(json.dumps(payload, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        max_parameters: int = MOST_PARAMETERS,
    ) -> Generator:
        """Load strictly from JSON and safetensors; nothing is unpickled, and nothing downloaded.

        max_parameters: numbers that the file of weights may hold. The sizes in the config are compared with that file
        before the network is built. Raises ValueError that says what is wrong.
        """
        path = Path(directory) / "config.json"
        weights = path.with_name("model.safetensors")
        for file in (path, weights):
            if not file.is_file():
                raise ValueError(f"{file}: not found; expected a generator written by `vag train-generator`")
        values = read_config(path)
        kind = values.pop("type", None)
        if kind != CHECKPOINT_TYPE:
            raise ValueError(f"{path}: expected a checkpoint of type '{CHECKPOINT_TYPE}', got '{str(kind)[:80]}'")
        try:
            config = GeneratorConfig.from_dict(values)
            generator = load_network(lambda: cls(config), weights, max_parameters, "generator")
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith(f"{weights}: ") else f"{path}: {text}") from error
        except Exception as error:  # sizes that no layer can have
            raise ValueError(f"{path}: no generator can be built from it ({first_line(error)})") from error
        return generator.to(device).eval()


def known(noisy: Tensor, t: Tensor) -> Tensor:
    """`noisy` (B, ...), with zeros in place of pure noise, t = 1: it says nothing, and to learn that takes long."""
    return noisy * expand_time(t < 1, noisy)


def labelled_last(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with samples that have no actions before those that do, else in order."""
    order = torch.argsort(batch["has_actions"].int(), stable=True)
    places = order.tolist()
    return {
        key: [value[i] for i in places] if isinstance(value, list) else value[order] for key, value in batch.items()
    }


def masked_mean(error: Tensor, valid: Tensor) -> Tensor:
    """Mean of (B, N) over what is valid, per row: (B,); 0 where nothing is."""
    return (error * valid).sum(1) / valid.sum(1).clamp(min=1)
