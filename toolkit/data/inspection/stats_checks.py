"""stats.json against the data: LeRobot averages the quantiles of the episodes, which are not those of all frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.data.formats.lerobot_layout import BOOKKEEPING
from toolkit.data.formats.lerobot_stats import level_statistics
from toolkit.data.inspection.contents import Contents, Findings, dimension, read_statistics

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
VALUE_TOLERANCE = 1e-3  # of the range of a dimension; LeRobot's histograms have bins of 1/5000
RANK_TOLERANCE = 2e-3  # a quantile may be that of a rank so far away, besides one frame
PICTURE_TOLERANCE = 0.05  # of the brightness in [0, 1]; LeRobot samples pictures, and video is lossy

Bounds = tuple[np.ndarray, np.ndarray, np.ndarray]  # least, exact and largest value, (D,) each


def describe_vectors(values: np.ndarray) -> dict[str, Any]:
    """LeRobot's statistics of (N, D) numbers, with the quantiles of all frames."""
    values = values.astype(np.float64)
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "count": [len(values)],
        **{name: np.quantile(values, q, axis=0).tolist() for name, q in QUANTILES.items()},
    }


def describe_pictures(levels: np.ndarray) -> dict[str, Any]:
    """LeRobot's statistics of pictures in [0, 1], from how often each level occurs: (3, 256) counts."""
    found = level_statistics(levels, QUANTILES)
    count = found.pop("count").tolist()
    return {**{name: (value / 255).reshape(-1, 1, 1).tolist() for name, value in found.items()}, "count": count}


def check_statistics(contents: Contents, levels: dict[str, np.ndarray], findings: Findings) -> None:
    """Add what stats.json says wrongly. levels: (3, 256) counts of sampled pictures by camera."""
    saved = read_statistics(contents.directory)
    if saved is None:
        findings.add("statistics", "meta/stats.json: missing or damaged; compute the statistics again")
        return
    for key, values in contents.values.items():
        if key in BOOKKEEPING and key not in saved:
            continue  # LeRobot normalises none of them
        if np.isfinite(values).all() and (text := _vector_error(contents, key, saved.get(key))):
            findings.add("statistics", f"meta/stats.json: {key}: {text}; compute the statistics again")
    for key, counts in levels.items():
        if counts.sum() and (text := _picture_error(counts, saved.get(key))):
            findings.add("statistics", f"meta/stats.json: {key}: {text}; compute the statistics again")


def repaired_statistics(contents: Contents, levels: dict[str, np.ndarray]) -> dict[str, Any]:
    """New statistics of everything that was read; those of pictures stay where they are right."""
    saved = read_statistics(contents.directory) or {}
    new = {key: describe_vectors(values) for key, values in contents.values.items()}
    for key, counts in levels.items():
        if counts.sum() and _picture_error(counts, saved.get(key)):
            new[key] = describe_pictures(counts)
    return {**{key: value for key, value in saved.items() if key in contents.features}, **new}


def _vector_error(contents: Contents, key: str, saved: Any) -> str:
    """What is wrong with the statistics of a numeric feature, "" if nothing is."""
    values = contents.values[key].astype(np.float64)
    low, high = values.min(0), values.max(0)
    spread = VALUE_TOLERANCE * (high - low) + 1e-6 * np.maximum(np.abs(low), np.abs(high)) + 1e-9
    count, mean = np.array([len(values)]), values.mean(0)
    bounds: dict[str, Bounds] = {
        "min": (low - spread, low, low + spread),
        "max": (high - spread, high, high + spread),
        "mean": (mean - spread, mean, mean + spread),
        "std": _std_bounds(values, spread),
        "count": (count, count, count),
    }
    if key not in BOOKKEEPING:
        ordered = np.sort(values, axis=0)
        for name, q in QUANTILES.items():
            reach = RANK_TOLERANCE * len(values) + 1
            ranks = np.clip([np.floor(q * len(values) - reach), np.ceil(q * len(values) + reach)], 0, len(values) - 1)
            exact = np.quantile(ordered, q, axis=0)
            bounds[name] = ordered[int(ranks[0])] - spread, exact, ordered[int(ranks[1])] + spread
    return _outside(saved, bounds, contents.features[key])


def _std_bounds(values: np.ndarray, spread: np.ndarray) -> Bounds:
    """LeRobot subtracts squares in float32, which loses digits where the mean is large against the deviation."""
    variance, lost = values.var(0), 1e-5 * np.square(np.abs(values).max(0))
    low, high = np.sqrt(np.maximum(variance - lost, 0)), np.sqrt(variance + lost)
    return low - spread, np.sqrt(variance), high + spread


def _picture_error(levels: np.ndarray, saved: Any) -> str:
    found = level_statistics(levels, QUANTILES)
    exact = {name: found[name] / 255 for name in ("mean", "std")}
    bounds: dict[str, Bounds] = {
        name: (value - PICTURE_TOLERANCE, value, value + PICTURE_TOLERANCE) for name, value in exact.items()
    }
    return _outside(saved, bounds, {"names": ["red", "green", "blue"]})


def _outside(saved: Any, bounds: dict[str, Bounds], feature: dict[str, Any]) -> str:
    """Names of saved statistics that are missing or outside of their bounds, with the first number."""
    if not isinstance(saved, dict):
        return "no statistics"
    wrong, example = [], ""
    for name, (low, exact, high) in bounds.items():
        try:
            found: np.ndarray = np.array(saved.get(name), dtype=np.float64).ravel()
        except (TypeError, ValueError):
            found = np.array([])
        if found.shape != low.shape:
            wrong.append(name)
            example = example or f"{name} is missing or has another shape"
        elif len(off := np.flatnonzero(~((found >= low) & (found <= high)))):
            wrong.append(name)
            where = "" if name == "count" else f" of {dimension(feature, int(off[0]))}"
            example = example or f"{name}{where} is {found[off[0]]:.6g}, the data say {exact[off[0]]:.6g}"
    return f"{', '.join(wrong)} disagree with the data ({example})" if wrong else ""
