"""A tiny policy of each kind and a batch that fits both."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.factory import PolicyObjective, Statistics, build_policy
from toolkit.data.episode import IMAGE

SMALL: dict[str, dict[str, Any]] = {
    "pi05_compact": {
        "chunk_size": 8,
        "n_action_steps": 4,
        "depth": 2,
        "width": 32,
        "mlp_width": 64,
        "expert_width": 32,
        "expert_mlp_width": 64,
        "num_heads": 2,
        "head_dim": 16,
        "tokenizer_buckets": 64,
    },
    "diffusion": {"horizon": 8, "n_action_steps": 4, "down_dims": (16, 32), "diffusion_step_embed_dim": 16},
}
SMALL["diffusion_compact"] = SMALL["diffusion"]


def make_statistics() -> Statistics:
    def of(shape: tuple[int, ...], low: float, high: float) -> dict[str, np.ndarray]:
        values = {"mean": (low + high) / 2, "std": (high - low) / 4, "min": low, "max": high, "q01": low, "q99": high}
        return {name: np.full(shape, value, np.float32) for name, value in values.items()}

    return {
        "observation.state": of((4,), -2, 2),
        "action": of((3,), -1, 3),
        "observation.image": of((3, 1, 1), 0, 1),
    }


def make_batch(size: int = 4, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "observation.image": torch.rand(size, 3, 32, 32, generator=generator),
        "observation.state": torch.rand(size, 4, generator=generator) * 4 - 2,
        "action": torch.rand(size, 8, 3, generator=generator) * 4 - 1,
        "action_is_pad": torch.zeros(size, 8, dtype=torch.bool),
        "task": [("push the puck", "open the small door")[i % 2] for i in range(size)],
    }


def build_small(
    kind: str,
    stats: Statistics | None = None,
    text_encoder: Path | None = None,
    representation: str = "absolute",
    reference: Sequence[int] = (),
    **options: Any,
) -> PolicyObjective:
    torch.manual_seed(0)
    return build_policy(
        kind,
        cameras={IMAGE: (3, 32, 32)},
        state_dim=4,
        action_dim=3,
        stats=stats or make_statistics(),
        options={**SMALL.get(kind, {}), **options},
        text_encoder=text_encoder,
        representation=representation,
        reference=reference,
    )


def build_shipped(kind: str, weights: int = 0, **options: Any) -> PolicyObjective:
    """As `vag pretrain` builds it of Meta-World's data, with weights from a seed."""
    torch.manual_seed(weights)
    stats = make_statistics()
    stats["action"] = {name: np.repeat(value[:1], 4) for name, value in stats["action"].items()}
    objective = build_policy(
        kind, cameras={IMAGE: (3, 64, 64)}, state_dim=4, action_dim=4, stats=stats, options=options
    )
    wake(objective)
    return objective.eval()


def wake(objective: PolicyObjective) -> None:
    """Give weights that start at zero values, as training does: those of adaRMS, and a convolution of the picture."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            scale = 0.3 if "modulation" in name else 0.05 if name.endswith("block.conv2.weight") else None
            if scale is not None:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def statistics() -> Statistics:
    return make_statistics()


@pytest.fixture
def batch() -> dict[str, Any]:
    return make_batch()


@pytest.fixture
def make_policy() -> Callable[..., PolicyObjective]:
    return build_small


@pytest.fixture
def shipped() -> Callable[..., PolicyObjective]:
    return build_shipped


@pytest.fixture(params=sorted(SMALL))
def objective(request: pytest.FixtureRequest) -> PolicyObjective:
    return build_small(request.param)


@pytest.fixture
def pi05() -> PolicyObjective:
    """Weights as if trained a little, so that every path carries something."""
    objective = build_small("pi05_compact")
    wake(objective)
    return objective.eval()


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good checkpoint of two kinds that are trained here; do not change them."""
    folder = tmp_path_factory.mktemp("good")
    for kind in ("pi05_compact", "diffusion_compact"):
        build_small(kind).save_pretrained(folder / kind)
    return {kind: folder / kind for kind in ("pi05_compact", "diffusion_compact")}
