"""The processors of LeRobot's diffusion policy, under the name that LeRobot looks for."""

from lerobot.policies.diffusion.processor_diffusion import (
    make_diffusion_pre_post_processors as make_diffusion_compact_pre_post_processors,
)

__all__ = ["make_diffusion_compact_pre_post_processors"]
