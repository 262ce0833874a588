"""LeRobot imports this module by the distribution's name; importing it registers policies, their steps and the env."""

import policies.action_steps
import policies.diffusion_compact
import policies.instruction_embedding
import policies.pi05_compact
import policies.vag_policy  # noqa: F401
import toolkit.envs.lerobot_plugin  # noqa: F401
