"""A pi0.5-style policy small enough for a CPU, registered with LeRobot as `pi05_compact`.

LeRobot imports only the configuration and the modeling module when it loads a checkpoint, so the processor
steps register here.
"""

from policies.pi05_compact.configuration_pi05_compact import Pi05CompactConfig
from policies.pi05_compact.modeling_pi05_compact import Pi05CompactPolicy
from policies.pi05_compact.processor_pi05_compact import make_pi05_compact_pre_post_processors

__all__ = ["Pi05CompactConfig", "Pi05CompactPolicy", "make_pi05_compact_pre_post_processors"]
