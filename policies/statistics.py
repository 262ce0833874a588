"""Statistics of the data as a policy normalises with them: complete, finite, and with no range of zero."""

from __future__ import annotations

import numpy as np
from lerobot.configs import FeatureType, PreTrainedConfig

from policies.checkpoint_processors import NEEDED, mode_of
from toolkit.base.errors import UserError
from toolkit.data.normalizer import is_constant

Statistics = dict[str, dict[str, np.ndarray]]

SMALLEST_RANGE = 1e-3


def usable_statistics(stats: Statistics, config: PreTrainedConfig) -> Statistics:
    """The statistics this policy normalises with, as float32, with no range or deviation of zero.

    Raises UserError if one is missing, has another width than the feature, or is not finite.
    """
    features = {**(config.input_features or {}), **(config.output_features or {})}
    result: Statistics = {}
    for key, feature in features.items():
        needed = NEEDED.get(mode_of(config, feature), ())
        values = {name: np.asarray(value, dtype=np.float32) for name, value in stats.get(key, {}).items()}
        width = (feature.shape[0], 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
        for name in needed:
            if name not in values:
                raise UserError(f"statistics of '{key}': no '{name}'; expected {' and '.join(needed)}")
            if values[name].shape != tuple(width):
                raise UserError(
                    f"statistics of '{key}': '{name}' has shape {values[name].shape}, expected {tuple(width)}"
                )
            if not np.isfinite(values[name]).all():
                raise UserError(f"statistics of '{key}': '{name}' is not finite")
        if values:
            result[key] = _with_width(values)
    return result


def _with_width(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Ranges and deviations of constant dimensions widened to SMALLEST_RANGE: LeRobot would divide them by 1e-8.

    Of others, however small their units, to such a share of what the dimension spans.
    """
    values = dict(values)
    width: np.ndarray | np.float32 = np.float32(SMALLEST_RANGE)
    if {"min", "max"} <= values.keys():
        low, high = values["min"], values["max"]
        width = np.where(is_constant(low, high), width, SMALLEST_RANGE * (high - low)).astype(np.float32)
    for low_name, high_name in (("q01", "q99"), ("q10", "q90"), ("min", "max")):
        if low_name in values and high_name in values:
            middle = (values[low_name] + values[high_name]) / 2
            half = np.maximum((values[high_name] - values[low_name]) / 2, width / 2)
            values[low_name], values[high_name] = middle - half, middle + half
    if {"q01", "q99", "min", "max"} <= values.keys():  # whoever computed them put the floor on the quantiles
        values["min"] = np.minimum(values["min"], values["q01"])
        values["max"] = np.maximum(values["max"], values["q99"])
    if "std" in values:
        values["std"] = np.maximum(values["std"], width)
    return values
