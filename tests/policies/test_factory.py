"""Build, check, train, save and load, for every policy, with LeRobot's own loader as a witness."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from safetensors.torch import load_file, save_file

from policies.diffusion_compact import DiffusionCompactConfig
from policies.factory import CONFIGS, PolicyObjective, Statistics, build_policy
from toolkit.base.errors import UserError
from toolkit.data.episode import IMAGE

Batch = dict[str, Any]
Make = Callable[..., PolicyObjective]


def chunk(objective: PolicyObjective, batch: Batch) -> torch.Tensor:
    torch.manual_seed(11)
    return objective.predict_action_chunk(batch)


def test_sizes_and_a_training_step(objective: PolicyObjective, batch: Batch) -> None:
    assert (objective.horizon, objective.n_action_steps) == (8, 4)
    assert (objective.picture_size, objective.state_dim, objective.action_dim) == ((32, 32), 4, 3)
    before = {k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)}
    loss, metrics = objective.loss(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(isinstance(value, float) for value in metrics.values())
    assert all(torch.equal(before[k], batch[k]) for k in before), "the caller's batch was changed"
    assert not any("normal" in name for name in objective.state_dict())


def test_a_frozen_vision_encoder_is_not_trained(objective: PolicyObjective, batch: Batch) -> None:
    objective.freeze_vision_encoder()
    objective.loss(batch)[0].backward()
    trained = {name for name, p in objective.policy.named_parameters() if p.grad is not None}
    frozen = {name for name, p in objective.policy.named_parameters() if not p.requires_grad}
    assert trained
    assert frozen
    assert not trained & frozen
    assert all("encoder" in name for name in frozen)
    assert not any("rgb_encoder" in name or "image_encoder" in name for name in trained)


def test_prediction_is_physical_stateless_and_keeps_the_mode(objective: PolicyObjective, batch: Batch) -> None:
    objective.train()
    first = chunk(objective, batch)
    assert first.shape == (4, 4, 3)
    assert objective.policy.training
    assert torch.equal(first, chunk(objective, batch))
    observation = {k: v for k, v in batch.items() if not k.startswith("action")}
    assert torch.equal(first, chunk(objective, observation))


def test_diffusion_predictions_lie_in_the_range_of_the_actions(make_policy: Make, batch: Batch) -> None:
    actions = chunk(make_policy("diffusion"), batch)
    assert actions.min() >= -1 - 1e-5
    assert actions.max() <= 3 + 1e-5
    assert actions.max() > 1.5  # clipped noise fills the range: it was unnormalised


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_instruction_matters(make_policy: Make, batch: Batch, kind: str) -> None:
    objective = make_policy(kind)
    if kind == "pi05_compact":  # at the start adaRMS keeps the expert from looking at the prefix
        for name, parameter in objective.named_parameters():
            if "modulation" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    assert not torch.equal(chunk(objective, batch), chunk(objective, {**batch, "task": batch["task"][::-1]}))


def test_padded_steps_do_not_enter_the_diffusion_loss(make_policy: Make, batch: Batch) -> None:
    objective = make_policy("diffusion")
    batch["action_is_pad"][:] = True
    assert objective.loss(batch)[0] == 0


# ---------------------------------------------------------------------------------------------- save and load


def test_round_trip_is_exact(objective: PolicyObjective, batch: Batch, tmp_path: Path) -> None:
    objective.save_pretrained(tmp_path / "policy")
    names = {path.name for path in (tmp_path / "policy").iterdir()}
    assert {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"} <= names
    assert all(name.endswith((".json", ".safetensors")) for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    loaded = PolicyObjective.from_pretrained(tmp_path / "policy")
    assert not loaded.training
    assert torch.equal(chunk(loaded, batch), chunk(objective, batch))
    loaded.save_pretrained(tmp_path / "policy")  # over an older checkpoint
    assert torch.equal(chunk(PolicyObjective.from_pretrained(tmp_path / "policy"), batch), chunk(objective, batch))


def test_lerobot_loads_the_checkpoint_and_acts_alike(objective: PolicyObjective, batch: Batch, tmp_path: Path) -> None:
    objective.save_pretrained(tmp_path / "policy")
    config = PreTrainedConfig.from_pretrained(tmp_path / "policy")
    policy = get_policy_class(config.type).from_pretrained(tmp_path / "policy", config=config)
    preprocessor, postprocessor = make_pre_post_processors(config, pretrained_path=str(tmp_path / "policy"))
    expected = chunk(objective, batch)
    torch.manual_seed(11)
    observation = {k: v for k, v in batch.items() if not k.startswith("action")}
    for step in range(4):
        action = postprocessor(policy.select_action(preprocessor(dict(observation))))
        assert torch.equal(action, expected[:, step])


def test_removed_weight_is_an_error(objective: PolicyObjective, tmp_path: Path) -> None:
    objective.save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "model.safetensors"
    weights = load_file(path)
    removed = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != removed}, path)
    with pytest.raises(UserError, match=f"1 weights missing .*{removed}"):
        PolicyObjective.from_pretrained(tmp_path / "policy")
    save_file({**weights, "extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"1 weights unexpected .*extra"):
        PolicyObjective.from_pretrained(tmp_path / "policy")
    save_file({**weights, removed: torch.zeros(1, 2, 3)}, path)
    with pytest.raises(UserError, match="of another shape"):
        PolicyObjective.from_pretrained(tmp_path / "policy")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="truncated"):
        PolicyObjective.from_pretrained(tmp_path / "policy")
    path.unlink()
    with pytest.raises(UserError, match="safetensors only"):
        PolicyObjective.from_pretrained(tmp_path / "policy")


@pytest.mark.parametrize("kind", ["diffusion_compact", "pi05_compact"])
def test_lerobots_own_loader_is_strict_for_ours(make_policy: Make, tmp_path: Path, kind: str) -> None:
    make_policy(kind).save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "model.safetensors"
    weights = load_file(path)
    lost = max(weights)
    del weights[lost]
    save_file(weights, path)
    with pytest.raises(RuntimeError, match=re.escape(lost)):
        get_policy_class(kind).from_pretrained(tmp_path / "policy")


def test_what_is_no_policy_checkpoint(make_policy: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a directory"):
        PolicyObjective.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no config\.json"):
        PolicyObjective.from_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        PolicyObjective.from_pretrained(tmp_path)
    config.write_text(json.dumps({"model": {}}))
    with pytest.raises(UserError, match="something else"):
        PolicyObjective.from_pretrained(tmp_path)
    config.write_text(json.dumps({"type": "difusion"}))
    with pytest.raises(UserError, match=r"Did you mean 'diffusion'"):
        PolicyObjective.from_pretrained(tmp_path)
    config.write_text(json.dumps({"type": "diffusion", "horizont": 8}))
    with pytest.raises(UserError, match="not a valid diffusion configuration"):
        PolicyObjective.from_pretrained(tmp_path)


def test_save_does_not_overwrite_something_else(make_policy: Make, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a policy checkpoint"):
        make_policy("pi05_compact").save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_missing_processor_is_a_user_error(objective: PolicyObjective, tmp_path: Path) -> None:
    objective.save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "policy_preprocessor.json").unlink()
    with pytest.raises(UserError, match="processors"):
        PolicyObjective.from_pretrained(tmp_path / "policy")


# ------------------------------------------------------------------------------------------------- statistics


def test_refit_replaces_the_statistics(
    objective: PolicyObjective, batch: Batch, statistics: Statistics, tmp_path: Path
) -> None:
    before = chunk(objective, batch)
    statistics["action"] = {name: 10 * value for name, value in statistics["action"].items()}
    objective.refit_statistics(statistics)
    after = chunk(objective, batch)
    torch.testing.assert_close(after, 10 * before, rtol=1e-4, atol=1e-4)
    objective.save_pretrained(tmp_path / "policy")
    assert torch.equal(chunk(PolicyObjective.from_pretrained(tmp_path / "policy"), batch), after)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_constant_dimension_does_not_blow_up(
    make_policy: Make, statistics: Statistics, batch: Batch, kind: str
) -> None:
    for name in ("min", "max", "q01", "q99"):
        statistics["action"][name][0] = 0.5
    objective = make_policy(kind)
    objective.refit_statistics(statistics)
    batch["action"][..., 0] = 0.501
    action = objective.preprocessor(batch)["action"]
    assert action[..., 0].abs().max() < 10


def test_small_units_are_not_widened(make_policy: Make, statistics: Statistics, batch: Batch) -> None:
    """Steps of .1 mm in metres: a range of 2e-4, which is no constant."""
    scaled = {name: np.array(values) for name, values in statistics["action"].items()}
    for values in scaled.values():
        values[0] *= 1e-4
    plain, small = make_policy("pi05_compact"), make_policy("pi05_compact")
    plain.refit_statistics(statistics)
    small.refit_statistics({**statistics, "action": scaled})
    wanted = plain.preprocessor(dict(batch))["action"]
    batch["action"][..., 0] *= 1e-4
    assert torch.allclose(small.preprocessor(dict(batch))["action"], wanted, atol=1e-3)


def test_bad_statistics(make_policy: Make, statistics: Statistics) -> None:
    def build(**changes: Any) -> None:
        make_policy("pi05_compact", stats={**statistics, **changes})

    with pytest.raises(UserError, match=r"'observation\.state': no 'q01'"):
        build(**{"observation.state": {"mean": np.zeros(4)}})
    with pytest.raises(UserError, match=r"'action': 'q01' has shape \(7,\), expected \(3,\)"):
        build(action={"q01": np.zeros(7), "q99": np.ones(7)})
    with pytest.raises(UserError, match="not finite"):
        build(action={"q01": np.full(3, np.nan), "q99": np.ones(3)})


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_unknown_names(make_policy: Make, kind: str) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'num_inference_steps'"):
        make_policy(kind, num_inference_step=5)
    with pytest.raises(UserError, match="no option 'input_features'"):
        make_policy(kind, input_features={})
    with pytest.raises(UserError, match=r"Did you mean 'pi05_compact'"):
        make_policy("pi05_compat")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("pi05_compact", {"n_action_steps": 9}, "n_action_steps is 9"),
        ("pi05_compact", {"max_action_dim": 2}, "max_action_dim is 2, but the data is 3 wide"),
        ("pi05_compact", {"num_heads": 3, "num_kv_heads": 2}, "multiple of num_kv_heads"),
        ("diffusion", {"vision_backbone": "vgg"}, "ResNet"),
        ("diffusion", {"horizon": 6}, "horizon"),
        ("diffusion_compact", {"resize_shape": (64, 64)}, "resize_shape is"),
        ("diffusion_compact", {"vision_backbone": "resnet50"}, "has no ResNet"),
        (
            "pi05_compact",
            {"tokenizer_buckets": 10**9},
            "pi05_compact: 'tokenizer_buckets' is 1000000000; expected at most",
        ),
        ("pi05_compact", {"sampling_temperature": float("nan")}, "expected a finite number"),
        ("pi05_compact", {"action_patch": 3}, r"chunk_size is 8; expected a multiple of action_patch \(3\)"),
    ],
)
def test_refused_options(make_policy: Make, kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_policy(kind, **options)


def test_diffusion_compact_sees_whole_cells(statistics: Statistics, batch: Batch) -> None:
    sizes: dict[str, Any] = {"state_dim": 4, "action_dim": 3, "stats": statistics, "options": {"horizon": 8}}
    objective = build_policy("diffusion_compact", cameras={IMAGE: (3, 32, 36)}, **sizes)  # padded to 40
    assert not [name for name, _ in objective.named_modules() if "layer4" in name or "pool" in name]  # of the ResNet
    objective.loss({**batch, "observation.image": torch.rand(4, 3, 32, 36)})[0].backward()
    encoder = objective.policy.get_submodule("diffusion.rgb_encoder.0")
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    other = torch.rand(4, 3, 64, 72)
    with pytest.raises(ValueError, match="picture of 64 x 72: expected 32 x 36"):
        encoder(other)
    assert encoder.eval()(other).shape == (4, 128)


@pytest.mark.parametrize("kind", ["pi05_compact", "diffusion_compact"])
def test_cameras_of_any_number_and_shape(kind: str, statistics: Statistics, batch: Batch, tmp_path: Path) -> None:
    shapes = {"observation.images.top": (3, 48, 70), "observation.images.hand": (3, 33, 20), IMAGE: (3, 16, 24)}
    for camera in shapes:
        statistics[camera] = statistics[IMAGE]
    sizes: dict[str, Any] = {"state_dim": 4, "action_dim": 3, "stats": statistics}
    small: dict[str, Any] = {"chunk_size": 8, "width": 32, "expert_width": 32, "num_inference_steps": 2}
    if kind == "diffusion_compact":
        small = {"horizon": 8, "down_dims": (16, 32), "num_inference_steps": 2}
    objective = build_policy(kind, cameras=shapes, options=small, **sizes)
    batch |= {camera: torch.rand(4, *shape) for camera, shape in shapes.items()}
    objective.loss(batch)[0].backward()
    wake_up = [p for name, p in objective.named_parameters() if "modulation" in name]
    for parameter in wake_up:
        torch.nn.init.normal_(parameter, std=0.3)
    for camera in shapes:
        assert not torch.equal(chunk(objective, batch), chunk(objective, {**batch, camera: 1 - batch[camera]}))
    objective.save_pretrained(tmp_path / "policy")
    loaded = PolicyObjective.from_pretrained(tmp_path / "policy")
    assert torch.equal(chunk(loaded, batch), chunk(objective, batch))
    config = PreTrainedConfig.from_pretrained(tmp_path / "policy")
    policy = get_policy_class(kind).from_pretrained(tmp_path / "policy", config=config)
    before, after = make_pre_post_processors(config, pretrained_path=str(tmp_path / "policy"))
    seen = {key: value for key, value in batch.items() if not key.startswith("action")}
    seen[IMAGE] = torch.rand(4, 3, 96, 120)  # as a simulator renders it
    assert after(policy.select_action(before(seen))).shape == (4, 3)


@pytest.mark.parametrize("separate", [False, True])
def test_diffusion_compact_takes_lerobots_cameras_and_memory(separate: bool) -> None:
    """As LeRobot's own diffusion policy: several cameras, several observations."""
    features = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for name in ("top", "hand")
    }
    state, action = PolicyFeature(FeatureType.STATE, (4,)), PolicyFeature(FeatureType.ACTION, (3,))
    config = DiffusionCompactConfig(
        input_features={**features, "observation.state": state},
        output_features={"action": action},
        n_obs_steps=2,
        use_separate_rgb_encoder_per_camera=separate,
        device="cpu",
    )
    policy = get_policy_class("diffusion_compact")(config)
    batch = {key: torch.rand(5, 2, 3, 32, 32) for key in features}
    batch |= {"observation.state": torch.rand(5, 2, 4), "action": torch.rand(5, 16, 3)}
    loss, _ = policy.forward({**batch, "action_is_pad": torch.zeros(5, 16, dtype=torch.bool)})
    loss.backward()
    assert len([name for name, _ in policy.named_parameters() if name.endswith("stem.weight")]) == 1 + separate


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("action", torch.zeros(4, 8, 7), r"action: got shape \(4, 8, 7\), expected \(4, 8, 3\)"),
        ("action", torch.zeros(4, 5, 3), r"action: got shape \(4, 5, 3\), expected \(4, 8, 3\)"),
        ("observation.state", torch.zeros(4, 6), r"state: got shape \(4, 6\), expected \(4, 4\)"),
        ("observation.image", torch.zeros(4, 3, 64, 64), r"image: got shape \(4, 3, 64, 64\), expected"),
        ("observation.image", torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "floating point"),
        ("task", ["one"], "1 instructions"),
    ],
)
def test_wrong_batches(objective: PolicyObjective, batch: Batch, key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective.loss({**batch, key: value})


def test_missing_key(objective: PolicyObjective, batch: Batch) -> None:
    del batch["observation.state"]
    with pytest.raises(UserError, match=r"no 'observation\.state'"):
        objective.predict_action_chunk(batch)


def test_text_encoder_is_for_diffusion(make_policy: Make, tmp_path: Path) -> None:
    for kind, message in (("pi05_compact", "for the diffusion policies"), ("diffusion", "directory not found")):
        with pytest.raises(UserError, match=message):
            make_policy(kind, text_encoder=tmp_path / "nowhere")
