"""Streams of noise have seeds of their own, and nobody seeds what belongs to others."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from recipes.held_out import sampled_above
from toolkit.base.randomness import isolated_randomness, stream_seed
from toolkit.data.augmentation import Augmented
from toolkit.data.batches import GeneratorClips, Mixture, make_sources
from toolkit.data.clips import ClipStore
from toolkit.evaluation.clip_encoder import ClipEncoder
from vag_core import Generator, GeneratorConfig
from vag_core.config import ConvTokenizerConfig, DiTConfig, TransformerConfig

ROOT = Path(__file__).parent.parent.parent


def test_every_stream_has_a_seed_of_its_own() -> None:
    names = [(0, "push", 1, 0), (0, "push", 0, 1), (1, "push", 1, 0), (0, "push", 10), (0, "push1", 0), (0, "push", 1)]
    seeds = [stream_seed(*name) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [stream_seed(*name) for name in names]


def test_what_is_drawn_inside_depends_on_the_seed_alone_and_leaves_no_trace() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    with isolated_randomness(1):
        first = torch.randn(3)
    assert torch.equal(torch.randn(3), expected)
    with isolated_randomness(1):
        assert torch.equal(torch.randn(3), first)
    with isolated_randomness():
        assert torch.randn(3).shape == (3,)


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = GeneratorConfig(
        image_size=[32, 32],
        num_frames=9,
        state_dim=2,
        action_dim=2,
        tokenizer=ConvTokenizerConfig(latent_channels=8, temporal_stride=4, width=32, depth=1),
        video=DiTConfig(width=48, depth=1, heads=4),
        action=TransformerConfig(width=48, depth=1),
    )
    return Generator(config).eval()


def encoded(store: ClipStore, generator: Generator) -> Any:
    return ClipEncoder(3).project.weight.detach()


def augmented(store: ClipStore, generator: Generator) -> Any:
    return Augmented(Mixture(make_sources([store], [1.0], 1), 4, 8, 0), 0).batch(3)["observation.image"]


def sampled(store: ClipStore, generator: Generator) -> Any:
    return sampled_above(generator, GeneratorClips(store, 1, 9, 0, False), list, np.arange(2))


def scored(store: ClipStore, generator: Generator) -> Any:
    first = torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.zeros(2, 2), ["a", "b"]
    rng = torch.Generator().manual_seed(0)
    return generator.eval().sample(*first, num_inference_steps=1, rng=rng, score=True).loss


@pytest.mark.parametrize("draw", [encoded, augmented, sampled, scored])
def test_what_draws_by_a_seed_of_its_own_reseeds_nothing(
    draw: Callable[[ClipStore, Generator], Any],
    store: ClipStore,
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`torch.manual_seed` seeds every GPU as well, and `fork_rng(devices=[])` restores none of them."""
    torch.manual_seed(1)
    before = np.asarray(draw(store, generator))
    torch.manual_seed(2)
    state = torch.get_rng_state()

    def refused(seed: int) -> NoReturn:
        raise AssertionError("the GPUs are seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refused)
    np.testing.assert_array_equal(np.asarray(draw(store, generator)), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_only_training_seeds_the_global_generators() -> None:
    wrong = []
    for package in ("toolkit", "vag_core", "policies", "recipes"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.manual_seed", "torch.seed"):
                    wrong.append(path.relative_to(ROOT).as_posix())
    assert set(wrong) <= {"toolkit/training/runtime.py", "toolkit/training/loop.py"}
