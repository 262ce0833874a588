"""Pairs of scenes, batch by batch, as episodes of a dataset; and what is measured of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common import sampling_errors
from recipes.plans import Plans
from recipes.schema import SynthesizeConfig
from recipes.start_scenes import InitialScene, Scenes
from recipes.video_model import is_pretrained, sampling
from toolkit.base import files
from toolkit.base.randomness import stream_seed
from toolkit.base.reading import read_json
from toolkit.data.canvas import Canvas
from toolkit.data.episode import PICTURE_EVERY, Episode
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.evaluation.action_metrics import action_distance, jerk_ratio
from toolkit.evaluation.clip_drift import ClipDrift
from toolkit.evaluation.sample_spread import SampleSpread
from toolkit.evaluation.video_metrics import psnr, ssim
from vag_core import GeneratedBatch, Generator

FINDINGS, PICTURES = "findings.json", "pictures.npz"
SHOWN = 12  # videos to look at


@dataclass
class Findings:
    """What is measured of some episodes: metrics of those that have a reference, and the same of first pictures that
    stay; of several clips the rows of `ClipDrift`; seconds of sampling, passes through the generator for one pair."""

    episodes: int = 0
    seconds: float = 0.0
    function_evaluations: int = 0
    metrics: dict[str, list[float]] = field(default_factory=dict)
    still: dict[str, list[float]] = field(default_factory=dict)
    drift: list[list[dict[str, float]]] = field(default_factory=list)
    shown: list[np.ndarray] = field(default_factory=list)
    spread: SampleSpread = field(default_factory=SampleSpread)

    def write(self, folder: Path) -> None:
        """Into a folder that is still under its temporary name."""
        numbers = {part.name: getattr(self, part.name) for part in fields(self)[:6]}
        files.write_text(folder / FINDINGS, json.dumps(numbers))  # which may not be finite
        pictures: dict[str, Any] = {f"shown_{k}": video for k, video in enumerate(self.shown)}
        np.savez(folder / PICTURES, **pictures, **self.spread.arrays())

    @classmethod
    def read(cls, folder: Path) -> Findings:
        found = cls(**read_json(folder / FINDINGS))
        with np.load(folder / PICTURES) as kept:
            found.shown = [kept[f"shown_{k}"] for k in range(SHOWN) if f"shown_{k}" in kept]
            found.spread = SampleSpread.of(kept)
        return found

    def extend(self, later: Findings) -> None:
        """The episodes that follow."""
        self.episodes += later.episodes
        self.seconds += later.seconds
        self.function_evaluations = later.function_evaluations
        for own, others in ((self.metrics, later.metrics), (self.still, later.still)):
            for name, values in others.items():
                own.setdefault(name, []).extend(values)
        self.drift += [[] for _ in range(len(later.drift) - len(self.drift))]
        for rows, more in zip(self.drift, later.drift, strict=False):
            rows += more
        self.shown += later.shown
        self.spread.extend(later.spread)


class Samples:
    """Makes pairs of scenes, each with the noise of its seed and of so many steps.

    origin: what is noted of every episode; dataset: keywords of its writer; order: which stream is sampled first.
    """

    def __init__(
        self,
        config: SynthesizeConfig,
        generator: Generator,
        encode: Any,
        canvas: Canvas,
        scenes: Scenes,
        seeds: Sequence[int],
        steps: Sequence[int],
        *,
        order: str,
        origin: dict[str, Any],
        dataset: dict[str, Any],
    ) -> None:
        self.config, self.generator, self.encode, self.canvas = config, generator, encode, canvas
        self.scenes, self.seeds, self.steps, self.dataset = scenes, seeds, steps, dataset
        self.stride, self.sampling = generator.config.frame_stride, {**sampling(encode, config.sampler), "order": order}
        self.scores = config.score if config.score is not None else not is_pretrained(generator.config)
        self.origin = {**origin, PICTURE_EVERY: self.stride}
        self.mean_action = scenes.mean_action(generator.trajectory.action_dim)
        compared = [row.actions is not None for row in scenes.rows]
        alike = [number for number, one in enumerate(compared) if one == compared[0]]  # all beside a recording, or none
        self.shown = frozenset(alike[:SHOWN])

    def write(
        self, writer: EpisodeWriter, starts: Sequence[int], plans: Plans | None, advance: Callable[[int], Any]
    ) -> Findings:
        """Add an episode for each scene of the batches that begin with these scenes; `advance` is called with their
        number. Returns what is measured of them."""
        units, found = self.generator.trajectory, Findings()
        low, high = (value.cpu().numpy()[units.action_dim :] for value in (units.low, units.high))
        drift = ClipDrift(self.generator.config.action_horizon, self.stride, low, high, self.mean_action)
        for start in starts:
            scenes = self.scenes[start : start + self.config.batch_size]
            clips = self.clips_of(scenes, start, plans, found)
            for index, (scene, frames, actions, states, loss) in enumerate(
                zip(scenes, *joined(clips), strict=True), start
            ):
                own = {"score_flow_loss": float(loss)} if self.scores else {}
                own |= {} if plans is None else plans.metadata(index)
                length = self.steps[index]
                shown = frames[: length // self.stride + 1]  # the last is what the last action leads to
                writer.add(self.episode(scene, frames, actions[:length], states[:length], own))
                self.look_at(found, index, scene, frames, actions, shown)
                if self.config.samples_per_scene > 1:
                    found.spread.add(index // self.config.samples_per_scene, frames, actions)
                if self.config.clips > 1:
                    drift.add(shown, actions[:length], states[: length + 1], scene.reference)
            found.episodes += len(scenes)
            advance(len(scenes))
        found.drift = drift.clips
        return found

    def episode(
        self, scene: InitialScene, frames: np.ndarray, actions: np.ndarray, states: np.ndarray, own: dict[str, Any]
    ) -> Episode:
        """An episode of as many steps as there are actions. own: what is noted of it alone."""
        length = len(actions)
        pictures = self.canvas.take_apart(frames[: -(-length // self.stride)])
        cameras = {camera: view.repeat(self.stride, axis=0)[:length] for camera, view in pictures.items()}
        return Episode(
            images=None,  # below, each repeated: a camera slower than the robot
            cameras=cameras,
            states=states,
            actions=actions,
            task=scene.instruction,
            metadata={**scene.metadata, **self.origin, **own},
        )

    def clips_of(
        self, scenes: Sequence[InitialScene], start: int, plans: Plans | None, found: Findings
    ) -> list[GeneratedBatch]:
        """Pairs of the scenes from number `start` on, and those that go on from their last pictures and states, until
        there are as many steps as the longest has; each has noise of its own."""
        part = slice(start, start + len(scenes))
        seeds, steps = self.seeds[part], max(self.steps[part])
        image = torch.from_numpy(np.stack([scene.image for scene in scenes]))
        state = torch.from_numpy(np.stack([scene.state for scene in scenes]))
        instructions = self.encode([scene.instruction for scene in scenes])
        given: dict[str, Any] = {} if plans is None else plans.given(slice(start, start + self.config.batch_size))
        made = list[GeneratedBatch]()
        for clip in range(-(-steps // self.generator.config.action_horizon)):
            own = [stream_seed(seed, "clip", clip) if clip else seed for seed in seeds]
            began = time.perf_counter()
            with sampling_errors(self.generator, len(scenes)):
                sample = self.generator.sample(
                    image,
                    state,
                    instructions,
                    **self.sampling,
                    rng=[torch.Generator().manual_seed(seed) for seed in own],
                    score=self.scores,
                    **given,
                )
            found.seconds += time.perf_counter() - began
            found.function_evaluations = sample.function_evaluations
            image, state = sample.frames[:, -1], sample.states[:, -1]
            made.append(sample)
        return made

    def look_at(
        self,
        found: Findings,
        index: int,
        scene: InitialScene,
        frames: np.ndarray,
        actions: np.ndarray,
        shown: np.ndarray,
    ) -> None:
        """Compare a pair with its reference, and keep what is shown of the first ones."""
        if scene.reference is not None:
            still = np.broadcast_to(self.mean_action, actions.shape), np.broadcast_to(frames[:1], frames.shape)
            for kept, (acted, shows) in ((found.metrics, (actions, frames)), (found.still, still)):
                for name, value in compare(acted, shows, scene.reference).items():
                    kept.setdefault(name, []).append(value)
        if index in self.shown:
            if scene.reference is not None:
                length = len(frames)
                shown = np.concatenate([_fit(scene.reference["frames"], length), _fit(shown, length)], axis=1)
            found.shown.append(shown)


def joined(clips: Sequence[GeneratedBatch]) -> list[np.ndarray]:
    """frames, actions, states and mean loss (NaN for none) of clips of which each goes on from the one before.

    Where two meet, the picture and state are of the later one alone.
    """
    last = clips[-1]
    parts: list[list[torch.Tensor]] = [
        [*(clip.frames[:, :-1] for clip in clips), last.frames[:, -1:]],
        [clip.actions for clip in clips],
        [*(clip.states[:, :-1] for clip in clips), last.states[:, -1:]],
    ]
    losses = [clip.loss for clip in clips if clip.loss is not None]
    loss = torch.stack(losses).mean(0) if losses else torch.full((len(last.actions),), torch.nan)
    return [*(torch.cat(part, dim=1).cpu().numpy() for part in parts), loss.cpu().numpy()]


def compare(actions: np.ndarray, frames: np.ndarray, reference: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of one generated pair against the recorded episode of the same scene, as far as both go."""
    length, shown = min(len(reference["actions"]), len(actions)), min(len(reference["frames"]), len(frames))
    recorded, pictures = reference["actions"][:length], reference["frames"][1:shown]
    return {
        "action_distance": float(action_distance(actions[:length], recorded)),
        "jerk_ratio": float(jerk_ratio(actions[:length], recorded)),
        "psnr": float(psnr(frames[1:shown], pictures)),
        "ssim": float(ssim(frames[1:shown], pictures)),
    }


def _fit(frames: np.ndarray, length: int) -> np.ndarray:
    return frames[np.minimum(np.arange(length), len(frames) - 1)]
