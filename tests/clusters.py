"""A Ray of two nodes on this machine, one CPU each, for tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from toolkit.base.ray_engine import QUIET

STORE = 200_000_000  # bytes of each node's object store; 8e7 is the least


@dataclass
class Nodes:
    cluster: Any
    second: Any

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def kill_one(self) -> None:
        """The second node, without grace."""
        self.cluster.remove_node(self.second, allow_graceful=False)


@contextmanager
def two_nodes(gpus: int = 0) -> Iterator[Nodes]:
    """gpus: that the second node says to have."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of another cluster
    before = dict(os.environ)
    os.environ.update(QUIET)
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # which Ray compares with the GPUs that a node says to have
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE, "include_dashboard": False},
    )
    try:
        second = cluster.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=STORE)
        yield Nodes(cluster, second)
    finally:
        ray.shutdown()
        cluster.shutdown()
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
