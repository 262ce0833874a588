"""LeRobot's diffusion policy with the picture encoder of `pi05_compact`, registered as `diffusion_compact`."""

from policies.diffusion_compact.configuration_diffusion_compact import DiffusionCompactConfig
from policies.diffusion_compact.modeling_diffusion_compact import DiffusionCompactPolicy

__all__ = ["DiffusionCompactConfig", "DiffusionCompactPolicy"]
