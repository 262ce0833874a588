"""What a training step of `pi05_compact` draws, and by what it divides its loss, where its batch is a part of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.pi05_compact.configuration_pi05_compact import Pi05CompactConfig
from toolkit.data.batches import RNG, ROWS, SIZE, WHOLE
from toolkit.data.episode import ACTION, ACTION_DIM_IS_PAD, ACTION_IS_PAD

NOISE, TIME, COUNT = "noise", "time", "count"  # keys of a prepared batch; without them the policy draws and counts


def training_draws(config: Pi05CompactConfig, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Noise (n * B, T, A) and times (n * B,), n = `flow_samples`, from the batch's own generator.

    Of a part of a batch these are its own of the numbers of the whole one; its loss is divided by the mean count of all
    parts (`count`), so that the mean of their losses is the loss of the whole batch.
    """
    rng, shape = batch[RNG], batch[ACTION].shape
    whole = batch.get(WHOLE, {ROWS: range(shape[0]), SIZE: shape[0]})
    rows, drawn_shape = whole[ROWS], (config.flow_samples, whole[SIZE])
    own = slice(rows.start, None, rows.step)
    noise = torch.randn(*drawn_shape, *shape[1:], generator=rng, device=rng.device)
    # torch's Beta knows the global generator alone.
    beta = np.random.default_rng(rng.initial_seed()).beta(
        config.time_sampling_beta_alpha, config.time_sampling_beta_beta, drawn_shape
    )
    t = torch.from_numpy(config.time_sampling_scale * beta + config.time_sampling_offset)
    drawn = {NOISE: noise[:, own].flatten(0, 1), TIME: t[:, own].flatten().to(rng.device, torch.float32)}
    if WHOLE in batch:
        steps = (~whole[ACTION_IS_PAD]).sum(1)  # (W,) that are real
        dims = (~whole[ACTION_DIM_IS_PAD]).sum(1) if ACTION_DIM_IS_PAD in whole else shape[2]
        drawn[COUNT] = (config.flow_samples * (steps * dims).sum() / rows.step).to(rng.device, torch.float32)
    return drawn
