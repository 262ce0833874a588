"""Fixtures of the policy tests; the objects themselves come from `small_policies`."""

from collections.abc import Callable
from typing import Any

import pytest
import small_policies

from policies.factory import PolicyObjective, Statistics


@pytest.fixture
def statistics() -> Statistics:
    return small_policies.make_statistics()


@pytest.fixture
def batch() -> dict[str, Any]:
    return small_policies.make_batch()


@pytest.fixture(name="make_policy")
def _make_policy() -> Callable[..., PolicyObjective]:
    return small_policies.make_policy


@pytest.fixture(params=small_policies.BOTH)
def objective(request: pytest.FixtureRequest) -> PolicyObjective:
    return small_policies.make_policy(request.param)


@pytest.fixture
def pi05() -> PolicyObjective:
    """Weights as if trained a little, so that every path carries something."""
    objective = small_policies.make_policy("pi05_compact")
    small_policies.wake(objective)
    return objective.eval()
