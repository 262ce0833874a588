"""Classical image augmentation of batches: a control beside generated episodes."""

from __future__ import annotations

from typing import Any

import torch

from toolkit.base.randomness import isolated_randomness
from toolkit.data.batches import ALL, BatchSource, Part


class Augmented:
    """Classical image augmentation: LeRobot's random colours and sharpness, on another source.

    Not its small moves of the picture: at 64 pixels one is about a centimetre, and a moved picture another scene.
    Pictures are transformed in groups of `GROUP`, each in its own way: one by one would take longer than training.
    The groups of a batch that is divided are others than those of the whole one.
    """

    GROUP = 4
    draws_from_torch = True  # from its only generator, which a step in training draws from too: never both at once

    def __init__(self, source: BatchSource, seed: int) -> None:
        from lerobot.transforms.transforms import ImageTransforms, ImageTransformsConfig

        self.source, self.seed = source, seed
        config = ImageTransformsConfig(enable=True)
        del config.tfs["affine"]
        self.transforms = ImageTransforms(config)

    def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
        batch = self.source.batch(step, part)
        with isolated_randomness(self.seed * 1_000_003 + step * part.count + part.index):
            pictures = {
                key: torch.cat([self.transforms(group) for group in value.split(self.GROUP)]).clamp(0, 1)
                for key, value in batch.items()
                if getattr(value, "ndim", 0) >= 4  # of every camera
            }
        return {**batch, **pictures}
