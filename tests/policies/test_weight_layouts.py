"""Names of weights as they are published, on LeRobot's own networks: full size without memory, or small and loaded."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.xvla.configuration_xvla import XVLAConfig
from lerobot.policies.xvla.modeling_xvla import XVLAPolicy
from safetensors.torch import load_file, save_file

from policies.checkpoint_config import Loading, read_config
from policies.checkpoints import checkpoint_directory, load_weights
from policies.factory import Wanted, plan_policy
from policies.weight_layouts import Layout
from toolkit.base.errors import UserError
from vag_core.checkpoint import Shapes, check_names, numbers

CAMERA = "observation.images.image"
HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
WORDS = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"


# --------------------------------------------------------------------------- openpi's conversion to PyTorch: pi0, pi05


@pytest.fixture(scope="module", params=["pi0", "pi05"])
def pi(request: pytest.FixtureRequest) -> PreTrainedPolicy:
    return plan_policy(Wanted(request.param), {CAMERA: (224, 224)}, 8, 7)


def published(policy: PreTrainedPolicy) -> Shapes:
    """Names in `lerobot/pi0_base` and `pi05_base`: no `model.` before them, the words' embedding as the head alone."""
    shapes = {name.removeprefix("model."): tuple(value.shape) for name, value in policy.state_dict().items()}
    del shapes[WORDS]
    return shapes


def fits(policy: PreTrainedPolicy, shapes: Shapes, **expected: set[str]) -> None:
    layout = Layout(new_robot=True)
    check_names(policy, layout(shapes, policy), Path("a"), "policy")
    assert (layout.dropped, layout.at_random) == (expected.get("dropped", set()), set())


def test_openpis_names_are_all_of_the_networks(pi: PreTrainedPolicy) -> None:
    shapes = published(pi)
    assert len(shapes) == {"pi0": 777, "pi05": 812}[pi.name]  # as LeRobot counts them in the published files
    if pi.name == "pi05":
        assert numbers(shapes) == 3_616_757_520  # as the hub counts them in `lerobot/pi05_base`
    fits(pi, shapes)
    fits(pi, {f"model.{name}": shape for name, shape in shapes.items()})
    fits(pi, {name: tuple(value.shape) for name, value in pi.state_dict().items()})  # LeRobot's own, of today
    other = "action_time_mlp_" if pi.name == "pi05" else "time_mlp_"
    own = {"pi05": "time_mlp_", "pi0": "action_time_mlp_"}[pi.name]
    fits(pi, {re.sub(f"^{own}", other, name): shape for name, shape in shapes.items()})


def test_what_pi05_has_no_use_for_is_dropped_and_said(pi: PreTrainedPolicy, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(new_robot=False)
    layout({**published(pi), "state_proj.weight": (1024, 32)}, pi)
    assert layout.dropped == ({"state_proj.weight"} if pi.name == "pi05" else set())
    layout.say(Path("a"))
    said = capsys.readouterr().err
    assert said.count("\n") == len(layout.dropped)
    assert ("'state_proj.weight': are not used" in said) == (pi.name == "pi05")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shapes: shapes.pop("action_in_proj.bias"), "1 weights missing .*'model.action_in_proj.bias'"),
        (lambda shapes: shapes.pop(HEAD), "2 weights missing .*lm_head.weight'"),
        (lambda shapes: shapes.update(wrong=(3,)), "1 weights unexpected .*'model.wrong'"),
        (lambda shapes: shapes.update({"action_in_proj.bias": (3,)}), "1 weights of another shape .*action_in_proj.b"),
    ],
)
def test_a_wrong_name_is_refused(pi: PreTrainedPolicy, change: Callable[[Any], Any], message: str) -> None:
    shapes = published(pi)
    change(shapes)
    with pytest.raises(ValueError, match=message):
        fits(pi, shapes)


def test_an_embedding_of_its_own_is_not_the_heads(pi: PreTrainedPolicy) -> None:
    for prefix in ("", "model."):
        tensors = {f"{prefix}{WORDS}": torch.ones(2), f"{prefix}{HEAD}": torch.zeros(2)}
        renamed = Layout(new_robot=False)(tensors, pi)
        assert renamed[f"model.{WORDS}"].tolist() == [1, 1]
        assert renamed[f"model.{HEAD}"].tolist() == [0, 0]
    assert Layout(new_robot=False)({HEAD: torch.zeros(2)}, pi)[f"model.{WORDS}"].tolist() == [0, 0]


# ------------------------------------------------------------------------------------ xvla, of before transformers 5

FLORENCE = {
    "vision_config": {
        **{"model_type": "davit", "dim_embed": [32] * 4, "num_heads": [4] * 4, "num_groups": [4] * 4},
        **{"depths": [1] * 4, "patch_size": [7, 3, 3, 3], "patch_stride": [4, 2, 2, 2], "patch_padding": [3, 1, 1, 1]},
        **{"patch_prenorm": [False, True, True, True], "window_size": 4, "projection_dim": 16},
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    },
    "text_config": {
        **{"model_type": "florence2_language", "vocab_size": 64, "d_model": 16, "max_position_embeddings": 64},
        **{"encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2},
        **{"decoder_layers": 1, "decoder_ffn_dim": 32, "decoder_attention_heads": 2},
    },
    **{"projection_dim": 16, "pad_token_id": 1},
}
# From the names of today to those of Microsoft's own Florence-2, which the published checkpoints have.
BLOCK = r"(model\.vlm\.vision_tower\.blocks\.\d+\.\d+\.(spatial|channel)_block)\."
OLD = [
    (r"(model\.vlm\.vision_tower\.convs\.\d+)\.conv\.", r"\1.proj."),
    (BLOCK + r"(conv[12])\.", r"\1.\3.fn.dw."),
    (BLOCK + r"norm1\.", r"\1.\2_attn.norm."),
    (BLOCK + r"(window|channel)_attn\.", r"\1.\3_attn.fn."),
    (BLOCK + r"norm2\.", r"\1.ffn.norm."),
    (BLOCK + r"ffn\.", r"\1.ffn.fn.net."),
    (r"(model\.vlm)\.multi_modal_projector\.image_position_embed\.", r"\1.image_pos_embed."),
    (r"(model\.vlm)\.multi_modal_projector\.image_projection\.weight", r"\1.image_projection"),
    (r"(model\.vlm)\.multi_modal_projector\.", r"\1."),
    (r"(model\.vlm\.language_model)\.", r"\1.model."),
]


def old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the Florence-2 of before had under other names, with its bias of the words' head."""
    renamed = {"model.vlm.language_model.final_logits_bias": torch.zeros(1, 64)}
    for name, value in weights.items():
        old = name
        for now, before in OLD:
            old, found = re.subn(now, before, name, count=1)
            if found:
                break
        old = re.sub(r"(spatial_block\.)spatial_attn", r"\1window_attn", old)
        renamed[old] = value.T.contiguous() if old.endswith("image_projection") else value
    return renamed


@pytest.fixture(scope="module")
def xvla() -> XVLAPolicy:
    torch.manual_seed(0)
    return XVLAPolicy(
        XVLAConfig(
            device="cpu",
            florence_config=FLORENCE,
            **{"hidden_size": 32, "depth": 1, "num_heads": 2, "num_domains": 2, "len_soft_prompts": 2, "dim_time": 8},
            **{"chunk_size": 4, "n_action_steps": 4, "action_mode": "joint", "max_state_dim": 14},
            input_features={
                CAMERA: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
                "observation.state": PolicyFeature(FeatureType.STATE, (14,)),
            },
            output_features={"action": PolicyFeature(FeatureType.ACTION, (14,))},
        )
    )


@pytest.fixture
def old(xvla: XVLAPolicy, tmp_path: Path) -> Path:
    """A small checkpoint under the old names."""
    xvla.save_pretrained(tmp_path)
    weights = old_names(load_file(tmp_path / "model.safetensors"))
    assert not any(".multi_modal_projector." in name for name in weights)
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def same(one: PreTrainedPolicy, other: PreTrainedPolicy) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x.float(), y.float()) for (a, x), (b, y) in pairs)


def test_an_old_xvla_is_loaded_as_lerobot_loads_it(
    old: Path, xvla: XVLAPolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert same(load_weights(read_config(old), old), xvla)
    assert same(XVLAPolicy.from_pretrained(old), xvla)
    said = capsys.readouterr().err
    assert said.count("vag: warning") == 1
    assert "final_logits_bias': are not used by this version of LeRobot" in said
    weights = load_file(old / "model.safetensors")
    save_file({**weights, "model.vlm.extra": torch.zeros(1)}, old / "model.safetensors")
    with pytest.raises(UserError, match="1 weights unexpected .*'model.vlm.extra'"):
        load_weights(read_config(old), old)
    del weights["model.vlm.image_proj_norm.bias"]
    save_file(weights, old / "model.safetensors")
    with pytest.raises(UserError, match="1 weights missing .*multi_modal_projector.image_proj_norm.bias'"):
        load_weights(read_config(old), old)


def test_bfloat16_in_the_file(old: Path, xvla: XVLAPolicy) -> None:
    half = {name: value.bfloat16() for name, value in load_file(old / "model.safetensors").items()}
    save_file(half, old / "model.safetensors")
    loaded = load_weights(read_config(old), old)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, xvla.state_dict()[name].bfloat16().float())


def test_statistics_among_the_weights_are_dropped_and_said(
    old: Path, xvla: XVLAPolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in checkpoints of before processors, of one dataset or of several."""
    of_old = {
        "normalize_inputs.buffer_observation_state.mean": torch.zeros(14),
        "normalize_inputs.so100-blue_buffer_observation_state.std": torch.full((14,), torch.inf),
        "unnormalize_outputs.buffer_action.std": torch.ones(14),
    }
    xvla.save_pretrained(old)
    save_file({**load_file(old / "model.safetensors"), **of_old}, old / "model.safetensors")
    assert same(load_weights(read_config(old), old), xvla)
    assert "'normalize_inputs.buffer_observation_state.mean' and 2 more: are not used" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- for another robot


class OfVlaJepa(torch.nn.Module):
    """What the layout of weights asks a policy for, with layers of a width; vla_jepa itself needs Qwen3-VL."""

    name = "vla_jepa"

    def __init__(self, width: int, reinit: list[str] | None) -> None:
        super().__init__()
        self.config = SimpleNamespace(reinit_modules=reinit)
        self.encoder = torch.nn.Linear(width, 2)
        self.head = torch.nn.Linear(width, 2)


def test_modules_that_vla_jepa_names_are_new_where_they_do_not_fit() -> None:
    tensors = {name: value + 1 for name, value in OfVlaJepa(3, None).state_dict().items()}
    for reinit, new_robot, expected in (
        (["head", "encoder"], True, {"head.weight", "encoder.weight"}),
        (["head"], True, {"head.weight"}),
        (["head"], False, set()),
        (None, True, set()),
    ):
        policy, layout = OfVlaJepa(5, reinit), Layout(new_robot)
        named = layout(tensors, policy)
        assert layout.at_random == expected
        for name, value in named.items():
            assert torch.equal(value, policy.state_dict()[name] if name in expected else tensors[name])


# ----------------------------------------------------------------------------------------- configs, and files in parts


def test_fields_of_another_version_are_named(old: Path) -> None:
    """Those of `lerobot/pi0`, which LeRobot 0.4 and later refuse."""
    fields = {"attention_implementation": "eager", "proj_width": 1024, "num_steps": 10, "train_state_proj": True}
    values = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**values, **fields}))
    with pytest.raises(UserError, match="config.json: .*does not have: 'attention_implementation', 'num_ste") as told:
        read_config(old, Loading())
    assert "\n" not in str(told.value)


def test_weights_in_parts_and_adapters_are_refused(old: Path) -> None:
    (old / "model.safetensors.index.json").write_text("{}")
    (old / "adapter_config.json").write_text("{}")
    assert checkpoint_directory(str(old)) == old  # there is the whole file too
    (old / "model.safetensors").unlink()
    with pytest.raises(UserError, match="index.json: the weights are in several files"):
        checkpoint_directory(str(old))
    (old / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="adapter_config.json: an adapter of peft"):
        load_weights(read_config(old), old)
