"""`vag train-generator`: the video tokenizer, then both streams of the generator, on one dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common import (
    Pictures,
    converter,
    instruction_encoder,
    load_all,
    load_generator,
    load_notes,
    pick_device,
    resample_all,
    seen_behind,
    speed,
    spread,
    user_errors,
    weights_id,
)
from recipes.fit_to_data import check_window, fit_instructions, fit_pictures, fit_window
from recipes.schema import TrainGeneratorConfig
from toolkit.base.errors import UserError
from toolkit.base.processes import processes
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.actions import converted_rows, find_reference
from toolkit.data.batches import ALL, GeneratorClips, LatentClips, Part, TokenizerClips, to_tensors
from toolkit.data.cache import open_merged
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import Conventions
from toolkit.data.episode import ACTION, STATE
from toolkit.data.episode_notes import check_used
from toolkit.data.images import as_size
from toolkit.data.normalizer import ACTION_FLOOR, STATE_FLOOR, describe, dimension_names
from toolkit.data.seen_scenes import SeenScenes, merge, scenes_behind, scenes_of, write_scenes
from toolkit.data.selection import select, subset
from toolkit.data.windows import Windows
from toolkit.reporting.generator_results import StreamsTraining, Throughput, TokenizerTraining, TrainGeneratorResult
from toolkit.training.logging import ScalarLog
from toolkit.training.loop import train
from toolkit.training.parallel import share_weights
from toolkit.training.runtime import seed_everything, set_threads
from vag_core import Generator
from vag_core.clocks import clocks_of
from vag_core.config import FramewiseConfig
from vag_core.tokenizer import VideoTokenizer, to_float_frames, to_uint8_frames

CALIBRATION, SHOWN = 32, 8  # episodes whose latents set the scale, and whose reconstruction is measured


def run(config: TrainGeneratorConfig, run: Run) -> TrainGeneratorResult:
    """Train both stages and write `generator/` (averaged weights, safetensors)."""
    set_threads(config.runtime)
    data = gather(config, run)
    config.generator.state_dim, config.generator.action_dim = data.store.states.shape[1], data.store.actions.shape[1]
    if (taken := config.video_from or config.tokenizer_from) is not None:
        run.add_data(taken, weights_id(taken))
    clips = config.optim.batch_size * config.optim.gradient_accumulation * processes().size
    if clocks_of(config.generator.action).plan_share > 0 and clips == 1:
        raise UserError("optim.batch_size=1 leaves nothing to plan; take more, or generator.action.plan_share=0")
    conventions = replace(Conventions.shared([data.store]), name_views=config.name_views)
    if config.name_views and not conventions.views:
        raise UserError(f"name_views=true: {config.dataset} has one camera, which fills the picture; leave it out")
    encode = instruction_encoder(config.instruction_encoder, config.max_parameters, conventions.views)
    if config.instruction_encoder is not None:
        config.generator.instruction.kind = "embedding"
        vectors = encode(["?"])
        assert isinstance(vectors, torch.Tensor)  # an encoder on disk gives vectors, never the strings themselves
        config.generator.instruction.embedding_width = vectors.shape[1]
    else:
        fit_instructions(config, encode(data.store.tasks))
    fit_window(config, data.store)
    covered, padded = check_window(config, data.store)
    seed_everything(config.seed)
    with user_errors():
        generator = Generator(config.generator)
        generator.check_instruction(encode(data.store.tasks))  # one that is too long is told now, not after minutes
    generator.trajectory.set_reference(data.reference)
    generator.trajectory.set_statistics(*data.ranges())
    tokenized = tokenizer_stage(config, run, generator, data)
    metrics, throughput = streams_stage(config, run, generator, data, encode)
    behind = [*data.seen_behind, *([scenes_behind(taken)] if taken else [])]
    scenes = merge(scenes_of(data.store.metadata), *behind)

    def write(folder: Path) -> None:
        generator.save_pretrained(folder)
        write_scenes(folder, scenes)
        conventions.write(folder)
        Windows.of(data.store, bool(config.random_start)).write(folder)

    with user_errors():
        run.make("generator", write)
    for stage in ("tokenizer", "streams"):  # the optimiser state has served
        run.remove_when_finished(run.directory / stage / "checkpoints")
    losses = {k: round(v, 4) for k, v in metrics.items()}
    return TrainGeneratorResult(
        tokenizer=tokenized,
        generator=StreamsTraining(
            steps=config.optim.steps,
            loss=losses.pop("loss", None),
            losses=losses,
            parameters=sum(p.numel() for p in generator.parameters()),
        ),
        throughput=Throughput(**throughput),
        episodes=data.episodes,
        checkpoint="generator",
        covered=round(covered, 4),
        padded=round(padded, 4),
    )


@dataclass
class TrainingData:
    """All datasets as one. episodes: of each of them; shares (E,): how often each episode is drawn, None for all alike;
    labelled (E,): which keep their actions, None for all; seen_behind: scenes behind the synthetic ones; reference:
    (A,) what actions are relative to, see `find_reference`."""

    store: ClipStore
    config: TrainGeneratorConfig
    episodes: list[int]
    shares: np.ndarray | None
    labelled: np.ndarray | None
    seen_behind: list[SeenScenes]
    reference: list[int]

    def clips(self, batch_size: int, random_start: bool) -> GeneratorClips:
        """Videos, whether or not they have actions."""
        return GeneratorClips(self.store, batch_size, *self._windows(random_start), None, self.shares)

    def labelled_clips(self) -> GeneratorClips:
        """Pairs and plans, as the training of both streams takes them."""
        size, windows = self.config.optim.batch_size, self._windows(bool(self.config.random_start))
        num_joint = clocks_of(self.config.generator.action).num_joint_clips
        return GeneratorClips(self.store, size, *windows, self.labelled, self.shares, num_joint)

    def starts(self) -> GeneratorClips:
        """The window at the start of every episode."""
        return self.clips(1, random_start=False)

    def _windows(self, random_start: bool) -> tuple[int, int, bool, int]:
        shape = self.config.generator
        return shape.num_frames, self.config.seed, random_start, shape.frame_stride

    def ranges(self) -> list[np.ndarray]:
        """Mean, deviation, least and largest value of [action, state], of the episodes that keep their actions.

        The first two of actions as the generator learns them, the limits of recorded ones.
        """
        kept = np.arange(self.store.num_episodes) if self.labelled is None else np.flatnonzero(self.labelled)
        rows, kind = self.store.rows_of(kept), self.config.generator.action_representation
        names, state_names = (dimension_names([self.store], key) for key in (ACTION, STATE))
        actions = recorded = self.store.actions[rows]
        if kind != "absolute":
            horizon, used = self.config.generator.action_horizon, np.isin(np.arange(self.store.num_episodes), kept)
            room = np.maximum(self.store.episode_lengths - horizon - 1, 0) * bool(self.config.random_start)
            starts = [np.arange((last + 1) * own) for last, own in zip(room, used, strict=True)]
            actions = converted_rows(self.store, horizon, converter(kind, self.reference), starts)
        learned = describe(actions, ACTION_FLOOR, names), describe(self.store.states[rows], STATE_FLOOR, state_names)
        limits = learned[0] if actions is recorded else describe(recorded, ACTION_FLOOR), learned[1]
        told = (("mean", learned), ("std", learned), ("min", limits), ("max", limits))
        return [np.concatenate([part[key] for part in parts]) for key, parts in told]


def gather(config: TrainGeneratorConfig, run: Run) -> TrainingData:
    """Open all datasets. Raises UserError for none, and for options that contradict them or each other."""
    sources = [config.dataset] if isinstance(config.dataset, str) else list(config.dataset)
    if not sources:
        raise UserError("train-generator: dataset=[] is empty; name at least one")
    if config.select and not config.synthetic:
        raise UserError(f"train-generator: select={list(config.select)} needs synthetic=[DATASET] to select from")
    notes = load_notes(run, config.notes)
    size = as_size(config.image_size, "image_size")
    pictures = Pictures(size, config.cameras, config.rename, config.frame_storage)
    stores = resample_all(load_all(run, [*sources, *config.synthetic], pictures, notes), config)
    stores[len(sources) :] = [selected(config, store) for store in stores[len(sources) :]]
    check_used(notes)
    fit_pictures(config.generator, stores[0].canvas)
    shares, store = episode_shares(stores, config.dataset_shares), open_merged(stores)
    if max(store.episode_lengths) < 2:
        raise UserError(f"{config.dataset}: episodes have one step; the generator needs sequences")
    if config.video_from and config.tokenizer_from:
        raise UserError("train-generator: video_from brings its tokenizer along; give it or tokenizer_from")
    labelled, behind = labelled_episodes(stores, config.labelled_fraction), stores[len(sources) :]
    if labelled is not None and shares is not None and not shares[labelled].any():
        raise UserError(
            f"labelled_fraction={config.labelled_fraction}: dataset_shares={config.dataset_shares} draws from no "
            "dataset that keeps actions; give one of those that do a share above 0"
        )
    counts = [part.num_episodes for part in stores]
    if config.action_representation != "absolute":
        config.generator.action_representation = config.action_representation
    kind, reference = config.generator.action_representation, [-1] * store.actions.shape[1]
    if kind != "absolute":
        reference = find_reference(stores, kind, config.absolute_dimensions)
    return TrainingData(store, config, counts, shares, labelled, [seen_behind(part) for part in behind], reference)


def tokenizer_stage(
    config: TrainGeneratorConfig, run: Run, generator: Generator, data: TrainingData
) -> TokenizerTraining | None:
    """Train the tokenizer, or take one; None for a system without video."""
    starts, device = data.starts(), pick_device(config.runtime)
    taken = config.video_from or config.tokenizer_from
    if taken is not None:
        with user_errors():
            take = generator.take_video_branch if config.video_from else generator.take_tokenizer
            take(load_generator(taken, "cpu", config.max_parameters))
    elif config.generator.action.makes_video:
        source = TokenizerClips(
            data.clips(config.tokenizer_optim.batch_size, bool(config.random_start)),
            config.generator.tokenizer.temporal_stride,
            config.tokenizer_optim.groups,
        )
        tokenizer, directory = generator.tokenizer, run.directory / "tokenizer"
        train(tokenizer, source, config.tokenizer_optim, config.runtime, directory, "tokenizer", seed=config.seed)
        tokenizer.to(device).calibrate(_frames(starts, spread(data.store.num_episodes, CALIBRATION)).to(device))
        tokenizer.to("cpu")
        share_weights(tokenizer)  # other hardware rounds in its own way, and latents are named after the weights
        tokenizer.requires_grad_(False)
    if not config.generator.action.makes_video:
        return None
    trained = 0 if taken else config.tokenizer_optim.steps
    shown = _frames(starts, spread(data.store.num_episodes, SHOWN))
    still = float(10 * torch.log10(255**2 / _uint8_error(shown, shown[:, :, :1])))
    tokenized = TokenizerTraining(
        steps=trained, training_psnr=round(reconstruction_psnr(generator, shown), 2), still_psnr=round(still, 2)
    )
    run.note_result({"tokenizer": tokenized})
    run.write()
    return tokenized


def streams_stage(
    config: TrainGeneratorConfig, run: Run, generator: Generator, data: TrainingData, encode: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Train both streams; returns the last metrics and the throughput."""
    source: Any = data.labelled_clips()
    starts = data.starts()
    if config.generator.action.makes_video and not config.random_start:  # one window per episode: encode each once
        reads_frames = isinstance(config.generator.action, FramewiseConfig)
        latents = _latents(starts, generator.tokenizer, pick_device(config.runtime))
        source = LatentClips(source, latents, with_frames=reads_frames)
    if config.instruction_encoder is not None or config.name_views:
        source = EncodedInstructions(source, encode)

    def log_samples(log: ScalarLog, step: int) -> None:
        due = step % config.optim.checkpoint_every == 0 or step == config.optim.steps
        if due and config.generator.action.makes_video:
            log.video(step, "real_above_generated", sampled_above(generator, starts, encode), 10)

    directory = run.directory / "streams"
    metrics, throughput = train(
        generator, source, config.optim, config.runtime, directory, "generator", log_samples, seed=config.seed
    )
    if throughput and (tokens := generator.tokens_of(config.optim.batch_size)):
        rate = tokens / config.optim.batch_size
        throughput["tokens_per_second"] = rate * throughput["samples_per_second"]
    return metrics, throughput


def sampled_above(generator: Generator, starts: GeneratorClips, encode: Any) -> np.ndarray:
    """(B, F, 2H, W, 3) uint8: recorded videos of two episodes, and below each a sample from its first picture."""
    batch = to_tensors(starts.window(np.arange(min(2, starts.store.num_episodes))))
    device = generator.device
    given = {key: batch[key].to(device) for key in ("actions", "states")} if generator.action is None else {}
    generator.eval()
    first, state = batch["frames"][:, 0].to(device), batch["states"][:, 0].to(device)
    rng = torch.Generator().manual_seed(0)
    sample = generator.sample(first, state, encode(batch["instruction"]), rng=rng, **given)
    generator.train()
    pairs = np.concatenate([batch["frames"].numpy(), sample.frames.cpu().numpy()], axis=2)
    return pairs[:, :: max(1, pairs.shape[1] // 20)]


def selected(config: TrainGeneratorConfig, store: ClipStore) -> ClipStore:
    """The episodes of a synthetic dataset that are learned from. Raises UserError if that is none."""
    if not config.select:
        return store
    kept = select(config.select, store.metadata, store.episode_tasks, store.name, config.seed, every_task=False)
    return subset(store, np.flatnonzero(kept))


def episode_shares(stores: Sequence[ClipStore], shares: Sequence[float] | None) -> np.ndarray | None:
    """(E,) how often each episode of all datasets is drawn, sum 1; None for all alike.

    Raises UserError unless there is a number for each dataset, and one above 0.
    """
    if shares is None:
        return None
    if len(shares) != len(stores) or sum(shares) == 0:
        raise UserError(
            f"dataset_shares={list(shares)}: expected a number for each of dataset=[...], synthetic=[...], not all 0"
        )
    episodes = [store.num_episodes for store in stores]
    return np.repeat([share / sum(shares) / n for share, n in zip(shares, episodes, strict=True)], episodes)


def labelled_episodes(stores: Sequence[ClipStore], fractions: float | Sequence[float]) -> np.ndarray | None:
    """(E,) True for the first share of the episodes of each instruction in each dataset; None for all of them.

    fractions: one for all datasets, or one for each. Above 0 at least one episode of each instruction is labelled.
    Raises UserError unless there is a number for each dataset, and one above 0.
    """
    each = [float(fractions)] * len(stores) if isinstance(fractions, int | float) else list(fractions)
    if len(each) != len(stores) or max(each) == 0:
        raise UserError(
            f"labelled_fraction={fractions}: expected a number above 0, or one for each of dataset=[...], "
            "synthetic=[...], not all 0"
        )
    if min(each) == 1:
        return None
    parts = []
    for store, fraction in zip(stores, each, strict=True):
        labelled = np.zeros(store.num_episodes, bool)
        for task in np.unique(store.episode_tasks) if fraction > 0 else ():
            episodes = np.flatnonzero(store.episode_tasks == task)
            labelled[episodes[: max(1, round(fraction * len(episodes)))]] = True
        parts.append(labelled)
    return np.concatenate(parts)


def reconstruction_psnr(generator: Generator, frames: torch.Tensor) -> float:
    """PSNR [dB] of the tokenizer on (B, 3, F, H, W), over the frames after the first."""
    with torch.no_grad():
        decoded = generator.tokenizer.decode(generator.tokenizer.encode(frames), frames[:, :, 0])
    return float(10 * torch.log10(255**2 / _uint8_error(frames, decoded)))


def _uint8_error(frames: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean square of 255 over the frames after the first; of others there may be one alone, for all."""
    shown = to_uint8_frames(others if others.shape[2] == 1 else others[:, :, 1:]).float()
    return (shown - to_uint8_frames(frames[:, :, 1:]).float()).square().mean()


class EncodedInstructions:
    """Instructions of the batches of another source as the generator takes them: see `instruction_encoder`."""

    def __init__(self, source: Any, encode: Any) -> None:
        self.source, self.encode = source, encode

    def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
        batch = self.source.batch(step, part)
        return {**batch, "instruction": self.encode(batch["instruction"])}


def _latents(starts: GeneratorClips, tokenizer: VideoTokenizer, device: str) -> np.ndarray:
    """Latents of the window at the start of every episode, from the cache where it has them."""
    store = starts.store

    @torch.no_grad()
    def encode() -> Iterator[np.ndarray]:
        parts = np.array_split(np.arange(store.num_episodes), -(-store.num_episodes // 8))
        for part in progress(parts, description="encode", unit="batch"):
            yield tokenizer.encode(_frames(starts, part).to(device)).cpu().numpy()

    window = f"first {starts.num_frames} frames, {starts.frame_stride} apart"
    identity = _state_id(tokenizer)
    tokenizer.to(device)
    latents = open_latents(store, identity, window, encode)
    tokenizer.to("cpu")
    return latents


def _state_id(module: torch.nn.Module) -> str:
    """SHA-256 over all weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _frames(starts: GeneratorClips, episodes: Any) -> torch.Tensor:
    return to_float_frames(torch.from_numpy(starts.window(np.asarray(episodes))["frames"]))


def summary(result: TrainGeneratorResult) -> str:
    tokenizer = ""
    if (trained := result.tokenizer) is not None:
        tokenizer = (
            f"tokenizer {trained.training_psnr} dB on training clips (first frame repeated {trained.still_psnr}), "
        )
    return f"{tokenizer}generator loss {result.generator.loss}{speed(result.throughput)}"
