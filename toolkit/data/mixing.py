"""How many episodes of two sides make a dataset in which synthetic frames have a fraction of all frames.

Who reads a dataset draws its frames alike (LeRobot, openpi), so frames are what is counted.
Legend: E episodes of a side; lengths (E,) frames of each; tasks (E,) number of each one's instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REAL, SYNTHETIC = 0, 1


@dataclass(frozen=True)
class Side:
    """Episodes that may take part. ranks: (E,) which of a task are taken first, the lowest; None: by chance."""

    lengths: np.ndarray
    tasks: np.ndarray
    ranks: np.ndarray | None = None

    @property
    def frames(self) -> int:
        return int(self.lengths.sum())


def mixed(real: Side, synthetic: Side, fraction: float | None, repeat: bool, seed: int) -> list[list[np.ndarray]]:
    """Of either side the rounds of episodes that are written, each as rising numbers; none twice in a round.

    The longer side is cut to fit the shorter one or, with `repeat`, the shorter one is taken whole times and a part
    once more. fraction: None takes all of both. A fraction of 0 or 1 leaves a side out.
    """
    sides = (real, synthetic)
    if fraction is None:
        return [[np.arange(len(side.lengths))] if len(side.lengths) else [] for side in sides]
    shares = (1 - fraction, fraction)
    if 0 in shares:
        return [[np.arange(len(side.lengths))] if share else [] for side, share in zip(sides, shares, strict=True)]
    wanted = [sides[1 - i].frames * shares[i] / shares[1 - i] for i in (REAL, SYNTHETIC)]  # beside all of the other
    long = REAL if real.frames > wanted[REAL] else SYNTHETIC
    cut, rounds = (1 - long if repeat else long), list[list[np.ndarray]]()
    for i, side in enumerate(sides):
        if i != cut:
            rounds.append([np.arange(len(side.lengths))])
            continue
        whole = int(wanted[i] // side.frames)
        rest = take(side, wanted[i] - whole * side.frames, seed, least=0 if whole else 1)
        rounds.append([np.arange(len(side.lengths))] * whole + ([rest] if len(rest) else []))
    return rounds


def take(side: Side, frames: float, seed: int, least: int = 1) -> np.ndarray:
    """Rising numbers of episodes with about so many frames in all, off by at most half of an episode of the side.

    Always the next one is of the instruction that has the fewest frames so far: of that the one with the lowest rank,
    by chance where ranks are equal. least: episodes that are taken however few frames are asked for.
    """
    chance = np.random.default_rng((seed, 6)).random(len(side.lengths))
    ranks = np.zeros(len(side.lengths)) if side.ranks is None else side.ranks
    order = np.lexsort((chance, ranks))
    waiting = {task: [int(i) for i in order if side.tasks[i] == task] for task in np.unique(side.tasks)}
    taken, of_task, total = list[int](), dict.fromkeys(waiting, 0), 0
    while waiting:
        task = min(waiting, key=lambda one: (of_task[one], one))
        episode = waiting[task].pop(0)
        if not waiting[task]:
            del waiting[task]
        length = int(side.lengths[episode])
        if len(taken) >= least and abs(total + length - frames) >= abs(total - frames):
            break
        taken.append(episode)
        of_task[task] += length
        total += length
    return np.sort(np.array(taken, np.int64))
