"""The benchmark of generators at smoke scale: systems trained, sampled, replayed and compared in one run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import recipes
from recipes import cli
from recipes.benchmark_generators import check, variants_of
from recipes.compose import compose_config

ACTION = "'generator.action.width=48','generator.action.depth=1'"
SMALL = [
    "tasks=[plate-slide]",
    "suites=[coarse]",
    "systems=[vag,two_stage_temporal,action_only]",
    "seeds=[0]",
    "episodes_per_task=2",
    "scenes_per_task=4",
    "encoder_steps=2",
    "lanes=0",
    "evaluation_lanes=1",
    f"system_train={{vag:['optim.gradient_accumulation=2',{ACTION}],two_stage_temporal:[{ACTION}],action_only:[{ACTION}]}}",
    "evaluate=['sampler.num_inference_steps=2']",
    "svd=tiny:svd",
    "svd_evaluate=['svd.num_inference_steps=1','svd.image_size=[32,48]']",
]
TRAIN = [
    "generator.tokenizer.width=32",
    "generator.tokenizer.depth=1",
    "generator.scene.width=16",
    "generator.scene.depth=1",
    "generator.video.width=48",
    "generator.video.depth=1",
    "tokenizer_optim.steps=2",
    "tokenizer_optim.batch_size=2",
    "optim.steps=2",
    "optim.batch_size=2",
]


class StandIn(torch.nn.Module):
    """Called as the TorchScript file of I3D is: mean colours of the first and the last picture."""

    def __init__(self, fewest: int) -> None:
        super().__init__()
        self.fewest = fewest

    def forward(self, clips: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert clips.shape[2] >= self.fewest
        return torch.cat([clips[:, :, 0].mean((2, 3)), clips[:, :, -1].mean((2, 3))], dim=1)


@pytest.mark.slow
@pytest.mark.long
def test_systems_are_compared_on_the_same_scenes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setenv("VAG_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    torch.jit.script(StandIn(5)).save(str(tmp_path / "i3d.pt"))
    words = [*SMALL, f"train={TRAIN}", f"i3d={tmp_path / 'i3d.pt'}"]
    assert cli.main(["benchmark", "generators", *words, f"out={out}"]) == 0
    record = json.loads((out / "record.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-2]) == record
    success = {row["system"]: row for row in record["rows"] if row["metric"] == "replay_success"}
    assert set(success) == {"vag", "two_stage_temporal", "action_only", "recorded"}
    assert (out / "vag_grid_coarse_0/generator").is_dir()  # for its video branch, which two_stage_temporal takes
    assert success["recorded"]["value"] == 1.0
    scenes = ("low_these_checkpoints", "high_these_checkpoints")
    made_by_training = [row for name, row in success.items() if name != "recorded"]
    assert all(0 <= row[scenes[0]] <= row["value"] <= row[scenes[1]] <= 1 for row in made_by_training)
    assert {(row["low"], row["note"]) for row in made_by_training} == {
        (None, "no interval of systems: 1 training run, it takes 3")
    }
    assert {row["n"] for row in success.values()} == {4}
    made = {(row["system"], row["metric"]) for row in record["rows"]}
    assert ("vag", "psnr") in made
    assert ("action_only", "psnr") not in made  # it makes no video
    distances = {(row["system"], row["metric"]): row for row in record["rows"] if "encoder_id" in row}
    assert distances["vag", "fvd"]["value"] > 0
    for metric in ("frechet_clip_distance", "joint_distance"):
        assert distances["vag", metric]["value"] > distances["vag", metric]["floor"]  # after two steps of training
        assert ("action_only", metric) not in distances
    assert ("vag", "inverse_dynamics_error_difference") in made
    card = json.loads((out / "validity_card_coarse.json").read_text())
    assert {row["corruption"] for row in card["rows"]} == {"blur", "noise", "freeze", "shuffle", "reverse"}
    pflop = {row["system"]: row["value"] for row in record["rows"] if row["metric"] == "training_pflop"}
    assert pflop["vag"] > pflop["action_only"] > 0
    compared = {row["b"] for row in record["comparisons"] if row["metric"] == "replay_success"}
    assert compared == {"two_stage_temporal", "action_only"}
    scenes = [
        json.loads((out / f"evaluate_{name}_coarse_0/run.json").read_text())["result"]["scenes"]["seed"]
        for name in ("vag", "action_only")
    ]
    assert scenes[0] == scenes[1]
    video_only = {row["metric"]: row for row in record["rows"] if row["system"] == "svd"}
    distances = {"frechet_clip_distance", "fvd"}
    assert set(video_only) == {"psnr", "ssim", "gmsd", "seconds_per_pair", "function_evaluations", *distances}
    assert {video_only[metric]["n"] for metric in ("psnr", "ssim", "gmsd")} == {4}  # as the others
    assert [row["metric"] for row in record["comparisons"] if row["b"] == "svd"] == ["psnr"]
    assert "tiny:svd, not trained on these tasks" in record["notes"]["svd"]
    made = json.loads((out / "evaluate_svd_coarse/run.json").read_text())["result"]
    assert made["scenes"]["seed"] == scenes[0]
    assert (
        made["checkpoint_id"]
        != json.loads((out / "evaluate_vag_coarse_0/run.json").read_text())["result"]["checkpoint_id"]
    )


def test_variants_are_evaluated_in_their_suite_where_their_system_takes_part() -> None:
    config: Any = OmegaConf.to_object(compose_config("benchmark generators", ["systems=[vag]"]))
    found = variants_of(config, "dense")
    assert found["vag_euler_32"].overrides == ["sampler.num_inference_steps=32"]
    assert found["dedicated_forward_dynamics"].overrides == ["given=actions"]
    assert {variant.system for variant in found.values()} == {"vag", "forward_dynamics"}
    assert variants_of(config, "coarse") == {}


def test_the_experiment_for_a_gpu_composes_every_training() -> None:
    config: Any = OmegaConf.to_object(compose_config("benchmark generators", ["experiment=generators_h100", "out=x"]))
    check(config)
    own = OmegaConf.load(Path(recipes.__file__).parent / "configs/experiment/generators_h100.yaml")
    assert set(own.system_train) == {*config.systems, *config.helpers}


def test_mistakes_are_told_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.jit.script(StandIn(9)).save(str(tmp_path / "i3d.pt"))
    for words, complaint in (
        (["systems=[vag,vag_gird]"], "unknown system 'vag_gird'"),
        (["suites=[dens]"], "unknown suite 'dens'"),
        (["systems=[vag_grid]"], "reference=vag is not among systems"),
        (["variants.vag_euler_1.system=vga"], "unknown system 'vga'"),
        (["i3d=missing.pt"], "missing.pt: not a TorchScript file"),
        ([f"i3d={tmp_path / 'i3d.pt'}"], "cannot encode clips (1, 5, 64, 64, 3)"),  # those of the suite `coarse`
        (["svd=no-such-model"], "no-such-model: directory not found"),
        (["svd=tiny:wan"], "tiny:wan: expected tiny:svd"),
        (["systems=[vag,forward_dynamics]"], "'forward_dynamics' makes no actions"),
        (["seeds=[0,0]"], "names 0 twice"),
        (["systems=[vag]", "suites=[coarse]", 'train=["optim.stepz=3"]'], "unknown key 'optim.stepz'"),
        (["systems=[vag]", "suites=[coarse]", 'evaluate=["sampler.steps=2"]'], "unknown key 'sampler.steps'"),
    ):
        few = ("suites=[coarse]", "seeds=[0]", "systems=[vag]", "helpers=[]", "variants={}")  # what is composed is many
        fewest = [word for word in few if word[:5] not in {other[:5] for other in words}]
        command = ["benchmark", "generators", *fewest, *words, f"out={tmp_path / 'run'}", "overwrite=true"]
        assert cli.main(command) == 2
        assert complaint in capsys.readouterr().err
        assert not list((tmp_path / "run").glob("train_*"))
