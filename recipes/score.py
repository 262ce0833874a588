"""`vag score`: note how far each episode of a synthetic dataset can be trusted, and how far the whole of it.

Every score stands beside what three baselines get: recorded episodes; the first picture and state held still under the
mean action; and the episodes themselves with the actions and states of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
    user_errors,
    weights_id,
)
from recipes.schema import ScoreConfig
from recipes.sharding import run_in_shards
from recipes.start_scenes import scene_seeds
from recipes.video_model import prepare_text, text_reader
from toolkit.base.errors import UserError, warn
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
from vag_core.clocks import Mode

BASELINE = 50  # at most so many episodes of each baseline
CYCLE, EXCESS, NEAREST = "score_cycle_error", "score_limit_excess", "score_nearest"
OWN, SCORES = "own", "scores.npz"
Scores = dict[str, np.ndarray]


def run(config: ScoreConfig, run: Run) -> ScoreResult:
    """Note score_cycle_error (with a checkpoint), score_limit_excess and score_nearest (with real data), and trusted:
    whether all of them are as good as those of recorded episodes.

    The table is `vag_episodes.parquet` in the run directory.
    """
    made: ScoreResult = run_in_shards(prepare, config, run)
    return made


def prepare(config: ScoreConfig, run: Run) -> Scoring:
    """Datasets and generator, checked; what is read is entered in the run."""
    return Scoring(config, run)


class Scoring:
    """Scores of all episodes and of the baselines, in batches of each; see `sharding.Work`."""

    description = "score"

    def __init__(self, config: ScoreConfig, run: Run) -> None:
        if config.checkpoint is None and not config.real:
            raise UserError(
                "score: give checkpoint=GENERATOR for the cycle error, real=[DATASET] for the others, or both"
            )
        set_threads(config.runtime)
        self.infer, self.identity = None, None
        size = as_size(config.image_size or 64, "image_size")
        pictures = Pictures(size, config.cameras, config.rename, config.frame_storage)
        if config.checkpoint is not None:
            generator = load_generator(
                config.checkpoint, pick_device(config.runtime), config.max_parameters, config.base
            )
            self.identity = weights_id(config.checkpoint)
            run.add_data(config.checkpoint, self.identity)
            trained = Conventions.of(config.checkpoint)
            pictures = Pictures.trained_on(canvas_of(generator, trained), config, trained)
        self.store, *others = load_all(run, [config.dataset, *config.real, *config.held_out], pictures)
        real, held_out = others[: len(config.real)], others[len(config.real) :]
        if config.checkpoint is not None:
            trained.check(self.store, remedy=RETRAIN)
            self.infer = InverseDynamics(config, generator, [self.store, *others], trained.views)
        self.judge = Judge(self.store, real, held_out, self.infer)
        self.exchanged = Pairs.exchanged(self.store)
        self.sets = [(OWN, Pairs.of(self.store), None), *self.judge.baselines()]
        self.batches = [
            (number, part)
            for number, (_, pairs, _) in enumerate(self.sets)
            for part in np.array_split(np.arange(len(pairs.episodes)), -(-len(pairs.episodes) // config.batch_size))
        ]
        self.sizes = [len(part) for _, part in self.batches]

    def begin(self, folder: Path) -> None:
        """Shards need nothing of each other."""

    def free(self) -> None:
        """Leave the GPU to other processes."""
        if self.infer is not None:
            self.infer.generator.to("cpu")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def make(self, batches: range, folder: Path, advance: Callable[[int], Any]) -> None:
        """A file of scores by batch, and of the actions that were inferred from the videos that get others too."""
        found: dict[str, Any] = {}
        wanted = set() if self.exchanged is None else set(self.exchanged.episodes.tolist())
        for batch in batches:
            name, pairs, first = self.sets[self.batches[batch][0]]
            pairs = pairs.part(self.batches[batch][1])
            found |= {f"{batch}/{key}": values for key, values in self.judge.judged(pairs, first).items()}
            if self.infer is not None:
                if name == OWN:
                    known = {int(k): self.infer.known[id(self.store), int(k)] for k in pairs.episodes}
                    found |= {f"inferred/{k}": actions for k, actions in known.items() if k in wanted}
                self.infer.known.clear()
            advance(self.sizes[batch])
        np.savez(folder / SCORES, **found)

    def merge(self, folders: Sequence[Path], run: Run) -> ScoreResult:
        """The table of all episodes, beside what baselines score."""
        found: dict[str, np.ndarray] = {}
        for folder in folders:
            with np.load(folder / SCORES) as kept:
                found |= dict(kept)
        scores: dict[str, Scores] = {OWN: {}, "recorded": {}, "still": {}}
        for name in scores:
            numbers = [k for k, (number, _) in enumerate(self.batches) if self.sets[number][0] == name]
            for key in (EXCESS, NEAREST, CYCLE):
                if parts := [found[f"{k}/{key}"] for k in numbers if f"{k}/{key}" in found]:
                    scores[name][key] = np.concatenate(parts)
        if self.infer is not None and self.exchanged is not None:
            self.infer.known = {(id(self.store), int(k)): found[f"inferred/{k}"] for k in self.exchanged.episodes}
        scores["other"] = self.judge.judged(self.exchanged)
        return concluded(run, self.store, self.identity, scores.pop(OWN), scores)


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

    def part(self, places: np.ndarray) -> Pairs:
        """Those at some places."""
        states, actions = ([values[place] for place in places] for values in (self.states, self.actions))
        return replace(self, episodes=self.episodes[places], states=states, actions=actions)

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
        with user_errors():
            generator.clocks.check(Mode.INVERSE_DYNAMICS)
        for name, width in (("states", shape.state_dim), ("actions", shape.action_dim)):
            if (found := getattr(store, name).shape[1]) != width:
                raise UserError(f"{store.name}: {name} are {found} wide; {self.checkpoint} was trained on {width}")
        self.generator, self.batch_size = generator, config.batch_size
        self.encode = text_reader(generator, config, views)
        prepare_text(self.encode, generator, [task for one in stores for task in one.tasks])
        self.sources = {
            id(one): (
                GeneratorClips(one, 1, shape.num_frames, 0, False, shape.frame_stride),
                scene_seeds(config.seed, one.metadata),
            )
            for one in stores
        }
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
        found = list[np.ndarray]()
        clips, seeds = self.sources[id(pairs.store)]
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
            for i, whole in enumerate(trajectories(pairs)):
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

    def baselines(self) -> list[tuple[str, Pairs, int | None]]:
        """Recorded episodes, where there are any to ask, or not one alone; and the scored ones held still. With each
        what `judged` takes as `first`."""
        found, first = list[tuple[str, Pairs, int | None]](), 0
        stores = self.held_out or (self.real if sum(one.num_episodes for one in self.real) > 1 else [])
        for store in stores:
            chosen = spread(store.num_episodes, max(1, BASELINE // len(stores)))
            found.append(("recorded", Pairs.of(store, chosen), None if self.held_out else first))
            first += store.num_episodes
        if not found:
            warn("no recorded episodes to compare with: give held_out=[DATASET], or real=[DATASET] with two or more")
        elif not self.held_out:
            print("recorded episodes are those of real=, which the generator has seen; held_out=[DATASET] names others")
        return [*found, ("still", Pairs.still(self.store, self.mean_action()), None)]


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
