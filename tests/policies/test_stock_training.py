"""LeRobot's own policy classes, made small: three steps, save, load, act; new, from a checkpoint, with LoRA, frozen.

What a class hard-codes comes from a hub cache on disk; what cannot be made small is built on the meta device.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from safetensors.torch import load_file, save_file

from policies.factory import PolicyObjective, Wanted, build_policy, check_choice, plan_policy
from policies.policy_types import TRAITS, packages_of
from policies.stock import StockPolicy, load_policy
from tests.policies import hub_cache
from tests.policies.hub_cache import SMALL
from toolkit.base.errors import UserError

TOP, WRIST = "observation.images.top", "observation.images.wrist"
SIZES = {TOP: (3, 48, 64), WRIST: (3, 32, 32)}
WAYS = {"whole": {}, "lora": {"lora_rank": 4}, "frozen": {"freeze_vision_encoder": True}}


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("hub")
    hub_cache.write_all(cache)
    return cache


@pytest.fixture(autouse=True)
def offline(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache is the one on disk, for all that have read its place as they were imported."""
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def sizes_of(kind: str) -> dict[str, tuple[int, int, int]]:
    return dict.fromkeys(SIZES, (3, 32, 32)) if kind == "diffusion" else SIZES  # LeRobot's stacks its cameras


def statistics() -> dict[str, dict[str, np.ndarray]]:
    def of(*shape: int) -> dict[str, np.ndarray]:
        values = {"mean": 0.5, "std": 0.3, "min": 0, "max": 1, "q01": 0, "q99": 1}
        return {name: np.full(shape, value, np.float32) for name, value in values.items()}

    return {"observation.state": of(4), "action": of(3), **{camera: of(3, 1, 1) for camera in SIZES}}


def build(kind: str, path: Path | None = None, **wanted: Any) -> PolicyObjective:
    torch.manual_seed(0)
    return build_policy(
        kind,
        cameras=sizes_of(kind),
        state_dim=4,
        action_dim=3,
        stats=statistics(),
        options={} if path else SMALL[kind],
        wanted=Wanted(kind, path=path, **wanted),
    )


def batch_for(objective: PolicyObjective) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(1)
    lead = (2,) if objective.observation_deltas == [0] else (2, len(objective.observation_deltas))
    return {
        **{key: torch.rand(*lead, *shape, generator=rng) for key, shape in sizes_of(objective.policy_type).items()},
        "observation.state": torch.rand(*lead, 4, generator=rng),
        "action": torch.rand(2, objective.horizon, 3, generator=rng),
        "action_is_pad": torch.zeros(2, objective.horizon, dtype=torch.bool),
        "task": ["push the puck", "open the small door"],
    }


def train(objective: PolicyObjective) -> list[float]:
    """Three steps on one batch, as the training loop makes them."""
    groups, clip = objective.optimizer_groups()
    weights = [p for group in groups for p in group["params"] if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(weights, lr=1e-3), []
    for _ in range(3):
        torch.manual_seed(2)  # the same noise, so that losses can be compared
        loss, metrics = objective.train().loss(batch_for(objective))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, clip if np.isfinite(clip) else 10.0)
        optimizer.step()
        optimizer.zero_grad()
        assert all(isinstance(value, float) for value in metrics.values())
        losses.append(loss.item())
    objective.eval()
    return losses


def one(objective: PolicyObjective) -> dict[str, Any]:
    """One observation."""
    batch = batch_for(objective)
    seen = {key: value[:1] for key, value in batch.items() if not key.startswith("action")}
    if objective.observation_deltas != [0]:
        seen = {key: value[:, 0] if isinstance(value, torch.Tensor) else value for key, value in seen.items()}
    return seen


def actions(policy: PolicyObjective | StockPolicy, seen: dict[str, Any]) -> torch.Tensor:
    if isinstance(policy, StockPolicy):
        policy.reset()
    return policy.predict_action_chunk(seen, [5])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SMALL)
def test_three_steps_save_load_and_act(kind: str, way: str, tmp_path: Path) -> None:
    objective = build(kind, **WAYS[way])
    before = {name: value.clone() for name, value in objective.policy.state_dict().items()}
    losses = train(objective)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    moved = {name for name, value in objective.policy.state_dict().items() if not torch.equal(value, before[name])}
    if way == "lora":
        assert moved
        assert all("lora_" in name for name in moved)
    if way == "frozen":
        assert moved
        vision = (*TRAITS[kind].vision, "mot.layers.0.blocks.video")
        assert not [name for name in moved if name.startswith(vision) or ".blocks.video." in name]
    objective.save_pretrained(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, StockPolicy) == (kind == "diffusion")
    seen = one(objective)
    first = actions(loaded, seen)
    assert first.shape == ((1, 1, 3) if kind == "diffusion" else (1, 4, 3))
    if kind != "diffusion":
        near = 0.05 if kind == "smolvla" else 1e-5  # whose language model was trained in bfloat16
        torch.testing.assert_close(first, actions(objective, seen), rtol=1e-4, atol=near)
    # LeRobot's own loader, strictly and without peft.
    config = PreTrainedConfig.from_pretrained(tmp_path / "policy")
    assert (config.use_peft, config.pretrained_path) == (False, None)
    policy = get_policy_class(kind).from_pretrained(tmp_path / "policy", config=config, strict=True)
    preprocess, postprocess = make_pre_post_processors(config, pretrained_path=str(tmp_path / "policy"))
    assert postprocess(policy.select_action(preprocess(dict(seen)))).shape == (1, 3)


@pytest.mark.parametrize("kind", ["act", "smolvla"])
def test_a_training_goes_on_from_a_checkpoint(kind: str, tmp_path: Path) -> None:
    first = build(kind)
    train(first)
    first.save_pretrained(tmp_path / "policy")
    second = build(kind, path=tmp_path / "policy").eval()
    seen = one(first)
    torch.testing.assert_close(actions(second, seen), actions(first, seen), rtol=1e-4, atol=0.05)
    assert second.horizon == 8  # its settings too
    path = tmp_path / "policy" / "model.safetensors"
    weights = load_file(path)
    lost = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != lost}, path)
    with pytest.raises(UserError, match=f"1 weights missing .*{lost}"):
        build(kind, path=tmp_path / "policy")
    save_file({**weights, "extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"1 weights unexpected .*extra"):
        build(kind, path=tmp_path / "policy")
    with pytest.raises(UserError, match=f"of type '{kind}'; choose policy={kind}"):
        check_choice(Wanted("vqbet", path=tmp_path / "policy"))


def test_a_weight_that_does_not_fit_the_data_is_named(tmp_path: Path) -> None:
    build("act").save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match="of another shape"):
        build_policy(
            "act",
            cameras=SIZES,
            state_dim=4,
            action_dim=7,
            stats=statistics() | {"action": {name: np.ones(7) for name in ("mean", "std")}},
            options={},
            wanted=Wanted("act", path=tmp_path / "policy"),
        )


def test_fastwam_of_before_its_layers(tmp_path: Path) -> None:
    """Its blocks were under the experts, as in `lerobot/fastwam_libero_uncond_2cam224`."""
    first = build("fastwam")
    first.save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "model.safetensors"
    weights = load_file(path)
    old = {
        re.sub(r"mot\.layers\.(\d+)\.blocks\.(\w+)\.", r"mot.mixtures.\2.blocks.\1.", n): v for n, v in weights.items()
    }
    assert old.keys() != weights.keys()
    save_file(old, path)
    loaded = load_policy(tmp_path / "policy")
    assert torch.equal(actions(loaded, one(first)), actions(first.eval(), one(first)))
    save_file({**old, "model.mot.mixtures.action.blocks.7.extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"1 weights unexpected .*mot\.layers\.7\.blocks\.action\.extra"):
        load_policy(tmp_path / "policy")


def test_fastwam_for_another_robot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What turns actions and states into features is new where it is not in the file, as in `lerobot/fastwam_base`."""
    build("fastwam").save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "model.safetensors"
    weights = load_file(path)
    heads = {name for name in weights if re.search(r"\.action\.(action_encoder|head)\.|proprio_encoder", name)}
    assert len(heads) == 6
    save_file({name: value for name, value in weights.items() if name not in heads}, path)
    with pytest.raises(UserError, match="6 weights missing"):
        load_policy(tmp_path / "policy")
    capsys.readouterr()
    second = build("fastwam", path=tmp_path / "policy")
    said = capsys.readouterr().err
    assert said.count("vag: warning") == 1
    assert "are left at random, as LeRobot leaves them for another robot" in said
    for name, value in second.policy.state_dict().items():
        assert name in heads or torch.equal(value, weights[name]) or not value.is_floating_point()
    save_file({name: value for name, value in weights.items() if not name.endswith("text_embedding.0.weight")}, path)
    with pytest.raises(UserError, match="weights missing .*text_embedding"):
        build("fastwam", path=tmp_path / "policy")


def test_what_is_not_here_is_named_before_data_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for kind, name in (("smolvla", hub_cache.SMOLVLM), ("pi05", hub_cache.PALIGEMMA), ("fastwam", hub_cache.UMT5)):
        with pytest.raises(UserError, match=f"policy={kind}: needs .* of {name}, which is not in the hub's cache"):
            check_choice(Wanted(kind))
    monkeypatch.setattr("policies.policy_types._installed", lambda package: package != "num2words")
    with pytest.raises(UserError, match=r"num2words is not installed; pip install 'lerobot\[smolvla\]'"):
        check_choice(Wanted("smolvla"))
    assert "transformers" in list(packages_of("pi"))

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match="policy.options.pretrained_backbone_weights=null"):
        check_choice(Wanted("act"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tdmpc", "learns from rewards"),
        ("groot", "allow_remote_code=true|not installed"),
        ("no_such", "policy type 'no_such' is unknown"),
    ],
)
def test_types_that_cannot_be_trained_here(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_choice(Wanted(kind))


# ------------------------------------------------------------------------------- too large for this: the meta device


def test_pi05_on_the_meta_device() -> None:
    """4.14 B weights (docs/policies.md); LoRA of LeRobot's own targets trains less than 1 % of them."""
    sizes = {key: (shape[1], shape[2]) for key, shape in SIZES.items()}
    whole = plan_policy(Wanted("pi05"), sizes, 4, 3)
    parameters = list(whole.parameters())
    assert all(p.is_meta for p in parameters)
    count = sum(p.numel() for p in parameters)
    assert 4.0e9 < count < 4.3e9
    small = plan_policy(Wanted("pi05", lora_rank=16), sizes, 4, 3)
    trained = sum(p.numel() for p in small.parameters() if p.requires_grad)
    assert 0 < trained < 0.01 * count
    frozen = plan_policy(Wanted("pi05", freeze_vision_encoder=True), sizes, 4, 3)
    assert 3.6e9 < sum(p.numel() for p in frozen.parameters() if p.requires_grad) < count - 4e8


def test_smolvla_of_full_size_has_the_weights_that_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lerobot/smolvla_base` holds 500 tensors of 450,046,176 numbers, the head of the words among them."""
    from transformers import SmolVLMConfig

    hub_cache.write_smolvlm(tmp_path)
    size = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    words = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15}
    SmolVLMConfig(
        vision_config={**size, "image_size": 512, "patch_size": 16},
        text_config={**words, "model_type": "llama", "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280},
        scale_factor=4,
    ).save_pretrained(hub_cache.snapshot(tmp_path, hub_cache.SMOLVLM))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    weights = plan_policy(Wanted("smolvla"), {TOP: (48, 64)}, 4, 3).state_dict()
    assert (len(weights), sum(value.numel() for value in weights.values())) == (500, 450_046_176)
    assert "model.vlm_with_expert.vlm.lm_head.weight" in weights
