"""`vag train-generator`: the video tokenizer, then both streams of the generator, on one dataset."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from recipes.common import instruction_encoder, load_clips, user_errors
from recipes.schema import TrainGeneratorConfig
from toolkit.data.cache import open_latents
from toolkit.data.clips import ClipStore
from toolkit.data.mixture import GeneratorClips, LatentClips, TokenizerClips, to_tensors
from toolkit.data.normalizer import ACTION_FLOOR, STATE_FLOOR, describe
from toolkit.data.scenes import scenes_of, write_scenes
from toolkit.errors import UserError
from toolkit.reporting.run_record import Run
from toolkit.training.logging import ScalarLog, progress
from toolkit.training.loop import train
from toolkit.training.runtime import seed_everything, set_threads
from vag_core import Generator
from vag_core.video_tokenizer import VideoTokenizer, to_float_frames, to_uint8_frames


def run(config: TrainGeneratorConfig, run: Run) -> None:
    """Train both stages and write `generator/` (averaged weights, safetensors)."""
    set_threads(config.runtime)
    store = load_clips(run, config.dataset, config.generator.image_size, config.image_key)
    config.generator.state_dim, config.generator.action_dim = store.states.shape[1], store.actions.shape[1]
    if max(store.episode_lengths) < 2:
        raise UserError(f"{config.dataset}: episodes have one step; the generator needs sequences")
    encode = instruction_encoder(config.instruction_encoder)
    if config.instruction_encoder is not None:
        config.generator.instruction.kind = "embedding"
        vectors = encode(["?"])
        assert isinstance(vectors, torch.Tensor)  # an encoder on disk gives vectors, never the strings themselves
        config.generator.instruction.embedding_width = vectors.shape[1]
    seed_everything(config.seed)
    with user_errors():
        generator = Generator(config.generator)
        generator.video_instruction(encode(store.tasks))  # one that is too long is told now, not after minutes
    statistics = [describe(store.actions, ACTION_FLOOR), describe(store.states, STATE_FLOOR)]
    generator.set_statistics(*(np.concatenate([s[key] for s in statistics]) for key in ("mean", "std", "min", "max")))
    num_frames = config.generator.num_frames

    tokenizer = generator.tokenizer
    clips = GeneratorClips(store, config.tokenizer_optim.batch_size, num_frames, config.seed, config.random_start)
    data = TokenizerClips(clips, config.generator.tokenizer.temporal_stride, config.tokenizer_optim.groups)
    train(tokenizer, data, config.tokenizer_optim, config.runtime, run.directory / "tokenizer", "tokenizer")
    whole = [_window(store, [episode], num_frames) for episode in range(min(32, store.num_episodes))]
    tokenizer.calibrate(torch.cat(whole))
    tokenizer.requires_grad_(False)
    quality = reconstruction_psnr(generator, torch.cat(whole[:8]))
    run.result["tokenizer"] = {"steps": config.tokenizer_optim.steps, "psnr": round(quality, 2)}
    run.write()

    clips = GeneratorClips(store, config.optim.batch_size, num_frames, config.seed, config.random_start)
    source: Any = clips
    if not config.random_start:  # one window per episode: encode each once
        source = LatentClips(clips, _latents(store, tokenizer, num_frames))
    if config.instruction_encoder is not None:
        source = EncodedInstructions(source, encode)

    def log_samples(log: ScalarLog, step: int) -> None:
        if step % config.optim.checkpoint_every == 0 or step == config.optim.steps:
            batch = to_tensors(
                store.generator_batch(
                    np.arange(min(2, store.num_episodes)), np.zeros(2, int)[: store.num_episodes], num_frames
                )
            )
            device = generator.mean.device
            with torch.random.fork_rng():
                torch.manual_seed(0)
                sample = generator.sample(
                    batch["frames"][:, 0].to(device),
                    batch["states"][:, 0].to(device),
                    encode(batch["instruction"]),
                )
            pairs = np.concatenate([batch["frames"].numpy(), sample.frames.cpu().numpy()], axis=2)
            log.video(step, "real_above_generated", pairs[:, :: max(1, num_frames // 20)], 10)

    metrics = train(
        generator, source, config.optim, config.runtime, run.directory / "streams", "generator", log_samples
    )
    target, temporary = run.directory / "generator", run.directory / ".generator.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    generator.save_pretrained(temporary)
    write_scenes(temporary, scenes_of(store.metadata))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    for stage in ("tokenizer", "streams"):  # the result is written: the optimiser state has served
        shutil.rmtree(run.directory / stage / "checkpoints")
    run.result.update(
        generator={
            "steps": config.optim.steps,
            **{k: round(v, 4) for k, v in metrics.items()},
            "parameters": sum(p.numel() for p in generator.parameters()),
        },
        checkpoint="generator",
    )


def reconstruction_psnr(generator: Generator, frames: torch.Tensor) -> float:
    """PSNR [dB] of the tokenizer on (B, 3, F, H, W), over the frames after the first."""
    with torch.no_grad():
        decoded = generator.tokenizer.decode(generator.tokenizer.encode(frames), frames[:, :, 0])
    error = to_uint8_frames(decoded[:, :, 1:]).float() - to_uint8_frames(frames[:, :, 1:]).float()
    return float(10 * torch.log10(255**2 / error.square().mean()))


class EncodedInstructions:
    """Adds the vectors of a text encoder on disk to the batches of another source."""

    def __init__(self, source: Any, encode: Any) -> None:
        self.source, self.encode = source, encode

    def batch(self, step: int) -> dict[str, Any]:
        batch = self.source.batch(step)
        return {**batch, "instruction": self.encode(batch["instruction"])}


def _latents(store: ClipStore, tokenizer: VideoTokenizer, num_frames: int) -> np.ndarray:
    """Latents of the window at the start of every episode, from the cache where it has them."""

    @torch.no_grad()
    def encode() -> Iterator[np.ndarray]:
        parts = np.array_split(np.arange(store.num_episodes), -(-store.num_episodes // 8))
        for part in progress(parts, description="encode", unit="batch"):
            yield tokenizer.encode(_window(store, part, num_frames)).numpy()

    return open_latents(store, _state_id(tokenizer), f"first {num_frames} frames", encode)


def _state_id(module: torch.nn.Module) -> str:
    """SHA-256 over all weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _window(store: ClipStore, episodes: Any, num_frames: int) -> torch.Tensor:
    episodes = np.asarray(episodes)
    batch = store.generator_batch(episodes, np.zeros_like(episodes), num_frames)
    return to_float_frames(torch.from_numpy(batch["frames"]))


def summary(result: dict[str, Any]) -> str:
    return f"tokenizer {result['tokenizer']['psnr']} dB, generator loss {result['generator'].get('loss', float('nan'))}"
