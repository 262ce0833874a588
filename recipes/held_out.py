"""Episodes that the training of a generator does not see: their loss, videos of them, the best generator by it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common import spread, user_errors
from recipes.generator_batches import prepared
from recipes.schema import TrainGeneratorConfig
from toolkit.base.errors import UserError, warn
from toolkit.base.processes import processes
from toolkit.base.progress import progress
from toolkit.base.randomness import isolated_randomness, stream_seed
from toolkit.base.run import Run
from toolkit.data.batches import RNG, GeneratorClips, Part, to_tensors
from toolkit.data.clips import ClipStore
from toolkit.data.held_out import LEAST_EPISODES, FixedWindows, hold_out, part_of, spread_windows
from toolkit.reporting.generator_results import HeldOutLoss
from toolkit.training.fsdp import is_sharded, whole_state
from toolkit.training.logging import ScalarLog
from toolkit.training.loop import on_device
from toolkit.training.loss_curve import LossCurve
from toolkit.training.out_of_memory import one_line_if_full, training_advice
from toolkit.training.parallel import mean_over_processes
from vag_core import Generator
from vag_core.clocks import clocks_of

MOST_WINDOWS, DRAWS = 32, 4  # that the loss is the mean of: windows, and draws of times and noise for them
SHOWN = 4  # episodes of which a video is made
LISTED = 10  # episodes that are named, of a dataset
PATIENT: dict[str, Any] = {"leave": False, "delay": 5.0}  # bars of what takes long in large trainings alone
BEST, CURVE = "best", "held_out.json"


@dataclass(frozen=True)
class HeldOut:
    """Whole recorded episodes that training does not see. episodes: how many of each dataset; labelled: (E,) False
    where training keeps no actions of a dataset, None for all."""

    store: ClipStore
    episodes: list[int]
    labelled: np.ndarray | None

    @classmethod
    def of(cls, config: TrainGeneratorConfig, whole: ClipStore, held: Sequence[np.ndarray]) -> HeldOut | None:
        """Those of all datasets as one; None where there are none. held: (E,) of each dataset."""
        chosen = np.concatenate(held)
        if not chosen.any():
            return None
        shares: Any = config.labelled_fraction
        each = [shares] * len(held) if isinstance(shares, int | float) else shares
        labelled = np.concatenate([np.full(own.sum(), share > 0) for own, share in zip(held, each, strict=True)])
        counts = [int(own.sum()) for own in held]
        return cls(part_of(whole, np.flatnonzero(chosen)), counts, None if labelled.all() else labelled)


def held_out_of(config: TrainGeneratorConfig, stores: Sequence[ClipStore], recorded: int) -> list[np.ndarray]:
    """(E,) of each dataset, True for the episodes to hold out, which is said. recorded: how many are no `synthetic`."""
    shares = dict(enumerate(config.dataset_shares or ()))
    takes_part = [number < recorded and shares.get(number, 1) > 0 for number in range(len(stores))]
    held = hold_out(stores, takes_part, config.held_out_fraction, config.seed)
    if config.held_out_fraction > 0 and processes().is_main:
        total = sum(store.num_episodes for store, part in zip(stores, takes_part, strict=True) if part)
        named = [
            f"{store.name}: {', '.join(map(str, shown))}{', ...' * (own.sum() > LISTED)}"
            for store, own in zip(stores, held, strict=True)
            if len(shown := np.flatnonzero(own)[:LISTED])
        ]
        count = sum(int(own.sum()) for own in held)
        why = f"held_out_fraction={config.held_out_fraction:g} needs {LEAST_EPISODES} recorded ones, of several scenes"
        print(f"held out: {count or 'none'} of {total} episodes ({'; '.join(named) or why})", flush=True)
    return held


class GeneratorWatch:
    """Measures the held-out loss of a training, shows what is generated, and keeps the best generator: a `Watch`.

    Without held-out episodes it only shows, of those that are trained on. The curve is in the run's streams/, and a
    point of it is written last: what it says has been done.
    """

    def __init__(
        self,
        config: TrainGeneratorConfig,
        run: Run,
        generator: Generator,
        held_out: HeldOut | None,
        starts: GeneratorClips,
        encode: Callable[[Sequence[str]], Any],
        write: Callable[[Path], None],
    ) -> None:
        """starts: windows of the episodes that are trained on; write: fills a generator's directory."""
        self.config, self.run, self.generator, self.encode, self.write = config, run, generator, encode, write
        self.held_out, self.shown, self.curve = held_out, starts, None if held_out is None else self._open_curve()
        if held_out is not None:
            self.windows = self._windows(held_out)
            self.source = prepared(config, self.windows, generator, encode, fixed=True)
            self.shown = GeneratorClips(held_out.store, 1, starts.num_frames, 0, False, starts.frame_stride)

    def _open_curve(self) -> LossCurve:
        return LossCurve.open(self.run.directory / "streams" / CURVE)

    def _windows(self, held_out: HeldOut) -> FixedWindows:
        shape, store = self.config.generator, held_out.store
        rows, starts = shape.action_horizon + 1, bool(self.config.random_start)
        episodes, first = spread_windows(store.episode_lengths, rows, MOST_WINDOWS, starts)
        labelled = None if held_out.labelled is None else held_out.labelled[episodes]
        part, joint = part_of(store, episodes, first), clocks_of(shape.action).num_joint_clips
        return FixedWindows(part, 1, shape.num_frames, 0, False, shape.frame_stride, labelled, None, joint)

    # ------------------------------------------------------------------------------------------------ during training

    def due(self, step: int) -> bool:
        every = self.config.held_out_every or self.config.optim.checkpoint_every
        return step % every == 0 or step == self.config.optim.steps

    def resume(self, step: int) -> bool:
        if self.curve is None:
            return False
        self.curve.forget_after(step)
        return step not in self.curve.steps

    def look(self, log: ScalarLog, step: int) -> None:
        optim = self.config.optim
        advice = partial(training_advice, batch_size=optim.batch_size, accumulation=optim.gradient_accumulation)
        with one_line_if_full(log.accelerator.device, advice):
            losses = {} if self.curve is None else self.measure(log)
            log.scalars(step, {f"held_out/{name}": value for name, value in losses.items()})
            self._show(log, step)
        if self.curve is None:
            return
        if not math.isfinite(loss := losses["loss"]):
            raise UserError(
                f"held-out loss is {loss} at step {step}: are there numbers out of all bounds in "
                f"{self.config.dataset}? held_out_fraction=0 does not measure it"
            )
        if self.curve.is_lowest(loss):
            with user_errors(), whole_state(self.generator):
                self.run.make(BEST, self.write)
        self.curve.add(step, loss)
        if self.curve.begins_to_rise:
            warn(f"held-out loss rises: {self._rise()}")

    def measure(self, log: ScalarLog) -> dict[str, float]:
        """Mean of loss and metrics over the windows, at the same times and with the same noise at every step."""
        size, device, totals = self.windows.size, log.accelerator.device, Counter[str]()
        count = -(-size // self.config.optim.batch_size)
        places = [(draw, Part(index, count)) for draw in range(DRAWS) for index in range(count)]
        bar = progress(places, description="held-out loss", unit="batch", **PATIENT)
        for (draw, _), batch in zip(bar, on_device(self.source, places, device), strict=True):
            seed = stream_seed(0, "held out", draw)
            batch[RNG] = torch.Generator(device).manual_seed(seed)
            with torch.no_grad(), isolated_randomness(seed), log.accelerator.autocast():
                loss, metrics = self.generator.loss(batch)
            totals.update({key: float(value) for key, value in {"loss": loss, **metrics}.items()})
        means: dict[str, Any] = {key: value / len(places) for key, value in totals.items()}
        # All processes have measured the same where the generator is divided among them: one number decides for all.
        divided = any(map(is_sharded, self.generator.parameters()))
        return mean_over_processes(means, device) if divided else means

    def _show(self, log: ScalarLog, step: int) -> None:
        if not self.config.generator.action.makes_video:
            return
        episodes = spread(self.shown.store.num_episodes, SHOWN)
        name = "training" if self.held_out is None else "held_out"
        together = min(len(episodes), self.config.optim.batch_size)
        parts = np.array_split(np.arange(len(episodes)), -(-len(episodes) // together))
        for part in progress(parts, description="videos", unit="batch", **PATIENT):
            videos = sampled_above(self.generator, self.shown, self.encode, episodes[part])
            for place, video in zip(part, videos, strict=True):
                log.video(step, f"{name}/recorded_above_generated_{place + 1}", video[None], 10)

    # -------------------------------------------------------------------------------------------------- after training

    def warn_of_rise(self) -> None:
        """Say so if the last held-out loss is clearly above the best."""
        if self.curve is not None and self.curve.has_risen:
            warn(f"held-out loss has risen: {self._rise()}; train for fewer steps, or on more episodes")

    def _rise(self) -> str:
        curve = self.curve
        assert curve is not None
        return (
            f"{curve.losses[-1]:.4g} at step {curve.steps[-1]}, {curve.losses[curve.best]:.4g} at step "
            f"{curve.steps[curve.best]}, whose generator is in {self.run.directory / BEST}"
        )

    def result(self) -> HeldOutLoss | None:
        """The curve and its best point."""
        curve = self.curve
        if self.held_out is None or curve is None or not curve.steps:
            return None
        losses = [round(loss, 6) for loss in curve.losses]
        return HeldOutLoss(
            episodes=self.held_out.episodes,
            steps=curve.steps,
            losses=losses,
            last_loss=losses[-1],
            best_loss=losses[curve.best],
            best_step=curve.steps[curve.best],
            checkpoint=BEST,
        )


def sampled_above(generator: Generator, starts: GeneratorClips, encode: Any, episodes: np.ndarray) -> np.ndarray:
    """(B, F, 2H, W, 3) uint8: recorded videos of these episodes, and below each a sample from its first picture."""
    batch = to_tensors(starts.window(episodes))
    device = generator.device
    given = {key: batch[key].to(device) for key in ("actions", "states")} if generator.action is None else {}
    first, state = batch["frames"][:, 0].to(device), batch["states"][:, 0].to(device)
    rng = [torch.Generator().manual_seed(stream_seed(0, "preview", int(episode))) for episode in episodes]
    sample = generator.sample(first, state, encode(batch["instruction"]), rng=rng, **given)
    pairs = np.concatenate([batch["frames"].numpy(), sample.frames.cpu().numpy()], axis=2)
    return pairs[:, :: max(1, pairs.shape[1] // 20)]
