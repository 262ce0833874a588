"""`vag score`: note how far each episode of a synthetic dataset can be trusted, and how far the whole of it.

Every score stands beside what three baselines get: recorded episodes; the first picture and state held still under the
mean action; and the episodes themselves with the actions and states of another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recipes.common import (
    Pictures,
    canvas_of,
    load_all,
    load_generator,
    pick_device,
    sampling_errors,
    spread,
    weights_id,
)
from recipes.schema import ScoreConfig
from recipes.start_scenes import scene_seeds
from recipes.video_model import prepare_text, text_reader
from toolkit.base.errors import UserError, warn
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.batches import GeneratorClips, to_tensors
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import RETRAIN, Conventions
from toolkit.data.episode_notes import FILE, write_notes
from toolkit.data.images import as_size
from toolkit.data.normalizer import STATE_FLOOR, describe
from toolkit.evaluation.action_metrics import action_distance
from toolkit.evaluation.episode_scores import FAR, Limits, limit_excess, nearest_distance, trusted
from toolkit.evaluation.statistics import counted_rate
from toolkit.reporting.generator_results import ScoreResult, ScoreSpread, Trust
from toolkit.training.runtime import set_threads
from vag_core import Generator

BASELINE = 50  # at most so many episodes of each baseline
CYCLE, EXCESS, NEAREST = "score_cycle_error", "score_limit_excess", "score_nearest"
Scores = dict[str, np.ndarray]


def run(config: ScoreConfig, run: Run) -> ScoreResult:
    """Note score_cycle_error (with a checkpoint), score_limit_excess and score_nearest (with real data), and trusted:
    whether all of them are as good as those of recorded episodes.

    The table is `vag_episodes.parquet` in the run directory.
    """
    if config.checkpoint is None and not config.real:
        raise UserError("score: give checkpoint=GENERATOR for the cycle error, real=[DATASET] for the others, or both")
    set_threads(config.runtime)
    infer, identity = None, None
    size = as_size(config.image_size or 64, "image_size")
    pictures = Pictures(size, config.cameras, config.rename, config.frame_storage)
    if config.checkpoint is not None:
        generator = load_generator(config.checkpoint, pick_device(config.runtime), config.max_parameters, config.base)
        identity = weights_id(config.checkpoint)
        run.add_data(config.checkpoint, identity)
        trained = Conventions.of(config.checkpoint)
        pictures = Pictures.trained_on(canvas_of(generator, trained), config, trained)
    store, *others = load_all(run, [config.dataset, *config.real, *config.held_out], pictures)
    real, held_out = others[: len(config.real)], others[len(config.real) :]
    if config.checkpoint is not None:
        trained.check(store, remedy=RETRAIN)
        infer = InverseDynamics(config, generator, [store, *others], trained.views)
    judge = Judge(store, real, held_out, infer)
    own, moved = judge.judged(Pairs.of(store)), judge.judged(Pairs.exchanged(store))
    still = judge.judged(Pairs.still(store, judge.mean_action()))
    recorded = judge.recorded()
    return concluded(run, store, identity, own, {"recorded": recorded, "still": still, "other": moved})


def concluded(
    run: Run, store: ClipStore, identity: str | None, own: Scores, baselines: dict[str, Scores]
) -> ScoreResult:
    """Write the notes; how many are trusted, by what recorded episodes score, and how many of each baseline."""
    recorded, trust = baselines["recorded"], None
    noted: dict[str, np.ndarray] = dict(own)
    if recorded:
        rates = {
            name: counted_rate(int(kept.sum()), len(kept))
            for name, scores in {"episodes": own, **baselines}.items()
            if scores
            for kept in [trusted(scores, recorded)]
        }
        trust = Trust(**rates)
        noted["trusted"] = trusted(own, recorded)
        if trust.other is not None and trust.other.rate >= trust.episodes.rate > 0:
            warn(
                f"{store.name}: with the actions of other episodes as many are trusted: these scores tell nothing of "
                "how video and actions fit. Give checkpoint=GENERATOR, or one that infers actions better"
            )
    rows = [dict(zip(noted, row, strict=True)) for row in zip(*(v.tolist() for v in noted.values()), strict=True)]
    write_notes(run.directory / FILE, store.episode_ids, rows)
    spreads = {}
    for name, values in own.items():
        least, median, most = np.quantile(values, (0, 0.5, 1)).tolist()
        beside = {key: float(np.median(scores[name])) for key, scores in baselines.items() if name in scores}
        spreads[name] = ScoreSpread(least=least, median=median, most=most, **beside)
    return ScoreResult(checkpoint_id=identity, scores=spreads, trust=trust)


@dataclass(frozen=True)
class Pairs:
    """Videos of some episodes of a dataset, and states (T, S) and actions (T, A) to go with each."""

    store: ClipStore
    episodes: np.ndarray  # (E,)
    states: Sequence[np.ndarray]
    actions: Sequence[np.ndarray]
    frozen: bool = False  # the first picture, all the time

    @classmethod
    def of(cls, store: ClipStore, episodes: np.ndarray | None = None) -> Pairs:
        """As they are; all if nothing is said."""
        chosen = np.arange(store.num_episodes) if episodes is None else episodes
        rows = [store.rows_of(np.array([episode])) for episode in chosen]
        return cls(store, chosen, [store.states[part] for part in rows], [store.actions[part] for part in rows])

    @classmethod
    def still(cls, store: ClipStore, action: np.ndarray) -> Pairs:
        """Nothing moves, under one action (A,)."""
        pairs = cls.of(store, spread(store.num_episodes, BASELINE))
        states = [np.broadcast_to(values[:1], values.shape) for values in pairs.states]
        actions = [np.broadcast_to(action, values.shape) for values in pairs.actions]
        return cls(store, pairs.episodes, states, actions, frozen=True)

    @classmethod
    def exchanged(cls, store: ClipStore) -> Pairs | None:
        """Each with the trajectory of the next episode of its instruction, or of any; None if there is one alone."""
        if store.num_episodes < 2:
            return None
        pairs, order = cls.of(store, spread(store.num_episodes, BASELINE)), []
        for episode in pairs.episodes:
            alike = np.flatnonzero(store.episode_tasks == store.episode_tasks[episode])
            others = alike if len(alike) > 1 else np.arange(store.num_episodes)
            order.append(others[(np.searchsorted(others, episode) + 1) % len(others)])
        taken = cls.of(store, np.array(order))
        return cls(store, pairs.episodes, taken.states, taken.actions)


class InverseDynamics:
    """The actions that a generator infers from the videos of episodes; each is drawn once, but for frozen ones."""

    def __init__(self, config: ScoreConfig, generator: Generator, stores: Sequence[ClipStore], views: str) -> None:
        """stores: all whose episodes are asked for; the first is the one that is scored."""
        store, shape, self.checkpoint = stores[0], generator.config, config.checkpoint
        if not shape.action.makes_video:
            raise UserError(
                f"{self.checkpoint}: it makes no video, so it infers no actions from one; use another generator"
            )
        for name, width in (("states", shape.state_dim), ("actions", shape.action_dim)):
            if (found := getattr(store, name).shape[1]) != width:
                raise UserError(f"{store.name}: {name} are {found} wide; {self.checkpoint} was trained on {width}")
        self.generator, self.batch_size, self.seed = generator, config.batch_size, config.seed
        self.encode = text_reader(generator, config, views)
        prepare_text(self.encode, generator, [task for one in stores for task in one.tasks])
        self.known: dict[tuple[int, int], np.ndarray] = {}

    def errors(self, pairs: Pairs) -> np.ndarray:
        """(E,) distance of the actions of pairs to those inferred from their videos."""
        inferred = self.inferred(pairs)
        steps = [min(len(one), len(actions)) for one, actions in zip(inferred, pairs.actions, strict=True)]
        return np.array(
            [
                action_distance(one[:step], actions[:step])
                for one, actions, step in zip(inferred, pairs.actions, steps, strict=True)
            ]
        )

    def inferred(self, pairs: Pairs) -> list[np.ndarray]:
        keys = [(id(pairs.store), int(episode)) for episode in pairs.episodes]
        if not pairs.frozen and all(key in self.known for key in keys):
            return [self.known[key] for key in keys]
        store, shape, found = pairs.store, self.generator.config, list[np.ndarray]()
        clips = GeneratorClips(store, 1, shape.num_frames, 0, False, shape.frame_stride)
        seeds = scene_seeds(self.seed, store.metadata)
        bar = progress(description="cycle error", total=len(pairs.episodes), unit="ep")
        for part in np.array_split(pairs.episodes, -(-len(pairs.episodes) // self.batch_size)):
            batch = to_tensors(clips.window(part))
            frames = batch["frames"]
            if pairs.frozen:
                frames = frames[:, :1].expand_as(frames).contiguous()
            with sampling_errors(self.generator, len(part)):
                sampled = self.generator.sample(
                    frames[:, 0],
                    batch["states"][:, 0],
                    self.encode(batch["instruction"]),
                    frames=frames,
                    rng=[torch.Generator().manual_seed(seeds[episode]) for episode in part],
                ).actions.cpu()
            found += [one[~padded].numpy() for one, padded in zip(sampled, batch["is_pad"], strict=True)]
            bar.update(len(part))
        bar.close()
        if not pairs.frozen:
            self.known |= dict(zip(keys, found, strict=True))
        return found


class Judge:
    """Scores pairs against recorded episodes, and by inverse dynamics where there is a generator.

    held_out: recorded episodes that the generator has not seen, which say what recorded ones score. Where there are
    none, those that it has seen do, each against the others.
    """

    def __init__(
        self, store: ClipStore, real: list[ClipStore], held_out: list[ClipStore], infer: InverseDynamics | None
    ) -> None:
        self.store, self.real, self.held_out, self.infer = store, real, held_out, infer
        for other in (*real, *held_out):
            for name in ("states", "actions"):
                ours, theirs = getattr(store, name).shape[1], getattr(other, name).shape[1]
                if ours != theirs:
                    raise UserError(
                        f"{other.name}: {name} are {theirs} wide; {store.name} has {ours}: not the same robot"
                    )
        self.limits, self.known = list[Limits](), dict[str, list[tuple[int, np.ndarray]]]()
        if real:
            self.deviation = describe(np.concatenate([other.states for other in real]), STATE_FLOOR)["std"]
        for other in real:
            pairs = Pairs.of(other)
            tasks = map(other.instruction, pairs.episodes)
            for task, states in zip(tasks, pairs.states, strict=True):
                self.known.setdefault(task, []).append((len(self.limits), states))
            self.limits += Limits.of_each(trajectories(pairs))

    def mean_action(self) -> np.ndarray:
        """(A,) of the recorded episodes, or where there are none of the synthetic ones."""
        return np.concatenate([one.actions for one in self.real or self.held_out or [self.store]]).mean(axis=0)

    def judged(self, pairs: Pairs | None, first: int | None = None) -> Scores:
        """Scores of pairs, (E,) each. first: number of the store's first episode among the real ones, if it is one:
        then each is judged by the others."""
        if pairs is None:
            return {}
        scores: Scores = {}
        if self.real:
            found = np.empty((2, len(pairs.episodes)))
            everyone = Limits.joined(self.limits)
            for i, whole in enumerate(progress(trajectories(pairs), description="score", unit="ep")):
                episode, limits = int(pairs.episodes[i]), everyone
                known = self.known.get(pairs.store.instruction(episode), [])
                if first is not None:
                    own = first + episode
                    limits = Limits.joined(self.limits[:own] + self.limits[own + 1 :])
                    known = [(number, states) for number, states in known if number != own]
                found[0, i] = limit_excess(whole, limits)
                found[1, i] = nearest_distance(pairs.states[i], [states for _, states in known], self.deviation)
            scores |= {EXCESS: found[0], NEAREST: found[1]}
        if self.infer is not None:
            scores[CYCLE] = self.infer.errors(pairs)
        return scores

    def recorded(self) -> Scores:
        """What recorded episodes score; nothing where there is none to ask, or one alone."""
        parts, first = list[Scores](), 0
        stores = self.held_out or (self.real if sum(one.num_episodes for one in self.real) > 1 else [])
        for store in stores:
            chosen = spread(store.num_episodes, max(1, BASELINE // len(stores)))
            parts.append(self.judged(Pairs.of(store, chosen), None if self.held_out else first))
            first += store.num_episodes
        if not parts:
            warn("no recorded episodes to compare with: give held_out=[DATASET], or real=[DATASET] with two or more")
        elif not self.held_out:
            print("recorded episodes are those of real=, which the generator has seen; held_out=[DATASET] names others")
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def trajectories(pairs: Pairs) -> list[np.ndarray]:
    """[state, action] of each, (T, S + A)."""
    return [np.concatenate(both, axis=1) for both in zip(pairs.states, pairs.actions, strict=True)]


def summary(result: ScoreResult) -> str:
    lines = []
    if (trust := result.trust) is not None:
        own, rates = trust.episodes, {name: rate.rate for name, rate in _beside(trust).items()}
        told = f"trusted: {own.rate:.0%} of {own.n} episodes [{own.low:.0%}, {own.high:.0%}]"
        lines.append(f"{told} ({', '.join(f'{name} {rate:.0%}' for name, rate in rates.items())})")
    for name, score in result.scores.items():
        told = ", ".join(f"{key} {value:.3f}" for key, value in _beside(score).items() if value < FAR)
        lines.append(f"{name} {score.median:.3f} [{score.least:.3f}, {score.most:.3f}] ({told})")
    return "; ".join(lines)


def _beside(result: Any) -> dict[str, Any]:
    """What each baseline got, by what a reader calls it."""
    named = {"recorded": result.recorded, "still": result.still, "actions of others": result.other}
    return {name: value for name, value in named.items() if value is not None}
