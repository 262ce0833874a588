"""What is damaged: the smallest good files and folders of every kind that a command reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from policies.factory import build_policy
from recipes import cli
from toolkit.data.clips import write_clips
from toolkit.data.episode import IMAGE, Episode
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.envs.metaworld import ACTION_NAMES, FPS, STATE_NAMES
from toolkit.training import loop
from vag_core import Generator
from vag_core.config import (
    ConvTokenizerConfig,
    DiTConfig,
    GeneratorConfig,
    InstructionConfig,
    SceneConfig,
    TransformerConfig,
)

STEPS, SIZE, WIDTH = 6, 32, 4  # of an episode; pixels a side; numbers of a state and of an action
SMALL: dict[str, dict[str, Any]] = {
    "pi05_compact": {
        **{"chunk_size": 4, "n_action_steps": 4, "depth": 1, "width": 16, "mlp_width": 16, "expert_width": 16},
        **{"expert_mlp_width": 16, "num_heads": 1, "head_dim": 16, "tokenizer_buckets": 16},
    },
    "diffusion_compact": {"horizon": 8, "n_action_steps": 4, "down_dims": (8, 16), "diffusion_step_embed_dim": 8},
}

SMALL_POLICY = (
    "policy.options={{chunk_size:4,n_action_steps:4,depth:1,width:16,mlp_width:16,expert_width:16,"
    "expert_mlp_width:16,num_heads:1,head_dim:16,tokenizer_buckets:16}}"
)
PRETRAIN = (
    "pretrain real=[{sources}/dataset] image_size=32 optim.steps=2 optim.batch_size=2 optim.checkpoint_every=1 "
    + SMALL_POLICY
)


def write_sources(folder: Path) -> None:
    """Everything under `folder`, by the names that the targets have."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    write_hdf5(folder, rng)
    episodes = [episode(rng, seed) for seed in range(2)]
    with EpisodeWriter(folder / "dataset", FPS, STATE_NAMES, ACTION_NAMES) as writer:
        for one in episodes:
            writer.add(one)
    write_clips(folder / "clips.h5", episodes, sum(map(len, episodes)), FPS, "fuzz")
    write_policies(folder)
    write_generator(folder / "generator")
    write_runs(folder)


def episode(rng: np.random.Generator, seed: int) -> Episode:
    images = rng.integers(0, 256, (STEPS, SIZE, SIZE, 3), dtype=np.uint8)
    states, actions = (rng.uniform(-1, 1, (STEPS, WIDTH)).astype(np.float32) for _ in range(2))
    return Episode(images, states, actions, "slide the plate", {"seed": seed, "task_name": "plate-slide"})


def write_hdf5(folder: Path, rng: np.random.Generator) -> None:
    """One small file of every HDF5 layout."""

    def pictures() -> np.ndarray:
        return rng.integers(0, 256, (STEPS, SIZE, SIZE, 3), dtype=np.uint8)

    def vectors(width: int) -> np.ndarray:
        return rng.normal(size=(STEPS, width)).astype(np.float32)

    def demos(name: str, observations: dict[str, Any], language: dict[str, str], top: dict[str, str]) -> None:
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            file.create_group("data").attrs.update(top)
            for k in range(2):
                demo = file.create_group(f"data/demo_{k}")
                demo.attrs.update({"num_samples": STEPS, **language})
                demo["actions"] = vectors(7)
                for key, make in observations.items():
                    demo.create_dataset(f"obs/{key}", data=make(), compression="gzip" if k else None)

    demos(
        "robomimic",
        {
            "agentview_image": pictures,
            "robot0_eef_pos": lambda: vectors(3),
            "robot0_eef_quat": lambda: vectors(4),
            "robot0_gripper_qpos": lambda: vectors(2),
        },
        {"language_instruction": "lift the cube"},
        {"env_args": json.dumps({"env_name": "Lift"})},
    )
    demos(
        "libero",
        {
            "agentview_rgb": pictures,
            "eye_in_hand_rgb": pictures,
            "ee_states": lambda: vectors(6),
            "gripper_states": lambda: vectors(2),
        },
        {},
        {"problem_info": json.dumps({"language_instruction": "open the drawer"})},
    )
    demos(
        "bridge",
        {"image_0": pictures, "state": lambda: vectors(7)},
        {"language_instruction": "put the cup into the sink", "episode_id": "3"},
        {},
    )
    with h5py.File(folder / "aloha.hdf5", "w") as file:
        file.attrs["sim"] = True
        file["action"], file["observations/qpos"] = vectors(14), vectors(14)
        file["observations/images/cam_high"] = pictures()


def write_policies(folder: Path) -> None:
    """Two of this project's policies, trained for a step, and one stock type of LeRobot's."""
    torch.manual_seed(0)
    for kind, options in SMALL.items():
        objective = build_policy(
            kind,
            cameras={IMAGE: (3, SIZE, SIZE)},
            state_dim=WIDTH,
            action_dim=WIDTH,
            stats=statistics(),
            options=options,
        )
        objective.save_pretrained(folder / kind)
        (folder / kind / "seen_scenes.json").write_text(json.dumps({"plate-slide": [7, 8]}))
        told = {"fps": FPS, "state_names": STATE_NAMES, "action_names": ACTION_NAMES}
        (folder / kind / "conventions.json").write_text(json.dumps(told))
    features = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
        "observation.state": PolicyFeature(FeatureType.STATE, (WIDTH,)),
    }
    config = ACTConfig(
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (WIDTH,))},
        device="cpu",
        pretrained_backbone_weights=None,
        **{"chunk_size": 2, "n_action_steps": 2, "dim_model": 16, "n_heads": 2, "dim_feedforward": 16},
        **{"n_encoder_layers": 1, "n_decoder_layers": 1, "n_vae_encoder_layers": 1, "latent_dim": 4},
    )
    stats: Any = {key: {name: torch.from_numpy(v) for name, v in s.items()} for key, s in statistics().items()}
    policy = get_policy_class("act")(config)
    policy.save_pretrained(folder / "act")
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder / "act")


def statistics() -> dict[str, dict[str, np.ndarray]]:
    numbers = {"mean": 0.0, "std": 0.5, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    shapes = {"observation.state": (WIDTH,), "action": (WIDTH,), "observation.image": (3, 1, 1)}
    return {key: {name: np.full(shape, v, np.float32) for name, v in numbers.items()} for key, shape in shapes.items()}


def write_generator(path: Path) -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(
        image_size=[SIZE, SIZE],
        num_frames=9,
        state_dim=WIDTH,
        action_dim=WIDTH,
        tokenizer=ConvTokenizerConfig(latent_channels=4, width=16, depth=1),
        scene=SceneConfig(width=16, depth=1, keypoints=8),
        video=DiTConfig(width=32, depth=2, heads=2),
        action=TransformerConfig(width=32, depth=1, heads=2),
        instruction=InstructionConfig(length=16),
    )
    Generator(config).save_pretrained(path)
    (path / "seen_scenes.json").write_text(json.dumps({"plate-slide": [7]}))


def write_runs(folder: Path) -> None:
    """Finished runs of several commands, and two trainings that were interrupted; one of them was to replace another.

    Each holds a file of the user's.
    """
    finished, begun = folder / "finished", folder / "begun"
    dataset, generator = folder / "dataset", folder / "generator"
    commands = {
        "exported": ["export", f"dataset={dataset}"],
        "scored": ["score", f"dataset={dataset}", f"real=[{dataset}]", "image_size=32"],
        "inspected": ["inspect", f"dataset={dataset}"],
        "pretrained": PRETRAIN.format(sources=folder).split(),
        "evaluated": ["evaluate", f"checkpoint={folder / 'pi05_compact'}", f"dataset={dataset}", "image_size=32"],
        "sampled": [
            *("evaluate-generator", f"checkpoint={generator}", f"dataset={dataset}", "replay=false"),
            "sampler.num_inference_steps=1",
        ],
    }
    for name, words in commands.items():
        run([*words, f"out={finished / name}"], 0)
    shutil.copytree(finished / "pretrained", begun / "replacing")
    with pytest.MonkeyPatch.context() as patch:
        real = loop.save_checkpoint

        def save_and_stop(*arguments: Any) -> None:
            real(*arguments)
            raise KeyboardInterrupt

        patch.setattr(loop, "save_checkpoint", save_and_stop)
        run([*PRETRAIN.format(sources=folder).split(), f"out={begun / 'interrupted'}"], 130)
        run([*PRETRAIN.format(sources=folder).split(), f"out={begun / 'replacing'}", "overwrite=true"], 130)
    for path in (*finished.iterdir(), *begun.iterdir()):
        (path / "notes.txt").write_text("the user's own")
    (begun / "interrupted/.vag-lock").write_text("123 on elsewhere")  # of a process that was killed


def run(words: list[str], expected: int) -> None:
    code = cli.main(words)
    if code != expected:
        raise RuntimeError(f"{words}: exit code {code}, expected {expected}")
