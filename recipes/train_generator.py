"""`vag train-generator`: the video tokenizer, then both streams of the generator, on one dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common import (
    Pictures,
    converter,
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
from recipes.dry_run import dry_run
from recipes.dry_run_text import dry_summary
from recipes.fit_to_data import check_window, fit_instructions, fit_pictures, fit_window
from recipes.generator_batches import frames_of, prepared, start_every
from recipes.held_out import GeneratorWatch, HeldOut, held_out_of
from recipes.schema import TrainGeneratorConfig
from recipes.video_model import TextTokens, fit_rate, fit_video, is_pretrained
from toolkit.base.errors import UserError
from toolkit.base.processes import processes
from toolkit.base.run import Run
from toolkit.data.actions import converted_rows, find_reference
from toolkit.data.batches import GeneratorClips, TokenizerClips
from toolkit.data.cache import open_merged
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import Conventions
from toolkit.data.episode import ACTION, STATE
from toolkit.data.episode_notes import check_used
from toolkit.data.held_out import part_of
from toolkit.data.images import as_size
from toolkit.data.normalizer import ACTION_FLOOR, STATE_FLOOR, describe, dimension_names
from toolkit.data.seen_scenes import SeenScenes, merge, scenes_behind, scenes_of, write_scenes
from toolkit.data.selection import select, subset
from toolkit.data.text import instruction_encoder
from toolkit.data.windows import Windows
from toolkit.reporting.generator_results import StreamsTraining, Throughput, TokenizerTraining, TrainGeneratorResult
from toolkit.training.fsdp import check_sharding, group_sizes
from toolkit.training.loop import train
from toolkit.training.parallel import share_weights
from toolkit.training.runtime import seed_everything, set_threads
from toolkit.training.watch import Watch
from vag_core import Generator
from vag_core.clocks import clocks_of
from vag_core.config import PretrainedConfig
from vag_core.tokenizer import to_uint8_frames

CALIBRATION, SHOWN = 32, 8  # episodes whose latents set the scale, and whose reconstruction is measured


def run(config: TrainGeneratorConfig, run: Run) -> TrainGeneratorResult:
    """Train both stages and write `generator/` (averaged weights, safetensors)."""
    set_threads(config.runtime)
    if config.dry_run:
        return dry_run(config)
    group_sizes(config.parallelism)
    model, data = fit_video(config, run), gather(config, run)
    config.generator.state_dim, config.generator.action_dim = data.store.states.shape[1], data.store.actions.shape[1]
    if (taken := config.video_from or config.tokenizer_from) is not None:
        run.add_data(taken, weights_id(taken))
    clips = config.optim.batch_size * config.optim.gradient_accumulation * processes().size
    if clocks_of(config.generator.action).plan_share > 0 and clips == 1:
        raise UserError("optim.batch_size=1 leaves nothing to plan; take more, or generator.action.plan_share=0")
    conventions = replace(Conventions.shared([data.store]), name_views=config.name_views)
    if config.name_views and not conventions.views:
        raise UserError(f"name_views=true: {config.dataset} has one camera, which fills the picture; leave it out")
    encode = fitting_encoder(config, data, conventions.views, model)
    fit_window(config, data.store)
    fit_rate(config, data.store)
    covered, padded = check_window(config, data.store)
    seed_everything(config.seed)
    with user_errors():
        generator = Generator(config.generator)
        # One that is too long is said now, not after minutes; a video model's encoder takes any.
        generator.check_instruction(encode(data.store.tasks if model is None else data.store.tasks[:1]))
    check_sharding(generator, config.parallelism)
    generator.trajectory.set_reference(data.reference)
    generator.trajectory.set_statistics(*data.ranges())
    tokenized = tokenizer_stage(config, run, generator, data)
    behind = [*data.seen_behind, *([scenes_behind(taken)] if taken else [])]
    # Nothing was learned from the scenes of held-out episodes, but the best weights were chosen by them.
    scenes = merge(scenes_of([*data.store.metadata, *(data.held_out.store.metadata if data.held_out else ())]), *behind)

    def write(folder: Path) -> None:
        generator.save_pretrained(folder)
        write_scenes(folder, scenes)
        conventions.write(folder)
        Windows.of(data.store, bool(config.random_start)).write(folder)

    watch = GeneratorWatch(config, run, generator, data.held_out, data.starts(), encode, write)
    metrics, throughput = streams_stage(config, run, generator, data, encode, watch)
    watch.warn_of_rise()
    with user_errors():
        run.make("generator", write)
    for stage in ("tokenizer", "streams"):  # the optimiser state has served
        run.remove_when_finished(run.directory / stage / "checkpoints")
    losses = {k: round(v, 4) for k, v in metrics.items()}
    trained: Any = {"steps": config.optim.steps, "parameters": sum(p.numel() for p in generator.parameters())}
    return TrainGeneratorResult(
        tokenizer=tokenized,
        generator=StreamsTraining(**trained, loss=losses.pop("loss", None), losses=losses),
        throughput=Throughput(**throughput),
        episodes=data.episodes,
        checkpoint="generator",
        covered=round(covered, 4),
        padded=round(padded, 4),
        held_out=watch.result(),
    )


def fitting_encoder(config: TrainGeneratorConfig, data: TrainingData, views: str, model: Any) -> Any:
    """The encoder of instructions that the config names, see `instruction_encoder`; the generator is fitted to it.

    model: directory of the pretrained video model, which reads text itself, None where there is none.
    """
    if model is not None:
        tokens = TextTokens(model, pick_device(config.runtime), views)
        tokens.prepare(data.tasks)
        return tokens
    encode = instruction_encoder(config.instruction_encoder, config.max_parameters, views)
    if config.instruction_encoder is None:
        fit_instructions(config, encode(data.store.tasks))
        return encode
    vectors = encode(["?"])
    assert isinstance(vectors, torch.Tensor)  # an encoder on disk gives vectors, never the strings themselves
    config.generator.instruction.kind, config.generator.instruction.embedding_width = "embedding", vectors.shape[1]
    return encode


@dataclass
class TrainingData:
    """All datasets as one. episodes: of each of them; shares (E,): how often each episode is drawn, None for all alike;
    labelled (E,): which keep their actions, None for all; seen_behind: scenes behind the synthetic ones; reference:
    (A,) what actions are relative to, see `find_reference`. None of these knows of the episodes that are held out."""

    store: ClipStore
    config: TrainGeneratorConfig
    episodes: list[int]
    shares: np.ndarray | None
    labelled: np.ndarray | None
    seen_behind: list[SeenScenes]
    reference: list[int]
    held_out: HeldOut | None = None

    @property
    def tasks(self) -> list[str]:
        """All instructions."""
        held_out = self.held_out.store.tasks if self.held_out else []
        return list(dict.fromkeys([*self.store.tasks, *held_out]))

    def clips(self, batch_size: int, random_start: bool) -> GeneratorClips:
        """Videos, whether or not they have actions."""
        return GeneratorClips(self.store, batch_size, *self._windows(random_start), None, self.shares)

    def labelled_clips(self) -> GeneratorClips:
        """Pairs and plans, as the training of both streams takes them."""
        size, windows = self.config.optim.batch_size, self._windows(bool(self.config.random_start))
        kept = self.labelled, self.shares, clocks_of(self.config.generator.action).num_joint_clips
        return GeneratorClips(self.store, size, *windows, *kept, start_every(self.config))

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
    held, whole = held_out_of(config, stores, len(sources)), open_merged(stores)
    stores = [part_of(part, np.flatnonzero(~own)) for part, own in zip(stores, held, strict=True)]
    store = part_of(whole, np.flatnonzero(~np.concatenate(held)))
    shares = episode_shares(stores, config.dataset_shares)
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
    held_out, seen = HeldOut.of(config, whole, held), [seen_behind(part) for part in behind]
    return TrainingData(store, config, counts, shares, labelled, seen, reference, held_out)


def tokenizer_stage(
    config: TrainGeneratorConfig, run: Run, generator: Generator, data: TrainingData
) -> TokenizerTraining | None:
    """Train the tokenizer, or take one; None for a system without video."""
    starts, device = data.starts(), pick_device(config.runtime)
    taken = config.video_from or config.tokenizer_from
    if taken is not None:
        with user_errors():
            take = generator.take_video_branch if config.video_from else generator.take_tokenizer
            base = config.generator.video.path if isinstance(config.generator.video, PretrainedConfig) else None
            take(load_generator(taken, "cpu", config.max_parameters, base))
    elif config.generator.action.makes_video and not is_pretrained(config.generator):
        source = TokenizerClips(
            data.clips(config.tokenizer_optim.batch_size, bool(config.random_start)),
            config.generator.tokenizer.temporal_stride,
            config.tokenizer_optim.groups,
        )
        tokenizer, directory = generator.tokenizer, run.directory / "tokenizer"
        train(tokenizer, source, config.tokenizer_optim, config.runtime, directory, "tokenizer", seed=config.seed)
        tokenizer.to(device).calibrate(frames_of(starts, spread(data.store.num_episodes, CALIBRATION)).to(device))
        tokenizer.to("cpu")
        share_weights(tokenizer)  # other hardware rounds in its own way, and latents are named after the weights
        tokenizer.requires_grad_(False)
    if not config.generator.action.makes_video:
        return None
    trained = 0 if taken or is_pretrained(config.generator) else config.tokenizer_optim.steps
    psnr, still = reconstruction_psnr(generator, starts, spread(data.store.num_episodes, SHOWN), device)
    tokenized = TokenizerTraining(steps=trained, training_psnr=round(psnr, 2), still_psnr=round(still, 2))
    run.note_result({"tokenizer": tokenized})
    run.write()
    return tokenized


def streams_stage(
    config: TrainGeneratorConfig, run: Run, generator: Generator, data: TrainingData, encode: Any, watch: Watch
) -> tuple[dict[str, float], dict[str, float]]:
    """Train both streams; returns the last metrics and the throughput."""
    source = prepared(config, data.labelled_clips(), generator, encode)
    directory = run.directory / "streams"
    settings = config.optim, config.runtime, directory, "generator", watch
    metrics, throughput = train(generator, source, *settings, seed=config.seed, parallelism=config.parallelism)
    if throughput and (tokens := generator.tokens_of(config.optim.batch_size)):
        rate = tokens / config.optim.batch_size
        throughput["tokens_per_second"] = rate * throughput["samples_per_second"]
    return metrics, throughput


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


@torch.no_grad()
def reconstruction_psnr(
    generator: Generator, starts: GeneratorClips, episodes: np.ndarray, device: str
) -> tuple[float, float]:
    """PSNR [dB] of the tokenizer over the frames after the first, and that of the first frame, repeated."""
    tokenizer, errors = generator.tokenizer.to(device), []
    for episode in episodes:  # one at a time: pictures may be large
        frames = frames_of(starts, [episode]).to(device)
        decoded = tokenizer.decode(tokenizer.encode(frames), frames[:, :, 0])
        errors.append([_uint8_error(frames, decoded), _uint8_error(frames, frames[:, :, :1])])
    tokenizer.to("cpu")
    psnr, still = 10 * np.log10(255**2 / np.mean(errors, axis=0))
    return float(psnr), float(still)


def _uint8_error(frames: torch.Tensor, others: torch.Tensor) -> float:
    """Mean square of 255 over the frames after the first; of others there may be one alone, for all."""
    shown = to_uint8_frames(others if others.shape[2] == 1 else others[:, :, 1:]).float()
    return float((shown - to_uint8_frames(frames[:, :, 1:]).float()).square().mean())


def summary(result: TrainGeneratorResult) -> str:
    if result.dry_run is not None:
        return dry_summary(result.dry_run)
    tokenizer = held_out = ""
    if (trained := result.tokenizer) is not None:
        tokenizer = (
            f"tokenizer {trained.training_psnr} dB on training clips (first frame repeated {trained.still_psnr}), "
        )
    if (curve := result.held_out) is not None:
        best = f"best {curve.best_loss:.4g} at step {curve.best_step} ({curve.checkpoint})"
        held_out = f", held-out loss {curve.last_loss:.4g}, {best}"
    return f"{tokenizer}generator loss {result.generator.loss}{held_out}{speed(result.throughput)}"
