"""Statistics of states and actions over all frames of one or more datasets.

Deviations and ranges have floors, so that a dimension that hardly moves is not blown up to noise. The floor of a
dimension that moves is a share of its own range, so that units do not matter: metres, millimetres a step and radians
are learned alike. Only a constant dimension, which has no scale of its own, gets an absolute one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.base.errors import warn
from toolkit.data.clips import ClipStore
from toolkit.data.episode import ACTION, STATE

# Least deviation of a dimension that moves, by its range: where actions span [-1, 1] as in simulators, .05.
RELATIVE_FLOOR = 0.025
# A range that a few outliers have made counts as so many times what the middle 98 % span, of which a normal one spans
# 1.6, or as what the middle 99.8 % span: what is rarer than one row in a hundred still counts, a few glitches do not.
LARGEST_RANGE = 4
RARE = 0.001
# Of constant ones.
STATE_FLOOR = 0.02
ACTION_FLOOR = 0.05
ROUNDING = 2e-5  # by the size of the values: what varies by less is constant, and its floor not above float32's steps
ROWS = 1 << 18  # at once in float64


def describe(values: np.ndarray, floor: float, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """LeRobot's statistics of (N, D) values: mean, std, min, max, q01, q99; deviation and range have a floor.

    floor: of deviations of constant dimensions. names: of the D dimensions; then one that moves, but so seldom that its
    floor counts, is told on stderr.
    """
    low, high = values.min(0).astype(np.float64), values.max(0).astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0).astype(np.float64)
    mean, deviation = moments(values)
    floors = least_deviation(low, high, largest_range(values, q99 - q01), floor)
    for i, name in enumerate(names):
        if deviation[i] < floors[i] and not is_constant(low, high)[i]:
            text = (
                f"{name} lies in [{low[i]:.4g}, {high[i]:.4g}] and moves so seldom that its deviation is "
                f"{deviation[i]:.4g}; normalised with {floors[i]:.4g}, or rare values would be enormous"
            )
            warn(text)
    middle, half = (q01 + q99) / 2, np.maximum((q99 - q01) / 2, floors)
    statistics = {
        "mean": mean,
        "std": np.maximum(deviation, floors),
        "min": low,
        "max": high,
        "q01": middle - half,
        "q99": middle + half,
    }
    return {name: value.astype(np.float32) for name, value in statistics.items()}


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of (N, D) values, in float64: sums of millions of rows in float32 are off by per cents."""
    blocks = range(0, len(values), ROWS)
    mean = np.sum([values[i : i + ROWS].sum(0, dtype=np.float64) for i in blocks], axis=0) / len(values)
    squares = np.sum([np.square(values[i : i + ROWS] - mean).sum(0) for i in blocks], axis=0)
    return mean, np.sqrt(squares / len(values))


def largest_range(values: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """What each dimension of (N, D) values may be said to span at most, by the range of its middle 98 %, (D,)."""
    high = np.quantile(values, 1 - RARE, axis=0, method="lower")
    low = np.quantile(values, RARE, axis=0, method="higher")
    rare = high.astype(np.float64) - low
    return np.where(middle > 0, np.maximum(LARGEST_RANGE * middle, rare), np.inf)


def least_deviation(low: np.ndarray, high: np.ndarray, most: np.ndarray, constant: float) -> np.ndarray:
    """Floor of the deviation of each dimension, by what it spans, `most` at most; `constant` where it spans nothing."""
    return np.where(is_constant(low, high), constant, RELATIVE_FLOOR * np.minimum(high - low, most))


def is_constant(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Of each dimension, if its least and largest value are the same but for rounding."""
    constant: np.ndarray = high - low <= ROUNDING * np.maximum(np.abs(low), np.abs(high))
    return constant


def dimension_names(stores: Sequence[ClipStore], key: str) -> list[str]:
    """What the widest of some datasets calls the dimensions of its states or actions, for messages."""
    values = [
        (store.states, store.state_names) if key == STATE else (store.actions, store.action_names) for store in stores
    ]
    widest = max(range(len(stores)), key=lambda i: values[i][0].shape[1])
    rows, names = values[widest]
    where = f"{stores[widest].name}: {'state' if key == STATE else 'action'}"
    told = [f" ({name})" for name in names] if len(names) == rows.shape[1] else [""] * rows.shape[1]
    return [f"{where} {i}{name}" for i, name in enumerate(told)]


def compute_statistics(
    stores: Sequence[ClipStore], actions: Sequence[np.ndarray] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of all rows of all stores, by feature key; pictures per channel as (3, 1, 1).

    actions: of each store (N, A), where they are not learned as recorded.
    """
    shown = [store.canvas.cells(store.frames[:: max(1, len(store.frames) // 256)]) for store in stores]
    pictures = {}
    for camera in stores[0].canvas.cameras:
        values = np.concatenate([part[camera].reshape(-1, 3) for part in shown]) / 255
        by_channel = describe(values, 1e-3)
        pictures[camera] = {name: value.reshape(3, 1, 1) for name, value in by_channel.items()}
    state_names, action_names = (dimension_names(stores, key) for key in (STATE, ACTION))
    return {
        STATE: describe_columns([store.states for store in stores], STATE_FLOOR, state_names),
        ACTION: describe_columns(actions or [store.actions for store in stores], ACTION_FLOOR, action_names),
        **pictures,
    }


def describe_columns(parts: Sequence[np.ndarray], floor: float, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """As `describe`, of parts (N_i, D_i) of different widths: a dimension counts where a part has it."""
    widths = sorted({part.shape[1] for part in parts})
    blocks = []
    for low, high in zip([0, *widths], widths, strict=False):
        rows = np.concatenate([p[:, low:high] for p in parts if p.shape[1] >= high])
        blocks.append(describe(rows, floor, names[low:high]))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
