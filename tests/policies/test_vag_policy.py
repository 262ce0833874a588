"""The generator as a policy: its own plans and samples, LeRobot's layout, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policies.stock import load_policy
from policies.vag_policy.objective import GeneratorObjective, load_generator_policy
from toolkit.base.errors import UserError
from toolkit.data.canvas import Canvas
from toolkit.data.conventions import Conventions
from toolkit.data.episode import IMAGE, STATE, TASK
from toolkit.data.windows import Windows
from vag_core import Generator, GeneratorConfig
from vag_core.backbones.directory import base_id, locate
from vag_core.backbones.models import fit_to_model
from vag_core.config import (
    ActionOnlyConfig,
    ForwardDynamicsConfig,
    InstructionConfig,
    PretrainedConfig,
    PretrainedTokenizerConfig,
    UNetConfig,
)

TOP, WRIST = "observation.images.top", "observation.images.wrist"


def save_generator(path: Path, canvas: Canvas | None = None, random_start: bool | None = None, **config: Any) -> Path:
    """A generator of the shipped sizes, but for short windows, as train-generator leaves it; weights are random."""
    torch.manual_seed(0)
    canvas = canvas or Canvas.single((64, 64))
    sizes = {"image_size": list(canvas.size), "views": list(canvas.grid), "num_frames": 9, "frame_stride": 2}
    shape = GeneratorConfig(**{**sizes, **config})
    if isinstance(shape.video, PretrainedConfig):
        directory = locate(shape.video.path)
        fit_to_model(shape, directory)
        shape.video.base_id = base_id(directory)
    made = Generator(shape)
    for weight in made.parameters():  # what begins at zero gets values, as training gives them
        if weight.requires_grad and not weight.any():
            torch.nn.init.normal_(weight, std=0.05)
    made.trajectory.set_statistics(*(torch.full((8,), value).numpy() for value in (0.1, 0.5, -1.0, 1.0)))
    made.save_pretrained(path)
    Conventions("data", 20, ["x", "y", "z", "grip"], ["dx", "dy", "dz", "dgrip"], canvas).write(path)
    if random_start is not None:
        Windows(random_start, {"push": [17]}).write(path)
    return path


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_generator(tmp_path_factory.mktemp("generator") / "generator", random_start=True)


def observe(size: int, cameras: tuple[str, ...] = (IMAGE,), shape: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(3)
    pictures = {camera: torch.randint(0, 256, (size, 3, *shape), generator=rng) / 255 for camera in cameras}
    tasks = ["push the puck", "open the door", "close it"][:size]
    return {**pictures, STATE: torch.randn(size, 4, generator=rng) / 2, TASK: tasks}


def as_generators_see(seen: dict[str, Any], camera: str = IMAGE) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    return (seen[camera] * 255).round().byte().permute(0, 2, 3, 1).contiguous(), seen[STATE], seen[TASK]


def test_a_generators_directory_acts_with_its_own_plan(generator: Path) -> None:
    policy = load_policy(generator)
    assert isinstance(policy, GeneratorObjective)
    assert (policy.policy_type, policy.config.sample, policy.n_action_steps) == ("vag_policy", "plan", 16)
    assert (policy.picture_size, policy.cameras) == ((64, 64), [IMAGE])
    seen = observe(3)
    expected, _ = Generator.from_pretrained(generator).plan_actions(*as_generators_see(seen))
    torch.testing.assert_close(policy.predict_action_chunk(seen, [1, 2, 3]), expected, atol=0, rtol=0)
    assert policy.imagined(0) is None


def test_a_joint_sample_has_the_noise_of_its_seed_alone_and_in_a_batch(generator: Path) -> None:
    settings = {"sample": "joint", "order": "synchronised", "num_inference_steps": 2, "n_action_steps": 5}
    policy = load_generator_policy(generator, settings={**settings, "save_predicted_video": True})
    seen, seeds = observe(3), [11, 12, 13]
    chunk = policy.predict_action_chunk(seen, seeds)
    expected = Generator.from_pretrained(generator).sample(
        *as_generators_see(seen),
        order="synchronised",
        num_inference_steps=2,
        rng=[torch.Generator().manual_seed(seed) for seed in seeds],
    )
    torch.testing.assert_close(chunk, expected.actions[:, :5], atol=0, rtol=0)
    pictures = policy.imagined(1)
    assert pictures is not None
    assert pictures.shape == (6, 64, 64, 3)  # a picture every second step, held in between
    assert (pictures == expected.frames[1, [0, 0, 1, 1, 2, 2]].numpy()).all()
    alone = {key: value[1:2] for key, value in seen.items()}
    torch.testing.assert_close(policy.predict_action_chunk(alone, seeds[1:2]), chunk[1:2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(policy.predict_action_chunk(alone, [99]), chunk[1:2], atol=1e-3)


def test_cameras_are_put_where_the_generator_sees_them(tmp_path: Path) -> None:
    canvas = Canvas({TOP: (64, 64), WRIST: (64, 64)}, (64, 64))
    path = save_generator(tmp_path / "two", canvas)
    policy = load_generator_policy(path)
    assert policy.cameras == [TOP, WRIST]
    seen = observe(2, (WRIST, TOP))
    whole = torch.cat([seen[TOP], seen[WRIST]], dim=3)
    expected, _ = Generator.from_pretrained(path).plan_actions(*as_generators_see({**seen, IMAGE: whole}))
    torch.testing.assert_close(policy.predict_action_chunk(seen), expected, atol=0, rtol=0)


SCRIPT = """
import sys
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
assert make_policy_config("vag_policy", device="cpu").type == "vag_policy"
seen, path, out = sys.argv[1:]
config = PreTrainedConfig.from_pretrained(path)
policy = get_policy_class(config.type).from_pretrained(path, config=config)
before, after = make_pre_post_processors(config, pretrained_path=path)
torch.manual_seed(0)
seen, actions, pictures = torch.load(seen, weights_only=True), [], []
for step in range(6):  # as lerobot-eval does it
    actions.append(after(policy.select_action(before(seen))))
    if policy.last_predicted_latents is not None:
        pictures.append(policy.last_predicted_latents)
        policy.last_predicted_latents = None
video = policy.decode_predicted_latents(torch.cat(pictures, dim=2))
torch.save({"actions": torch.stack(actions, 1), "video": video}, out)
"""


def test_lerobot_loads_and_runs_what_is_written(generator: Path, tmp_path: Path) -> None:
    settings = {"sample": "joint", "num_inference_steps": 2, "n_action_steps": 4, "save_predicted_video": True}
    objective = load_generator_policy(generator, settings=settings)
    objective.save_pretrained(tmp_path / "policy")
    assert (tmp_path / "policy/model.safetensors").read_bytes() == (generator / "model.safetensors").read_bytes()
    seen = observe(2)
    again = load_policy(tmp_path / "policy")
    torch.testing.assert_close(
        again.predict_action_chunk(seen, [1, 2]), objective.predict_action_chunk(seen, [1, 2]), atol=0, rtol=0
    )
    torch.save(seen, tmp_path / "seen.pt")
    paths = [str(tmp_path / name) for name in ("seen.pt", "policy", "made.pt")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = torch.load(tmp_path / "made.pt", weights_only=True)
    torch.manual_seed(0)
    expected = torch.cat([objective.predict_action_chunk(seen), objective.predict_action_chunk(seen)[:, :2]], dim=1)
    torch.testing.assert_close(made["actions"], expected, atol=1e-4, rtol=0)
    assert made["video"].shape == (8, 64, 128, 3)  # the steps of both samples; scenes side by side
    first = torch.cat(list(as_generators_see(seen)[0]), dim=1)
    assert (made["video"][0] == first).all()


@pytest.mark.parametrize("family", ["cosmos", "wan"])
def test_adapters_of_a_pretrained_video_model_are_written_as_they_were_trained(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setenv("VAG_CACHE", str(tmp_path / "cache"))
    video, text = PretrainedConfig(family=family, path=f"tiny:{family}", lora_rank=2), InstructionConfig(kind="tokens")
    path = save_generator(tmp_path / "made", video=video, tokenizer=PretrainedTokenizerConfig(), instruction=text)
    settings = {"sample": "joint", "num_inference_steps": 2, "guidance_scale": 3.0}
    settings |= {"negative_prompt": "blurry", "save_predicted_video": True}
    objective, seen = load_generator_policy(path, settings=settings), observe(2)

    def sampled(objective: GeneratorObjective) -> tuple[torch.Tensor, torch.Tensor]:
        actions = objective.predict_action_chunk(dict(seen), [4, 5])
        assert objective.policy.predicted is not None
        return actions, objective.policy.predicted.float()

    first = sampled(objective)
    objective.save_pretrained(tmp_path / "policy")
    assert (tmp_path / "policy/model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
    for policy in (objective, load_generator_policy(tmp_path / "policy")):
        assert all(map(torch.equal, sampled(policy), first))
    without = Generator.from_pretrained(path)
    for name, weight in without.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.zeros_(weight)
    objective.policy.generator = without
    assert not torch.equal(sampled(objective)[1], first[1])


@pytest.mark.parametrize(
    ("action", "settings", "message"),
    [
        (None, {"n_action_steps": 17}, "n_action_steps is 17; expected 1 to 16, the generator's steps"),
        (None, {"sample": "plan", "save_predicted_video": True}, "a plan has none, sample=joint has"),
        (None, {"sample": "joint", "order": "video_first"}, "video first: .* is never trained for it"),
        (None, {"method": "unipc"}, "a pretrained video model alone has"),
        (None, {"instruction_encoder": "some/encoder"}, "the generator reads bytes; leave it out"),
        (None, {"negative_prompt": "blurry"}, "it counts with a pretrained video model"),
        (UNetConfig(), {"sample": "plan"}, "plan: a generator of action.kind = unet is never trained for it"),
        (ForwardDynamicsConfig(), {}, "action.kind = forward_dynamics is never trained for it"),
        (ActionOnlyConfig(), {"save_predicted_video": True}, "the generator makes none"),
    ],
)
def test_what_was_never_trained_or_does_not_fit_is_refused(
    action: Any, settings: dict[str, Any], message: str, generator: Path, tmp_path: Path
) -> None:
    path = generator if action is None else save_generator(tmp_path / "other", action=action)
    with pytest.raises(UserError, match=message) as told:
        load_generator_policy(path, settings=settings)
    assert str(told.value).startswith(str(path))


def test_each_generator_samples_as_it_was_trained(tmp_path: Path) -> None:
    for name, action, sample in (
        ("unet", UNetConfig(), "joint"),
        ("alone", ActionOnlyConfig(plan_share=0.0), "joint"),
        ("planner", ActionOnlyConfig(plan_share=0.5), "plan"),
    ):
        policy = load_generator_policy(save_generator(tmp_path / name, action=action), settings={})
        assert policy.config.sample == sample
        assert policy.predict_action_chunk(observe(1), [0]).shape == (1, 16, 4)


def test_a_text_encoder_that_is_missing_is_told(tmp_path: Path) -> None:
    path = save_generator(tmp_path / "text", instruction=InstructionConfig(kind="embedding"))
    with pytest.raises(UserError, match="instruction_encoder is missing: name the text encoder"):
        load_policy(path)


@pytest.mark.parametrize(
    ("random_start", "steps", "told"), [(True, 4, ""), (False, 16, ""), (False, 4, "was"), (None, 4, "may have been")]
)
def test_replanning_of_a_generator_that_knows_first_pictures_alone_is_warned_of(
    random_start: bool | None, steps: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_generator(tmp_path / "generator", random_start=random_start)
    load_generator_policy(path, settings={"n_action_steps": steps}).save_pretrained(tmp_path / "policy")
    words = f"n_action_steps=4 of 16: the generator {told} trained on windows from the start" if told else "windows"
    assert (words in capsys.readouterr().err) == bool(told)
    load_policy(tmp_path / "policy")  # what is written knows it too
    assert (words in capsys.readouterr().err) == bool(told)


def test_it_is_not_trained(generator: Path) -> None:
    policy = load_generator_policy(generator)
    with pytest.raises(UserError, match="train its generator with vag train-generator"):
        policy.loss({})
    with pytest.raises(NotImplementedError, match="train its generator"):
        policy.policy.get_optim_params()


@pytest.fixture
def written(generator: Path, tmp_path: Path) -> Path:
    load_generator_policy(generator).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def change(path: Path, key: str, value: Any) -> None:
    values = json.loads(path.read_text())
    inner = values
    *way, last = key.split(".")
    for name in way:
        inner = inner[int(name)] if isinstance(inner, list) else inner[name]
    inner[last] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "generator.action.width", 10**9, "'generator' is 1000000000; expected at most"),
        ("config.json", "generator.video.depth", 5, "model.safetensors"),
        ("config.json", "generator.nothing", 1, "unknown key 'nothing'"),
        ("config.json", "generator", {}, "generator is missing"),
        ("config.json", "canvas.cell", [32, 32], "the generator sees .64, 64."),
        ("config.json", "method", "evil/repository", "names another repository or directory"),
        ("config.json", "output_features.action.shape", [3], "'action' with 4 numbers"),
        ("config.json", "n_action_steps", 0, "expected 1 to 16"),
        (
            "policy_preprocessor.json",
            "steps.0",
            {"class": "subprocess.Popen", "config": {}},
            "names the Python class",
        ),
    ],
)
def test_a_strangers_checkpoint_is_read_never_believed(
    file: str, key: str, value: Any, message: str, written: Path
) -> None:
    path = written / file
    values = json.loads(path.read_text())
    if key == "steps.0":
        values["steps"][0] = value
        path.write_text(json.dumps(values))
    else:
        change(path, key, value)
    with pytest.raises(UserError, match=message):
        load_policy(written)


def test_steps_that_change_pictures_or_actions_are_refused(written: Path) -> None:
    path = written / "policy_preprocessor.json"
    step = next(k for k, one in enumerate(json.loads(path.read_text())["steps"]) if "rename" in one["registry_name"])
    change(path, f"steps.{step}.config", {"rename_map": {STATE: "observation.other"}})
    with pytest.raises(UserError):
        load_policy(written)


def test_weights_are_loaded_strictly(written: Path, tmp_path: Path) -> None:
    tensors = load_file(written / "model.safetensors")
    name = next(iter(tensors))
    for change_of, message in ((None, "missing"), (torch.full_like(tensors[name], torch.nan), "not finite")):
        shutil.copytree(written, tmp_path / "damaged", dirs_exist_ok=True)
        rest = {key: value for key, value in tensors.items() if key != name}
        save_file(rest if change_of is None else {**rest, name: change_of}, tmp_path / "damaged/model.safetensors")
        with pytest.raises(UserError, match=message):
            load_policy(tmp_path / "damaged")
        with pytest.raises(ValueError, match=message):  # by LeRobot's own door
            type(load_generator_policy(written).policy).from_pretrained(tmp_path / "damaged")
