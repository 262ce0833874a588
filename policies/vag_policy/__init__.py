"""The generator as a LeRobot policy, registered as `vag_policy`: a plan or a sample, some of its steps, then again."""

from policies.vag_policy.configuration_vag import VagConfig
from policies.vag_policy.modeling_vag import VagPolicy
from policies.vag_policy.processor_vag import make_vag_policy_pre_post_processors

__all__ = ["VagConfig", "VagPolicy", "make_vag_policy_pre_post_processors"]
