"""What to say where the memory of a GPU was too small: one line, with a batch that fits."""

from __future__ import annotations


def divided(clips: int, most: int) -> tuple[int, int]:
    """Batch size and accumulation with the product `clips`, the largest batch of at most `most` that divides it."""
    batch = next(size for size in range(max(1, min(most, clips)), 0, -1) if clips % size == 0)
    return batch, clips // batch
