"""Several cameras of several shapes, from recordings to a policy: all commands see all of them, under their names."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.factory import PolicyObjective
from recipes import cli
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_layout import read_info
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.pictures import read_pictures
from vag_core import Generator

TOP, WRIST, SIDE = (f"observation.images.{name}" for name in ("top", "wrist", "side"))
SIZES = {SIDE: (64, 64), TOP: (48, 64), WRIST: (64, 48)}  # in the order of a dataset
NETWORK = [
    "generator.video.width=32",
    "generator.video.depth=1",
    "generator.video.heads=2",
    "generator.tokenizer.width=16",
    "generator.tokenizer.depth=1",
    "generator.action.width=32",
    "generator.action.depth=1",
    "generator.num_frames=17",
    "tokenizer_optim.steps=2",
    "optim.steps=2",
    "optim.batch_size=2",
]
LITTLE = ["optim.steps=2", "optim.batch_size=2"]


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


def result(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())["result"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, moving_square: Callable[..., Episode]) -> Path:
    """Three cameras, none of them called `observation.image`; each shows the square in a colour of its own."""
    path = tmp_path_factory.mktemp("cameras") / "recorded"
    with EpisodeWriter(path, 10, ["y", "x"], ["dy", "dx"], robot_type="two_fingers") as writer:
        for seed in range(4):
            episode = moving_square(seed, size=64)
            cameras = {TOP: episode.images[:, 8:56], WRIST: 255 - episode.images[:, :, 8:56], SIDE: episode.images // 2}
            writer.add(replace(episode, images=None, cameras=cameras))
    return path


@pytest.fixture(scope="module")
def made(recorded: Path) -> dict[str, Path]:
    """A generator that has seen all of it, and episodes that it made."""
    root = recorded.parent
    run("train-generator", str(recorded), *NETWORK, "image_size=[32,48]", f"out={root / 'generator'}")
    checkpoint = root / "generator/generator"
    run("synthesize", f"checkpoint={checkpoint}", f"scenes_from={recorded}", f"out={root / 'synthetic'}")
    return {"generator": checkpoint, "synthetic": root / "synthetic/dataset"}


def test_a_generator_sees_all_cameras_on_one_canvas(made: dict[str, Path]) -> None:
    config = Generator.from_pretrained(made["generator"]).config
    assert (config.image_size, config.views) == ([64, 96], [2, 2])
    told = json.loads((made["generator"] / "conventions.json").read_text())
    assert told["canvas"] == {"cameras": {key: list(size) for key, size in SIZES.items()}, "cell": [32, 48]}
    assert (told["fps"], told["robot_type"]) == (10, "two_fingers")


def test_synthetic_episodes_have_the_keys_sizes_rate_and_names_of_their_source(
    recorded: Path, made: dict[str, Path]
) -> None:
    ours, source = read_info(made["synthetic"]), read_info(recorded)
    assert ours["features"].keys() == source["features"].keys()
    for key in (*SIZES, "observation.state", "action"):
        for field in ("shape", "names", "dtype"):
            assert ours["features"][key][field] == source["features"][key][field]
    assert (ours["fps"], ours["robot_type"]) == (source["fps"], source["robot_type"])
    for camera in SIZES:  # the first picture is given, so each camera has its own again
        first, wanted = (
            next(read_pictures(path, read_table(path).episodes[:1], camera))[0]
            for path in (made["synthetic"], recorded)
        )
        assert np.abs(first.astype(int) - wanted).mean() < 12  # shrunk to the canvas and enlarged again


@pytest.mark.parametrize(
    "policy",
    ["pi05_compact", *(pytest.param(name, marks=pytest.mark.long) for name in ("diffusion_compact", "diffusion"))],
)
def test_policies_see_all_cameras(policy: str, recorded: Path, made: dict[str, Path], tmp_path: Path) -> None:
    data = [f"real=[{recorded}]", f"synthetic=[{made['synthetic']}]", "synthetic_fraction=0.5"]
    run("pretrain", *data, f"policy={policy}", "image_size=[32,48]", *LITTLE, f"out={tmp_path / 'policy'}")
    checkpoint = tmp_path / "policy/pretrained_model"
    objective = PolicyObjective.from_pretrained(checkpoint)
    assert objective.cameras == list(SIZES)
    assert objective.picture_size == (32, 48)
    run("finetune", f"checkpoint={checkpoint}", f"real=[{recorded}]", *LITTLE, f"out={tmp_path / 'tuned'}")
    run("evaluate", f"checkpoint={tmp_path / 'tuned/pretrained_model'}", f"dataset={recorded}", f"out={tmp_path / 'e'}")
    assert result(tmp_path / "e")["open_loop"]["n"] == 4


def test_every_camera_reaches_the_actions(recorded: Path, tmp_path: Path) -> None:
    run("pretrain", f"real=[{recorded}]", "policy=pi05_compact", *LITTLE, "image_size=32", f"out={tmp_path / 'policy'}")
    objective = PolicyObjective.from_pretrained(tmp_path / "policy/pretrained_model")
    torch.manual_seed(0)
    for parameter in objective.policy.parameters():  # two steps leave the last layer all but zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    batch = {camera: torch.rand(1, 3, 32, 32) for camera in SIZES}
    batch |= {"observation.state": torch.zeros(1, 2), "task": ["push"]}
    whole = objective.predict_action_chunk(batch, [0])
    for camera in SIZES:
        assert not torch.allclose(objective.predict_action_chunk({**batch, camera: batch[camera] * 0}, [0]), whole)
    swapped = {**batch, TOP: batch[WRIST], WRIST: batch[TOP]}
    assert not torch.allclose(objective.predict_action_chunk(swapped, [0]), whole)  # which camera it is counts


def test_scores_and_metrics_read_the_same_cameras(recorded: Path, made: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = f"checkpoint={made['generator']}"
    run("score", str(made["synthetic"]), checkpoint, f"real=[{recorded}]", f"out={tmp_path / 'score'}")
    assert set(result(tmp_path / "score")["scores"]) == {"score_cycle_error", "score_limit_excess", "score_nearest"}
    run(
        "evaluate-generator",
        checkpoint,
        f"dataset={recorded}",
        "allow_seen=true",
        "replay=false",
        f"out={tmp_path / 'e'}",
    )
    told = result(tmp_path / "e")
    assert told["metrics"]["psnr"] > 5
    assert told["still"].keys() == told["metrics"].keys() - {"jerk_ratio"}
    assert set(result(tmp_path / "score")["trust"]) == {"episodes", "recorded", "still", "other"}


def test_a_scene_gives_several_episodes_and_other_instructions(
    recorded: Path, made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What differs between samples, and by how much, is reported; where nothing does, how to get it."""
    words = ["synthesize", f"checkpoint={made['generator']}", f"scenes_from={recorded}", "samples_per_scene=2"]
    run(*words, f"out={tmp_path / 'mean'}")
    assert "all samples of a scene have the same actions: with sampler.order=actions_first" in capsys.readouterr().err
    assert result(tmp_path / "mean")["samples_differ"]["actions"] == 0
    run(*words, "instructions=[push,lift]", "sampler.order=synchronised", f"out={tmp_path / 'drawn'}")
    told = result(tmp_path / "drawn")
    assert told["episodes"] == 4 * 2 * 2
    assert told["samples_differ"]["actions"] > 0
    assert told["samples_differ"]["actions_of_scenes"] > 0
    table = read_table(tmp_path / "drawn/dataset")
    assert table.tasks == ["push", "push", "lift", "lift"] * 4
    assert [row["first_picture_of"] for row in table.metadata] == [k for k in range(4) for _ in range(4)]
    starts = np.cumsum(table.lengths) - table.lengths
    assert all((table.states[starts[4 * k : 4 * k + 4]] == table.states[starts[4 * k]]).all() for k in range(4))
    again = ["samples_per_scene=1", "instructions=[push]", "sampler.order=synchronised", f"out={tmp_path / 'alone'}"]
    run(*words[:-1], *again)
    alone = read_table(tmp_path / "alone/dataset")
    length = alone.lengths[0]  # a sample does not depend on how many others there are
    np.testing.assert_allclose(alone.actions[:length], table.actions[:length], atol=1e-5)
    run(*words[:-1], "codec=av1", f"out={tmp_path / 'av1'}")
    assert read_info(tmp_path / "av1/dataset")["features"][TOP]["info"]["video.codec"] == "av1"
    swapped = f"cameras=[{WRIST},{TOP},{SIDE}]"  # those of the checkpoint, whatever their order
    run(*words[:-1], swapped, f"out={tmp_path / 'order'}")
    draws = ["synthesize", f"checkpoint={made['generator']}", "tasks=[push]", "draws=2", "samples_per_scene=2"]
    assert cli.main([*draws, f"out={tmp_path / 'draws'}"]) == 2
    assert "draws are one plan of each scene" in capsys.readouterr().err


def test_some_cameras_and_others_names(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], moving_square: Callable[..., Episode]
) -> None:
    with EpisodeWriter(tmp_path / "other", 10, ["y", "x"], ["dy", "dx"]) as writer:
        writer.add(moving_square(9, size=64))
    words = ["pretrain", f"real=[{recorded},{tmp_path / 'other'}]", "policy=pi05_compact", "image_size=32", *LITTLE]
    assert cli.main([*words, f"cameras=[{TOP}]", f"out={tmp_path / 'a'}"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'other'}: no camera '{TOP}'; it has observation.image" in said
    assert f"rename={{observation.image: {TOP}}}" in said
    run("pretrain", f"real=[{recorded}]", *words[2:], f"out={tmp_path / 'all'}")
    assert f"cameras=[] names none: {SIDE}, {TOP}, {WRIST}" in capsys.readouterr().out
    run(*words, f"cameras=[{TOP}]", f"rename={{observation.image: {TOP}}}", f"out={tmp_path / 'a'}")
    assert PolicyObjective.from_pretrained(tmp_path / "a/pretrained_model").cameras == [TOP]
    assert cli.main(["train-generator", str(recorded), "generator.image_size=[48,48]", f"out={tmp_path / 'b'}"]) == 2
    assert "3 cameras of 64x64 make [128, 128]; leave it out, and give image_size=[h,w]" in capsys.readouterr().err


def test_a_generator_of_several_cameras_needs_recorded_scenes(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["synthesize", f"checkpoint={made['generator']}", "tasks=[push]", f"out={tmp_path / 'a'}"]) == 2
    assert "the simulator" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lerobots_act_trains_on_the_synthetic_cameras(made: dict[str, Path], tmp_path: Path) -> None:
    policy = "type=act push_to_hub=false device=cpu pretrained_backbone_weights=null dim_model=32 n_heads=2 "
    policy += "dim_feedforward=32 n_encoder_layers=1 use_vae=false chunk_size=4 n_action_steps=4"
    command = [Path(sys.executable).with_name("lerobot-train"), *(f"--policy.{word}" for word in policy.split())]
    command += [
        f"--dataset.root={made['synthetic']}",
        "--dataset.repo_id=local/synthetic",
        "--dataset.video_backend=pyav",
    ]
    command += ["--batch_size=2", "--steps=2", "--num_workers=0", f"--output_dir={tmp_path / 'act'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (config,) = tmp_path.glob("act/checkpoints/*2/pretrained_model/config.json")
    seen = json.loads(config.read_text())["input_features"]
    assert {key: seen[key]["shape"] for key in SIZES} == {key: [3, *size] for key, size in SIZES.items()}
