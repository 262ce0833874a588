"""The shapes in the annotations are checked in tests, and nowhere else."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError

from vag_core import clocks, flow_matching, trajectory
from vag_core.config import TransformerConfig
from vag_core.layers import AdaLNBlock
from vag_core.objective import masked_mean


@pytest.mark.parametrize(
    "call",
    [
        lambda: flow_matching.velocity(torch.zeros(2, 3), torch.zeros(1, 3)),
        lambda: flow_matching.interpolate(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3)),
        lambda: AdaLNBlock(8, 1)(torch.zeros(2, 3, 8), torch.zeros(1, 8)),
        lambda: masked_mean(torch.zeros(2, 3), torch.zeros(2, 3)),  # not bool
        lambda: trajectory.Trajectory(2, 1).pack(torch.zeros(2, 4, 2), torch.zeros(2, 4, 1)),  # a state is missing
        lambda: clocks.without_labels(torch.zeros(2), torch.zeros(2), torch.ones(3, dtype=torch.bool)),
    ],
)
def test_a_wrong_shape_or_type_is_refused_here(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()


def test_right_ones_pass() -> None:
    assert trajectory.Trajectory(2, 1).pack(torch.zeros(2, 4, 2), torch.zeros(2, 5, 1)).shape == (2, 4, 3)
    assert clocks.clocks_of(TransformerConfig()).draw(3, torch.device("cpu"))[0].shape == (3,)


def test_they_are_not_checked_at_run_time() -> None:
    code = "import torch; from vag_core.flow_matching import velocity; velocity(torch.zeros(2, 3), torch.zeros(1, 3))"
    code += "; import sys; sys.exit('beartype' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
