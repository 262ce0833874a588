"""Random numbers that depend on what they are for, not on what was drawn before or beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """Seed of one stream of noise, such as (task, scene, chunk): 63 bits of the SHA-256 of all of these."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def isolated_randomness(seed: int | None = None) -> Iterator[None]:
    """What is drawn inside leaves torch's random state as it was, on the CPU and on every GPU in use.

    With a seed, it depends on that alone. `torch.manual_seed` would also reseed GPUs that nobody has saved the state
    of, at once or when they are first used.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    with torch.random.fork_rng(devices=gpus):
        if seed is not None:
            for generator in (torch.random.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)):
                generator.manual_seed(seed)
        yield
