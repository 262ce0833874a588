"""Policies of other types, and with longer memories, run as LeRobot runs them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from policies.checkpoints import checkpoint_directory
from policies.factory import PolicyObjective
from policies.stock import StockPolicy, load_policy
from toolkit.base.errors import UserError
from toolkit.data.episode import ACTION, IMAGE, STATE, TASK
from toolkit.evaluation.rollout import rollout

SMALL: dict[str, Any] = {
    "act": (
        ACTConfig,
        {
            **{"chunk_size": 4, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "use_vae": False},
            **{"n_action_steps": 1, "temporal_ensemble_coeff": 0.01},  # so that it has a memory
        },
    ),
    "diffusion": (
        DiffusionConfig,
        {"horizon": 16, "n_action_steps": 2, "down_dims": (16, 32), "num_inference_steps": 2, "crop_shape": None},
    ),
}


def save_stock(kind: str, directory: Path, picture: str = IMAGE) -> Path:
    """A checkpoint as LeRobot's own training writes it."""
    config_class, options = SMALL[kind]
    torch.manual_seed(0)
    config = config_class(
        device="cpu",
        push_to_hub=False,
        pretrained_backbone_weights=None,
        input_features={
            picture: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
            STATE: PolicyFeature(FeatureType.STATE, (4,)),
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (4,))},
        **options,
    )
    stats = {key: {"mean": torch.zeros(4), "std": torch.ones(4)} for key in (STATE, ACTION)}
    stats |= {key: stats[key] | {"min": -torch.ones(4), "max": torch.ones(4)} for key in (STATE, ACTION)}
    flat = {name: torch.full((3, 1, 1), value) for name, value in (("mean", 0.5), ("std", 0.2), ("min", 0), ("max", 1))}
    before, after = make_pre_post_processors(config, dataset_stats={**stats, picture: flat})
    for part in (get_policy_class(kind)(config), before, after):
        part.save_pretrained(directory)
    return directory


def observation(seed: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    return {IMAGE: torch.rand(1, 3, 64, 64, generator=rng), STATE: torch.randn(1, 4, generator=rng), TASK: ["push"]}


@pytest.mark.parametrize("kind", SMALL)
def test_it_acts_as_lerobot_would_and_forgets_at_a_reset(kind: str, tmp_path: Path) -> None:
    policy = load_policy(save_stock(kind, tmp_path / kind, picture="observation.images.top"))
    assert isinstance(policy, StockPolicy)
    assert policy.policy_type == kind

    def actions() -> np.ndarray:
        torch.manual_seed(0)
        policy.reset()
        return np.concatenate([policy.predict_action_chunk(observation(seed)).numpy() for seed in range(5)], axis=1)

    first = actions()
    assert first.shape == (1, 5, 4)
    np.testing.assert_array_equal(first, actions())
    torch.manual_seed(0)
    policy.reset()
    inner = []
    for seed in range(5):
        seen = observation(seed)
        seen["observation.images.top"] = seen.pop(IMAGE)
        inner.append(policy.postprocessor(policy.policy.select_action(policy.preprocessor(seen))))
    np.testing.assert_allclose(first[0], torch.cat(inner).numpy(), atol=1e-6)


def test_rollouts_give_it_one_scene_at_a_time(tmp_path: Path) -> None:
    policy = load_policy(save_stock("act", tmp_path / "act"))
    resets = []
    policy.reset = lambda forget=policy.reset: (resets.append(1), forget())  # type: ignore[method-assign]
    rollouts = rollout(policy, {"push": [0, 1], "reach": [2]}, max_steps=3, image_size=(64, 64))
    assert [(r.task, r.seed, r.steps) for r in rollouts] == [("push", 0, 3), ("push", 1, 3), ("reach", 2, 3)]
    assert len(resets) == 3


def test_our_own_checkpoints_stay_what_they_are(make_policy: Any, tmp_path: Path) -> None:
    make_policy("diffusion").save_pretrained(tmp_path / "own")
    assert isinstance(load_policy(tmp_path / "own"), PolicyObjective)


def test_policies_that_see_more_than_there_is_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a directory"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(UserError, match="the Hugging Face hub does not give it"):
        checkpoint_directory("nobody/nothing-at-all")
    directory = save_stock("act", tmp_path / "act")
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text.replace('"observation.state"', '"observation.environment_state"', 1))
    with pytest.raises(UserError, match="the environments show pictures and observation.state"):
        load_policy(directory)
    (directory / "config.json").write_text(text)
    (directory / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="truncated or not a safetensors file"):
        load_policy(directory)


def test_a_state_of_another_width_is_named(tmp_path: Path) -> None:
    policy = load_policy(save_stock("act", tmp_path / "act"))
    with pytest.raises(UserError, match=r"observation.state: got shape \(1, 7\), expected \(1, 4\) \(act policy\)"):
        policy.predict_action_chunk({**observation(0), STATE: torch.zeros(1, 7)})


def test_it_draws_from_the_seed_of_a_chunk_and_leaves_the_global_generator(tmp_path: Path) -> None:
    policy = load_policy(save_stock("diffusion", tmp_path / "diffusion"))
    assert isinstance(policy, StockPolicy)
    actions = []
    for start in (1, 2):
        torch.manual_seed(start)
        state = torch.get_rng_state()
        policy.reset()
        actions.append(policy.predict_action_chunk(observation(0), [5]))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*actions)
    policy.reset()
    assert not torch.equal(policy.predict_action_chunk(observation(0), [6]), actions[0])
