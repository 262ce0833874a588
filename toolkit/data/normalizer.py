"""Statistics of states and actions over all frames of one or more datasets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.data.clips import ClipStore
from toolkit.data.episode import ACTION, IMAGE, STATE

# Smallest deviations, so that a dimension that hardly moves is not blown up to noise.
STATE_FLOOR = 0.02
ACTION_FLOOR = 0.05


def describe(values: np.ndarray, floor: float) -> dict[str, np.ndarray]:
    """LeRobot's statistics of (N, D) values: mean, std, min, max, q01, q99; deviation and range have a floor."""
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    spread = np.maximum(q99 - q01, 2 * floor)
    middle = (q01 + q99) / 2
    statistics = {
        "mean": values.mean(0),
        "std": np.maximum(values.std(0), floor),
        "min": values.min(0),
        "max": values.max(0),
        "q01": middle - spread / 2,
        "q99": middle + spread / 2,
    }
    return {name: value.astype(np.float32) for name, value in statistics.items()}


def compute_statistics(stores: Sequence[ClipStore]) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of all rows of all stores, by feature key; pictures per channel as (3, 1, 1)."""
    pictures = np.concatenate([store.frames[:: max(1, len(store.frames) // 256)] for store in stores]) / 255
    by_channel = describe(pictures.reshape(-1, 3), 1e-3)
    return {
        STATE: describe_columns([store.states for store in stores], STATE_FLOOR),
        ACTION: describe_columns([store.actions for store in stores], ACTION_FLOOR),
        IMAGE: {name: value.reshape(3, 1, 1) for name, value in by_channel.items()},
    }


def describe_columns(parts: Sequence[np.ndarray], floor: float) -> dict[str, np.ndarray]:
    """As `describe`, of parts (N_i, D_i) of different widths: a dimension counts where a part has it."""
    widths = sorted({part.shape[1] for part in parts})
    blocks = []
    for low, high in zip([0, *widths], widths, strict=False):
        blocks.append(describe(np.concatenate([p[:, low:high] for p in parts if p.shape[1] >= high]), floor))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
