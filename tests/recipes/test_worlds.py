"""The pipeline in worlds that nobody here made: with two cameras of different shapes, and at length in SO-101's."""

from pathlib import Path
from typing import Any

import pytest

from recipes.cli import execute
from toolkit.base.errors import UserError
from toolkit.data.formats.lerobot_layout import camera_keys, read_info
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.seen_scenes import read_scenes

REACH = "gymnasium:tests.toy_world:Reach-v0"
SO101 = "gymnasium:lerobot_env_so101/SO101PickPlace-v0"
CAMERAS = ["observation.images.top", "observation.images.wrist"]
SMALL = ("optim.steps=2", "optim.batch_size=2", "runtime.threads=1")


def story(world: str, root: Path, collect: list[str], size: int, max_steps: int) -> dict[str, Any]:
    """Every command of the pipeline once; what each found."""
    env = f"env={world}"

    def run(command: str, name: str, *words: str) -> Any:
        return execute(command, [*words, f"out={root / name}"])

    real, synthetic = str(root / "real/dataset"), str(root / "synthetic/dataset")
    generator = ("held_out_fraction=0", f"image_size={size}", "tokenizer_optim.steps=2", "tokenizer_optim.batch_size=2")
    policy = ("policy=pi05_compact", "synthetic_fraction=0.5", "optim.steps=2", "optim.batch_size=4")
    few = "episodes_per_task=2"
    return {
        "collect": run("collect", "real", env, "workers=1", *collect),
        "replay_real": run("replay", "replay_real", env, f"dataset={real}", "workers=1"),
        "generator": run("train-generator", "generator", f"dataset={real}", *generator, *SMALL),
        "synthesize": run(
            "synthesize",
            "synthetic",
            env,
            f"checkpoint={root / 'generator/generator'}",
            few,
            "sampler.num_inference_steps=2",
        ),
        "replay": run("replay", "replay", env, f"dataset={synthetic}", "workers=1"),
        "pretrain": run("pretrain", "policy", f"real=[{real}]", f"synthetic=[{synthetic}]", *policy),
        "evaluate": run(
            "evaluate",
            "evaluate",
            env,
            f"checkpoint={root / 'policy/pretrained_model'}",
            "episodes_per_task=1",
            f"max_steps={max_steps}",
            "suites=[unseen,perturbed]",
        ),
    }


@pytest.mark.slow
def test_a_world_of_two_cameras_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect = ["episodes_per_task=4", "num_steps=40", "image_size=null", "noise_scale=0.3"]
    made = story(REACH, tmp_path, collect, 32, 6)
    info = read_info(tmp_path / "real/dataset")
    assert camera_keys(info) == CAMERAS
    assert [info["features"][camera]["shape"][:2] for camera in CAMERAS] == [[24, 32], [16, 16]]
    assert read_info(tmp_path / "synthetic/dataset")["features"].keys() == info["features"].keys()
    assert made["replay_real"].systems["vag"].successes == 4  # what was collected repeats
    assert made["replay"].systems["vag"].n == 2
    assert list(made["evaluate"].suites) == ["unseen", "perturbed"]
    assert {row["world"] for row in read_table(tmp_path / "synthetic/dataset").metadata} == {REACH}
    scene = f"{REACH}/Reach-v0"
    assert read_scenes(tmp_path / "policy/pretrained_model") == {scene: [0, 1, 2, 3, 100000, 100001]}
    checkpoint, real = tmp_path / "policy/pretrained_model", tmp_path / "real/dataset"
    evaluate = [f"checkpoint={checkpoint}", "episodes_per_task=1", "max_steps=2"]
    for words, message in (
        (["evaluate", f"env={REACH}", *evaluate, "first_seed=0"], f"trained on 1 of these scenes .*{scene}"),
        (["evaluate", *evaluate, "tasks=[push]"], "the simulator: 80 steps a second.*was trained on 10"),
        (["evaluate", f"env={REACH}", *evaluate, "suites=[visual]"], "unknown suite 'visual' of env="),
        (["replay", f"dataset={real}"], "whose package runs; allow it by env="),
        (["replay", f"dataset={real}", "env=lerobot:aloha"], "the episodes of .* are of gymnasium"),
        (["replay", f"dataset={real}", f"env={REACH}", "env_options={fixed: true}"], "were made with"),
        (
            ["evaluate", "env=gymnasium:tests.toy_world:Silent-v0", *evaluate],
            "no camera 'observation.images.top'; it has",
        ),
    ):
        with pytest.raises(UserError, match=message):
            execute(words[0], [*words[1:], f"out={tmp_path / 'refused'}", "overwrite=true"])
    # A policy that knows the way demonstrates it.
    from recipes import demonstrators
    from tests.toolkit.test_worlds import Towards

    class Loaded(Towards):
        cameras = ("eye",)

    monkeypatch.setattr(demonstrators, "_loaded", lambda checkpoint: (Loaded(), (32, 32)))
    monkeypatch.setattr(
        "recipes.worlds.cameras_for", lambda wanted, *rest: dict.fromkeys(wanted, "observation.images.top")
    )
    words = [f"env={REACH}", f"demonstrator=policy:{checkpoint}", "episodes_per_task=2", "image_size=null"]
    execute("collect", [*words, "workers=1", "num_steps=50", f"out={tmp_path / 'shown'}"])
    rows = read_table(tmp_path / "shown/dataset").metadata
    assert [(row["source"], row["success"]) for row in rows] == [("policy", True)] * 2


@pytest.mark.long  # SO-101's meshes are drawn in software, half a second a picture
def test_so101_end_to_end(tmp_path: Path) -> None:
    """Its own scripted pick-and-place demonstrates."""
    collect = ["episodes_per_task=3", "num_steps=70", "render_every=8", "image_size=32"]
    made = story(SO101, tmp_path, collect, 32, 16)
    assert made["collect"].episodes == 3
    assert made["replay_real"].systems["vag"].successes == 3
    assert made["evaluate"].suites["unseen"].alone.n == 1
