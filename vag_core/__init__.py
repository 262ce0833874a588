"""The dual-stream video-action generator (VAG, arXiv 2604.09330) in pure PyTorch.

from vag_core import Generator
generator = Generator.from_pretrained("outputs/train-generator/run/generator")
sample = generator.sample(image, state, ["push the puck to the goal"])
"""

from vag_core.config import GeneratorConfig
from vag_core.generator import GeneratedBatch, Generator

__all__ = ["GeneratedBatch", "Generator", "GeneratorConfig"]
