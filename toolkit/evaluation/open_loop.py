"""How far a policy's predicted actions are from recorded ones: what can be measured without robot or simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from toolkit.base.errors import UserError
from toolkit.base.progress import progress
from toolkit.base.randomness import stream_seed
from toolkit.data.clips import ClipStore
from toolkit.data.episode import ACTION, ACTION_IS_PAD, STATE, TASK
from toolkit.data.normalizer import STATE_FLOOR, describe, moments
from toolkit.envs.base import Policy
from toolkit.evaluation.statistics import mean_interval


def open_loop_error(
    policy: Policy, store: ClipStore, n_action_steps: int, batch_size: int = 32, seed: int = 0
) -> dict[str, Any]:
    """Errors of the next `n_action_steps` actions, predicted at every such step of every episode.

    `action_distance` is the Euclidean distance (raw units) averaged over steps, then over episodes; `low` and `high`
    bound its 95 % bootstrap interval over episodes, n of them. `mean` is the same error of these episodes' own mean
    action: a policy that is not better has learned nothing. `per_dimension` (A,) holds mean absolute errors,
    `per_episode` (n,) the distances that `action_distance` is the mean of. Noise of a prediction comes from `seed`, its
    episode and step alone.
    A policy with a memory, which its method `reset` clears, sees every step of each episode in order, as on a robot.
    Raises UserError if the policy's actions have another width than the recorded ones.
    """
    rows = [
        (episode, step)
        for episode, length in enumerate(store.episode_lengths)
        for step in range(0, int(length), n_action_steps)
    ]
    forget: Callable[[], None] | None = getattr(policy, "reset", None)
    batch_size = batch_size if forget is None else 1
    mean, _ = moments(store.actions)
    errors: dict[str, list[np.ndarray]] = {"policy": [], "mean": []}
    owners: list[np.ndarray] = []
    bar = progress(description="open loop", total=len(rows), unit="step")
    for start in range(0, len(rows), batch_size):
        episodes, steps = np.array(rows[start : start + batch_size]).T
        if forget is not None and steps[0] == 0:
            forget()
        batch = store.policy_batch(episodes, steps, n_action_steps)
        observation = {key: torch.from_numpy(batch[key]) for key in (*store.canvas.cameras, STATE)}
        observation[TASK] = batch[TASK]
        noise_seeds = [stream_seed(seed, int(e), int(step)) for e, step in zip(episodes, steps, strict=True)]
        chunk = torch.as_tensor(policy.predict_action_chunk(observation, noise_seeds)).detach().cpu().numpy()
        chunk = chunk[:, :n_action_steps]
        if chunk.shape != batch[ACTION].shape:
            raise UserError(
                f"{store.name}: actions are {batch[ACTION].shape[2]} wide; the policy gives {chunk.shape[2]}"
            )
        real = ~batch[ACTION_IS_PAD]
        for name, predicted in (("policy", chunk), ("mean", mean)):
            errors[name].append((predicted - batch[ACTION])[real])
        owners.append(np.broadcast_to(episodes[:, None], real.shape)[real])
        bar.update(len(episodes))
    bar.close()
    owner = np.concatenate(owners)
    counts = np.bincount(owner)
    values = {name: np.concatenate(parts) for name, parts in errors.items()}  # (N, A)
    per_episode = {name: np.bincount(owner, np.linalg.norm(value, axis=-1)) / counts for name, value in values.items()}
    low, high = mean_interval(per_episode["policy"].tolist())
    return {
        "action_distance": float(per_episode["policy"].mean()),
        "low": low,
        "high": high,
        "n": len(counts),
        "mean": float(per_episode["mean"].mean()),
        "per_dimension": moments(np.abs(values["policy"]))[0].tolist(),
        "per_episode": per_episode["policy"].tolist(),
        "n_action_steps": n_action_steps,
    }


def nearest_recorded_error(stores: Sequence[ClipStore], held_out: ClipStore, n_action_steps: int) -> float:
    """`action_distance` of a policy that does what was recorded from the nearest state of its instruction, or of any.

    A baseline of `open_loop_error`. stores: what it was recorded in. States are compared in units of their deviation.
    """
    from scipy.spatial import cKDTree

    states, tasks, chunks = list[np.ndarray](), list[str](), list[np.ndarray]()
    for store in stores:
        for episode in range(store.num_episodes):
            rows = store.rows_of(np.array([episode]))
            ahead = np.minimum(np.arange(len(rows))[:, None] + np.arange(n_action_steps), len(rows) - 1)
            states.append(store.states[rows])
            chunks.append(store.actions[rows][ahead])
            tasks += [store.instruction(episode)] * len(rows)
    known, actions, task_of = np.concatenate(states), np.concatenate(chunks), np.array(tasks)
    deviation = describe(known, STATE_FLOOR)["std"]
    trees = {task: cKDTree(known[task_of == task] / deviation) for task in set(tasks)}
    anywhere, errors = cKDTree(known / deviation), []
    for episode in range(held_out.num_episodes):
        rows, task = held_out.rows_of(np.array([episode])), held_out.instruction(episode)
        starts = np.arange(0, len(rows), n_action_steps)
        _, nearest = trees.get(task, anywhere).query(held_out.states[rows[starts]] / deviation)
        taken = (actions[task_of == task] if task in trees else actions)[nearest].reshape(-1, actions.shape[2])
        errors.append(np.linalg.norm(taken[: len(rows)] - held_out.actions[rows], axis=-1).mean())
    return float(np.mean(errors))
