"""The dual-stream generator: first image + state + instruction -> video, actions and states.

Reads top to bottom: conditions -> the two branches -> loss -> sampler -> checkpoint.

Shapes: B clips, F video frames, T latent frames, N = F - 1 actions, A action and S state width.
The trajectory stream holds [action_t, state_{t+1}], t = 0 .. N-1, normalised: (B, N, A + S).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vag_core.action_unet import ActionUNet
from vag_core.config import GeneratorConfig
from vag_core.flow_matching import interpolate, predict_clean, sample_time, velocity
from vag_core.layers import InstructionEncoder, TimeEmbedding
from vag_core.pooling_bridge import PoolingBridge
from vag_core.sampler import integrate
from vag_core.video_dit import VideoDiT
from vag_core.video_tokenizer import VideoTokenizer, to_float_frames, to_uint8_frames

CHECKPOINT_TYPE = "vag_generator"

NO_LIMIT = torch.finfo(torch.float32).max  # not infinity, of which no average can be kept


@dataclass
class GeneratedBatch:
    """frames (B, F, H, W, 3) uint8, actions (B, N, A), states (B, F, S) in physical units, loss (B,).

    `loss` is the generator's own flow-matching loss on the pair it made: lower = the model finds it likelier.
    """

    frames: Tensor
    actions: Tensor
    states: Tensor
    loss: Tensor


class Generator(nn.Module):
    """VAG (arXiv 2604.09330): a flow-matching video branch and an action branch, denoised in step.

    The action branch reads the video branch only through the bridge, which pools the predicted clean video;
    its gradient stops there, as published.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        text, width = config.instruction, config.video.width
        channels = config.latent_shape[0]
        trajectory = config.action_dim + config.state_dim
        self.tokenizer = VideoTokenizer(config.tokenizer)
        self.video = VideoDiT(config.video, channels)
        self.video_instruction = InstructionEncoder(text.kind, width, text.length, text.embedding_width)
        self.video_state = nn.Linear(config.state_dim, width)
        self.bridge = PoolingBridge(config.bridge, config.latent_shape)
        width = config.bridge.width
        self.action_time = TimeEmbedding(width)
        self.action_instruction = InstructionEncoder(text.kind, width, text.length, text.embedding_width)
        self.action_state = nn.Linear(config.state_dim, width)
        self.action = ActionUNet(config.action, trajectory, width + self.bridge.out_width)
        # Normalisation and range of [action, state], measured on the training data by `set_statistics`.
        for name, value in (("mean", 0.0), ("std", 1.0), ("low", -NO_LIMIT), ("high", NO_LIMIT)):
            self.register_buffer(name, torch.full((trajectory,), value))

    def set_statistics(self, mean: Any, std: Any, low: Any = -NO_LIMIT, high: Any = NO_LIMIT) -> None:
        """Mean, deviation, least and largest value of [action, state] in physical units, each (A + S,).

        Samples are clipped to [low, high]: a command that no operator gave, past a joint's or gripper's limit, would
        widen the range that policies normalise with.
        """
        for buffer, value in ((self.mean, mean), (self.std, std), (self.low, low), (self.high, high)):
            buffer.copy_(torch.as_tensor(value, dtype=torch.float32))

    # --- the two branches ---

    def video_velocity(self, noisy: Tensor, first: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Velocity of the latent frames after the first. noisy: (B, C, T-1, h, w) -> the same shape."""
        return self.video(noisy, first, t, condition)

    def action_velocity(self, noisy: Tensor, clean_video: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Velocity of the trajectory. noisy: (B, N, A + S), clean_video: (B, C, T, h, w) predicted, detached."""
        video = self.bridge(clean_video.detach())
        return self.action(noisy, torch.cat([self.action_time(t) + condition, video], dim=-1))

    def conditions(self, state: Tensor, instruction: list[str] | Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Condition vectors of both branches. state: (B, S) normalised; keep: (B,), 0 drops the instruction."""
        vectors = []
        for encoder, project in (
            (self.video_instruction, self.video_state),
            (self.action_instruction, self.action_state),
        ):
            text = encoder(instruction)
            vectors.append(project(state) + torch.where(keep[:, None].bool(), text, encoder.null))
        return vectors[0], vectors[1]

    # --- training ---

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow-matching loss of both streams, at one shared time per clip.

        batch: frames (B, F, H, W, 3) uint8, or latents (B, C, T, h, w) encoded beforehand;
        states (B, F, S) and actions (B, N, A) in physical units; instruction; is_pad (B, N) bool, where True
        marks steps past the end of the episode: they do not count.
        """
        latents = batch["latents"] if "latents" in batch else self._encode(batch["frames"])
        trajectory = self.pack(batch["actions"], batch["states"])
        device = latents.device
        keep = torch.rand(len(latents), device=device) >= self.config.instruction.dropout
        t = sample_time(len(latents), device)
        video, action = self.pair_loss(
            latents, trajectory, batch["states"][:, 0], batch["instruction"], t, keep, batch.get("is_pad")
        )
        metrics = {"video_loss": video.mean().detach(), "action_loss": action.mean().detach()}
        return video.mean() + action.mean(), metrics

    def pair_loss(
        self,
        latents: Tensor,
        trajectory: Tensor,
        state: Tensor,
        instruction: list[str] | Tensor,
        t: Tensor,
        keep: Tensor,
        is_pad: Tensor | None = None,
        same_noise: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Loss per pair of the video and of the action stream at time t, each (B,), with noise for each or all."""
        video_condition, action_condition = self.conditions(self._normalise_state(state), instruction, keep)
        first, rest = latents[:, :, :1], latents[:, :, 1:]
        draws = slice(1) if same_noise else slice(None)
        video_noise, action_noise = (torch.randn_like(x[draws]).expand_as(x) for x in (rest, trajectory))
        noisy = interpolate(rest, video_noise, t)
        predicted = self.video_velocity(noisy, first, t, video_condition)
        clean = torch.cat([first, predict_clean(noisy, predicted, t)], dim=2)
        noisy_trajectory = interpolate(trajectory, action_noise, t)
        predicted_action = self.action_velocity(noisy_trajectory, clean, t, action_condition)
        video_error = (predicted - velocity(rest, video_noise)).square()
        action_error = (predicted_action - velocity(trajectory, action_noise)).square().mean(-1)  # (B, N)
        if is_pad is None:
            return video_error.flatten(1).mean(1), action_error.mean(1)
        valid = (~is_pad).float()
        groups = valid.view(len(valid), rest.shape[2], -1).amin(-1)  # a group with a padded frame does not count
        video_loss = (video_error.mean(dim=(1, 3, 4)) * groups).sum(1) / groups.sum(1).clamp(min=1)
        return video_loss, (action_error * valid).sum(1) / valid.sum(1).clamp(min=1)

    # --- sampling ---

    @torch.no_grad()
    def sample(
        self,
        image: Tensor,
        state: Tensor,
        instruction: list[str] | Tensor,
        *,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.0,
        method: str = "euler",
        rng: torch.Generator | list[torch.Generator] | None = None,
    ) -> GeneratedBatch:
        """Generate one video-action pair per first image, both streams at the same time in every step.

        image: (B, H, W, 3) uint8; state: (B, S) in physical units; instruction: B strings.
        rng: where noise comes from; with one generator per pair, a pair does not depend on those beside it.
        guidance_scale: classifier-free guidance on the instruction (arXiv 2207.12598); 1 = off.
        Raises ValueError for an image or state of another size than the generator was trained on.
        """
        config = self.config
        image, state = self._check_inputs(image, state, instruction)
        device, size = self.mean.device, len(image)
        first_image = to_float_frames(image[:, None])[:, :, 0]
        first = self.tokenizer.encode_first(first_image)
        normal = self._normalise_state(state)
        ones = torch.ones(size, device=device)
        guided = self.conditions(normal, instruction, ones)
        unguided = self.conditions(normal, instruction, 0 * ones)

        def velocities(streams: tuple[Tensor, ...], time: float) -> tuple[Tensor, ...]:
            noisy, noisy_trajectory = streams
            t = torch.full((size,), time, device=device)
            video = self.video_velocity(noisy, first, t, guided[0])
            if guidance_scale != 1:
                free = self.video_velocity(noisy, first, t, unguided[0])
                video = free + guidance_scale * (video - free)
            clean = torch.cat([first, predict_clean(noisy, video, t)], dim=2)
            action = self.action_velocity(noisy_trajectory, clean, t, guided[1])
            if guidance_scale != 1:
                free = self.action_velocity(noisy_trajectory, clean, t, unguided[1])
                action = free + guidance_scale * (action - free)
            return video, action

        channels, frames, height, width = config.latent_shape
        shapes = (channels, frames - 1, height, width), (config.action_horizon, self.mean.numel())
        # Noise is drawn on the CPU, so that a seed means the same sample on every device.
        sources = rng if isinstance(rng, list) else [rng] * size
        noise = [torch.stack([torch.randn(shape, generator=g) for g in sources]).to(device) for shape in shapes]
        latents, trajectory = integrate(velocities, noise, num_inference_steps, method)
        latents = torch.cat([first, latents], dim=2)
        widths = [self.config.action_dim, self.config.state_dim]
        parts = zip(self.unpack(trajectory), self.low.split(widths), self.high.split(widths), strict=True)
        actions, states = (part.clamp(low, high) for part, low, high in parts)
        frames_out = to_uint8_frames(self.tokenizer.decode(latents, first_image))
        return GeneratedBatch(
            frames=frames_out,
            actions=actions,
            states=torch.cat([state[:, None], states], dim=1),
            loss=self.pair_score(latents, trajectory, state, instruction),
        )

    @torch.no_grad()
    def pair_score(self, latents: Tensor, trajectory: Tensor, state: Tensor, instruction: list[str] | Tensor) -> Tensor:
        """Flow-matching loss of given pairs, averaged over fixed times and fixed noise: comparable, (B,)."""
        times = (0.1, 0.3, 0.5, 0.7, 0.9)
        total = torch.zeros(len(latents), device=latents.device)
        keep = torch.ones_like(total)
        with torch.random.fork_rng(devices=[latents.device] if latents.is_cuda else []):
            torch.manual_seed(0)
            for time in times:
                t = torch.full_like(total, time)
                video, action = self.pair_loss(latents, trajectory, state, instruction, t, keep, same_noise=True)
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

    def _encode(self, frames: Tensor) -> Tensor:
        with torch.no_grad():
            return self.tokenizer.encode(to_float_frames(frames))

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

    # --- checkpoint ---

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing or new directory."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, directory / "model.safetensors")
        payload = {"type": CHECKPOINT_TYPE, **self.config.to_dict()}
        (directory / "config.json").write_text(json.dumps(payload, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: torch.device | str = "cpu") -> Generator:
        """Load strictly from safetensors; nothing is unpickled. Raises ValueError that says what is wrong."""
        path = Path(directory) / "config.json"
        weights = path.with_name("model.safetensors")
        for file in (path, weights):
            if not file.is_file():
                raise ValueError(f"{file}: not found; expected a generator written by `vag train-generator`")
        try:
            values = json.loads(path.read_text())
            kind = values.pop("type", None)
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise ValueError(f"{path}: not a generator's config ({error})") from error
        if kind != CHECKPOINT_TYPE:
            raise ValueError(f"{path}: expected a checkpoint of type '{CHECKPOINT_TYPE}', got '{kind}'")
        try:
            generator = cls(GeneratorConfig.from_dict(values))
            generator.load_state_dict(load_file(weights), strict=True)
        except Exception as error:  # safetensors raises its own class; torch raises RuntimeError
            raise ValueError(f"{weights}: does not fit {path} ({' '.join(str(error).split())[:200]})") from error
        return generator.to(device).eval()
