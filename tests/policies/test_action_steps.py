"""Policies that learn actions as differences: trained on these, and recorded actions handed out, chunk by chunk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from policies.factory import PolicyObjective
from toolkit.base.errors import UserError
from toolkit.data.episode import ACTION, STATE
from vag_core.representation import convert, restore

KINDS = ("pi05_compact", "diffusion_compact", "diffusion")
DIFFERENCES = ("delta", "relative_to_first")
REFERENCE = [3, -1, 0]  # of three action dimensions; the second stays as recorded
Make = Callable[..., PolicyObjective]


def observed(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if not key.startswith("action")}


@pytest.mark.parametrize("representation", DIFFERENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_differences_inside_and_recorded_actions_outside(
    kind: str, representation: str, make_policy: Make, batch: dict[str, Any], tmp_path: Path
) -> None:
    """The twin that learns actions as recorded has the same weights, so what it says are the differences."""
    objective = make_policy(kind, representation=representation, reference=REFERENCE).eval()
    plain = make_policy(kind).eval()
    places = torch.tensor(REFERENCE)
    learned = convert(batch[ACTION], batch[STATE], representation, places)
    prepared = objective.preprocessor({**batch})[ACTION]
    torch.testing.assert_close(prepared, plain.preprocessor({**batch, ACTION: learned})[ACTION])
    differences = plain.predict_action_chunk(observed(batch), [0, 1, 2, 3])
    expected = restore(differences, batch[STATE], representation, places)
    chunk = objective.predict_action_chunk(observed(batch), [0, 1, 2, 3])
    torch.testing.assert_close(chunk, expected, rtol=0, atol=1e-5)
    objective.save_pretrained(tmp_path / "policy")
    loaded = PolicyObjective.from_pretrained(tmp_path / "policy")
    assert loaded.representation == (representation, REFERENCE)
    assert torch.equal(loaded.predict_action_chunk(observed(batch), [0, 1, 2, 3]), chunk)


@pytest.mark.parametrize("representation", DIFFERENCES)
@pytest.mark.parametrize("kind", ["pi05_compact", "diffusion_compact"])
def test_lerobot_hands_out_a_chunk_from_the_state_that_it_was_predicted_at(
    kind: str, representation: str, make_policy: Make, batch: dict[str, Any], tmp_path: Path
) -> None:
    """As `lerobot-eval` does: a new state at every step, one action for each, no word when a rollout begins."""
    objective = make_policy(kind, representation=representation, reference=REFERENCE).eval()
    objective.save_pretrained(tmp_path / "policy")
    config = PreTrainedConfig.from_pretrained(tmp_path / "policy")
    policy = get_policy_class(config.type).from_pretrained(tmp_path / "policy", config=config)
    before, after = make_pre_post_processors(config, pretrained_path=str(tmp_path / "policy"))
    observation = observed(batch)
    torch.manual_seed(11)
    expected = [objective.predict_action_chunk({**observation, STATE: batch[STATE] + k}) for k in range(2)]
    torch.manual_seed(11)
    policy.reset()
    for step in range(3):  # the first rollout ends inside of a chunk
        state = batch[STATE] + 0.1 * step
        action = after(policy.select_action(before({**observation, STATE: state})))
        torch.testing.assert_close(action, expected[0][:, step], rtol=0, atol=1e-5)
    policy.reset()
    for step in range(4):
        state = batch[STATE] + 1 + 0.1 * step
        action = after(policy.select_action(before({**observation, STATE: state})))
        torch.testing.assert_close(action, expected[1][:, step], rtol=0, atol=1e-5)


def test_a_policy_that_cannot_tell_when_a_chunk_began_says_so(make_policy: Make, batch: dict[str, Any]) -> None:
    objective = make_policy("diffusion", representation="delta", reference=REFERENCE).eval()
    prepared = objective.preprocessor(observed(batch))
    action = objective.policy.select_action(prepared)
    with pytest.raises(UserError, match="this policy type does not tell when that was; run it with `vag evaluate`"):
        objective.postprocessor(action)


def test_a_checkpoint_with_half_of_the_pair_is_refused(make_policy: Make, tmp_path: Path) -> None:
    make_policy("pi05_compact", representation="delta", reference=REFERENCE).save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy/policy_postprocessor.json"
    kept = path.read_text()
    values = json.loads(kept)
    values["steps"] = [step for step in values["steps"] if step["registry_name"] != "vag_restore_actions"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="'vag_restore_actions' after the policy, or neither"):
        PolicyObjective.from_pretrained(tmp_path / "policy")
    path.write_text(kept)
    path = tmp_path / "policy/policy_preprocessor.json"
    for wrong, said in (
        ({"reference": [4, -1, 0]}, "expected numbers from -1 to 3"),
        ({"reference": [0]}, "expected 3 numbers"),
        ({"reference": 1}, "no list of whole numbers"),
        ({"representation": "velocity"}, "expected one of absolute, delta"),
    ):
        values = json.loads(path.read_text())
        (step,) = (step for step in values["steps"] if step["registry_name"] == "vag_convert_actions")
        good, step["config"] = step["config"], {**step["config"], **wrong}
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match=said):
            PolicyObjective.from_pretrained(tmp_path / "policy")
        step["config"] = good
        path.write_text(json.dumps(values))
