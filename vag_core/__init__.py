"""The dual-stream video-action generator in pure PyTorch.

By default it plans actions from the first picture and makes a video that follows them. The joint sampler of both
streams is the published mode (VAG, arXiv 2604.09330).

from vag_core import Generator
generator = Generator.from_pretrained("outputs/train-generator/run/generator")
sample = generator.sample(image, state, ["push the puck to the goal"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vag_core.config import GeneratorConfig

if TYPE_CHECKING:
    from vag_core.generator import GeneratedBatch, Generator

__all__ = ["GeneratedBatch", "Generator", "GeneratorConfig"]


def __getattr__(name: str) -> Any:
    """The generator on first use: the configs alone, which the command line reads, need no torch."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from vag_core import generator

    return getattr(generator, name)
