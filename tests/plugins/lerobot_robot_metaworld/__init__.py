"""Meta-World behind LeRobot's robot interface, found by LeRobot as any robot of another package is."""

from .config_metaworld import MetaWorldConfig
from .metaworld import MetaWorld

__all__ = ["MetaWorld", "MetaWorldConfig"]
