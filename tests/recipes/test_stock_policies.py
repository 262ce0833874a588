"""LeRobot's own policy types through the commands: two cameras of their own sizes, mixed data, controls, provenance."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from policies.objective import PolicyObjective
from policies.policy_types import OURS
from recipes import cli
from recipes.compose import compose_config, options_of
from recipes.study import ARMS, POLICIES, cell_stages, parse_grid, pretraining_stage
from recipes.study_schema import AblateConfig
from tests.policies.hub_cache import SMALL, write_all
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.envs.metaworld import MetaWorldEnv
from toolkit.training.out_of_memory import Memory

TOP, WRIST = "observation.images.top", "observation.images.wrist"
ACT = [
    *("policy=act", "policy.options.pretrained_backbone_weights=null", "policy.options.chunk_size=8"),
    *("policy.options.n_action_steps=4", "policy.options.dim_model=32", "policy.options.n_heads=2"),
    *("policy.options.dim_feedforward=32", "optim.steps=3", "optim.batch_size=2", "optim.checkpoint_every=2"),
]


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


def result(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())["result"]


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, moving_square: Callable[..., Episode]) -> dict[str, Path]:
    """Recorded and synthetic episodes of two cameras of different sizes; the synthetic ones have a score."""
    found = {}
    for name, first, count in (("recorded", 0, 4), ("synthetic", 10, 6)):
        found[name] = path = tmp_path_factory.mktemp("stock") / name
        with EpisodeWriter(path, 10, ["y", "x"], ["dy", "dx"]) as writer:
            for seed in range(count):
                episode = moving_square(first + seed, size=64)
                cameras = {TOP: episode.images[:, 8:56], WRIST: episode.images[:, :32, :40]}
                about = {} if name == "recorded" else {"source": "synthetic", "score_flow_loss": float(seed)}
                writer.add(replace(episode, images=None, cameras=cameras, metadata={**episode.metadata, **about}))
    return found


@pytest.fixture(scope="module")
def trained(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ACT on half synthetic clips, of chosen episodes that got each other's actions."""
    out = tmp_path_factory.mktemp("trained") / "act"
    sources = [f"real=[{data['recorded']}]", f"synthetic=[{data['synthetic']}]", "synthetic_fraction=0.5"]
    control = ['select=["score_flow_loss<=4"]', "shuffle_actions=true", "weight_by=score_flow_loss"]
    run("pretrain", *ACT, *sources, *control, f"out={out}")
    return out


def test_act_is_pretrained_at_recorded_sizes_with_mixing_and_provenance(trained: Path) -> None:
    found = result(trained)
    assert (found["policy"], found["steps"], found["episodes"]) == ("act", 3, [4, 5])
    assert found["synthetic_fraction"] == pytest.approx(0.5)
    config = json.loads((trained / "pretrained_model/config.json").read_text())
    shapes = {key: feature["shape"] for key, feature in config["input_features"].items()}
    assert shapes == {TOP: [3, 48, 64], WRIST: [3, 32, 40], "observation.state": [2]}
    assert (config["chunk_size"], config["type"]) == (8, "act")
    told = json.loads((trained / "pretrained_model/conventions.json").read_text())
    assert told["canvas"]["own"] == {TOP: [48, 64], WRIST: [32, 40]}
    names = {path.name for path in (trained / "pretrained_model").iterdir()}
    assert {"train_config.json", "README.md", "seen_scenes.json"} <= names
    statistics = load_file(trained / "pretrained_model/policy_preprocessor_step_3_normalizer_processor.safetensors")
    np.testing.assert_allclose(statistics[f"{TOP}.mean"].flatten(), [0.485, 0.456, 0.406])  # as LeRobot: of ImageNet


def test_it_is_finetuned_with_lora_and_evaluated(trained: Path, data: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = trained / "pretrained_model"
    few = ["optim.steps=3", "optim.batch_size=2", "optim.learning_rate=1e-3", "policy.lora_rank=2"]
    run("finetune", f"checkpoint={checkpoint}", f"real=[{data['recorded']}]", *few, f"out={tmp_path / 'tuned'}")
    before, after = (
        load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "tuned/pretrained_model")
    )
    assert before.keys() == after.keys()  # merged: no adapter is left
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved
    assert not [name for name in moved if "backbone" in name]
    assert result(tmp_path / "tuned")["pretrained_id"]
    words = [f"checkpoint={tmp_path / 'tuned/pretrained_model'}", f"dataset={data['recorded']}", "batch_size=3"]
    run("evaluate", *words, f"out={tmp_path / 'measured'}")
    error = result(tmp_path / "measured")["open_loop"]
    assert (error["n"], error["n_action_steps"]) == (4, 4)
    assert np.isfinite(error["action_distance"])


def test_pretraining_goes_on_from_a_checkpoint_for_other_data(
    trained: Path, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["policy=act", f"policy.path={trained / 'pretrained_model'}", f"real=[{data['recorded']}]"]
    run("pretrain", *words, "optim.steps=2", "optim.batch_size=2", f"out={tmp_path / 'on'}")
    found = result(tmp_path / "on")
    assert found["pretrained_id"]
    assert found["steps"] == 2
    line = complaint(capsys, "pretrain", "policy=vqbet", words[1], words[2], f"out={tmp_path / 'x'}")
    assert "of type 'act'; choose policy=act" in line
    line = complaint(capsys, "pretrain", "policy=act", "policy.options.dim_modell=3", f"out={tmp_path / 'x'}")
    assert "Did you mean 'dim_model'" in line


def test_a_policy_with_a_memory_sees_every_step_in_open_loop(data: dict[str, Path], tmp_path: Path) -> None:
    small = ["policy=diffusion", "policy.options.n_obs_steps=2", "policy.options.horizon=8"]
    small += ["policy.options.n_action_steps=4", "policy.options.down_dims=[16,32]", f"cameras=[{TOP}]"]
    little = ["optim.steps=2", "optim.batch_size=2", f"real=[{data['recorded']}]"]
    run("pretrain", *small, *little, f"out={tmp_path / 'trained'}")
    words = [f"checkpoint={tmp_path / 'trained/pretrained_model'}", f"dataset={data['recorded']}"]
    run("evaluate", *words, f"out={tmp_path / 'measured'}")
    assert result(tmp_path / "measured")["open_loop"]["n_action_steps"] == 1


@pytest.mark.parametrize("kind", ["pi05_compact", "diffusion_compact"])
def test_our_policies_take_cameras_of_any_shape(kind: str, data: dict[str, Path], tmp_path: Path) -> None:
    little = [f"policy={kind}", "own_sizes=true", "optim.steps=2", "optim.batch_size=2", f"real=[{data['recorded']}]"]
    run("pretrain", *little, f"out={tmp_path / 'trained'}")
    config = json.loads((tmp_path / "trained/pretrained_model/config.json").read_text())
    assert config["input_features"][WRIST]["shape"] == [3, 32, 40]
    words = [f"checkpoint={tmp_path / 'trained/pretrained_model'}", f"dataset={data['recorded']}"]
    run("evaluate", *words, f"out={tmp_path / 'measured'}")


def test_a_dry_run_says_what_pi05_takes(
    data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "policy=pi05", f"real=[{data['recorded']}]", "dry_run=true"]
    run(*words, f"out={tmp_path / 'whole'}")
    assert "held by h200" in capsys.readouterr().out
    run(*words, "policy.lora_rank=16", "policy.options.dtype=bfloat16", f"out={tmp_path / 'lora'}")
    whole, small = (result(tmp_path / name)["dry_run"] for name in ("whole", "lora"))
    assert whole["parameters"] == whole["trained_parameters"]
    assert whole["total"] == pytest.approx(20 * whole["parameters"], rel=0.01)  # float32, five times
    assert small["total"] < 0.13 * whole["total"]


def test_a_full_gpu_is_one_line_in_training_and_in_evaluation(
    trained: Path,
    data: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise torch.cuda.OutOfMemoryError("Tried to allocate 2.00 GiB")

    memory = Memory(total=10 << 30, before=1 << 30, reached=9 << 30)
    monkeypatch.setattr("toolkit.training.out_of_memory.measured", lambda *arguments: memory)
    monkeypatch.setattr("recipes.evaluate.open_loop_error", full)
    monkeypatch.setattr(PolicyObjective, "loss", full)
    words = [f"checkpoint={trained / 'pretrained_model'}", f"dataset={data['recorded']}", f"out={tmp_path / 'a'}"]
    assert "batch_size=32: out of memory" in (line := complaint(capsys, "evaluate", *words))
    assert "batch_size=16 should fit" in line
    line = complaint(capsys, "pretrain", *ACT, f"real=[{data['recorded']}]", f"out={tmp_path / 'b'}")
    assert "optim.batch_size=1 optim.gradient_accumulation=2 should fit" in line
    assert "policy.lora_rank=16, freeze_vision_encoder=true" in line


# ------------------------------------------------------------------------------------------------------------ the study


def test_every_type_has_a_config_with_the_rate_of_lerobot() -> None:
    from lerobot.configs import PreTrainedConfig

    import policies.checkpoint_config  # noqa: F401  (types register themselves)

    assert set(POLICIES) == set(options_of("policy"))
    for name in options_of("policy"):
        config = compose_config("pretrain", [f"policy={name}"])
        assert config.policy.type == name
        if name not in (*OURS, "eo1"):  # whose config asks the hub
            preset = PreTrainedConfig.get_choice_class(name)(device="cpu").get_optimizer_preset()
            assert config.optim.learning_rate == preset.lr


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if not arm.generator])
def test_act_can_be_studied(config: Callable[..., AblateConfig], arm: str) -> None:
    study = config(f"grid=['arm={arm} policy=act']")
    (cell,) = parse_grid(study)
    stages = [pretraining_stage(study, Path("root"), cell)] if ARMS[arm].finetuned else []
    trainings = [stage for stage in [*stages, *cell_stages(study, Path("root"), cell)] if stage.command != "evaluate"]
    assert [stage.config.optim.learning_rate for stage in trainings] == [1e-5] * len(trainings)
    assert trainings[0].config.policy.type == "act"


def option(key: str, value: object) -> str:
    """A setting of a policy as Hydra reads it."""
    return f"policy.options.{key}={json.dumps(value).replace(chr(34), '')}"


@pytest.mark.long  # starts LeRobot anew for each
@pytest.mark.parametrize("kind", SMALL)
def test_the_same_checkpoint_in_evaluate_and_in_lerobot_eval(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps on data of Meta-World's widths, then five steps of an episode by either tool."""
    write_all(tmp_path / "hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "recorded", 80, MetaWorldEnv.state_names, MetaWorldEnv.action_names) as writer:
        numbers = rng.normal(size=(2, 20, 4)).astype(np.float32)
        writer.add(Episode(rng.integers(0, 255, (20, 64, 64, 3), dtype=np.uint8), *numbers, "push the puck", {}))
    names = {"observation.image": "observation.images.image"} if kind == "fastwam" else {}
    rename = [f"rename={{{old}: {new}}}" for old, new in names.items()]
    small = {**SMALL[kind]}
    for part in [key for key in small if key.endswith("dit_config")]:
        small[part] = {**small[part], "action_dim": 4}
    words = [f"policy={kind}", *(option(*item) for item in small.items()), *rename]
    words += ["optim.steps=3", "optim.batch_size=2", f"real=[{tmp_path / 'recorded'}]"]
    run("pretrain", *words, f"out={tmp_path / kind}")
    policy = tmp_path / kind / "pretrained_model"
    rolled = ["tasks=[push]", "episodes_per_task=1", "max_steps=5", *rename, f"out={tmp_path / 'evaluate'}"]
    run("evaluate", f"checkpoint={policy}", *rolled)
    assert result(tmp_path / "evaluate")["suites"]["unseen"]["n"] == 1
    words = [f"--policy.path={policy}", "--env.type=vag_metaworld", "--env.task=push", "--env.episode_length=5"]
    words += ["--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false", "--policy.device=cpu"]
    words += [f"--rename_map={json.dumps(names)}"] if names else []
    script = Path(sys.executable).with_name("lerobot-eval")
    done = subprocess.run(
        [str(script), *words, f"--output_dir={tmp_path / 'eval'}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (told,) = (tmp_path / "eval").rglob("eval_info.json")
    assert json.loads(told.read_text())["overall"]["n_episodes"] == 1
