"""What tests of synthesis and scoring in parts share: a generator, a command that is run, datasets compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes import cli
from toolkit.data.formats.lerobot_read import read_episodes, read_table
from toolkit.data.seen_scenes import read_scenes, write_scenes
from vag_core import Generator
from vag_core.config import GeneratorConfig

SEEN = {"elsewhere": [7]}


def small_generator(path: Path) -> Path:
    """A small one whose actions depend on the picture, though it has learned nothing; it has seen a scene."""
    torch.manual_seed(0)
    config: Any = GeneratorConfig(image_size=[32, 32], num_frames=9, state_dim=2, action_dim=2)
    for part in (config.video, config.action):
        part.width, part.depth = 48, 1
    model = Generator(config)
    for name, parameter in model.named_parameters():
        if name.startswith("action.") and not parameter.any():  # what starts at zero would hide the scene
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(path)
    write_scenes(path, SEEN)
    return path


def vag(*words: str, out: Path, code: int = 0) -> dict[str, Any]:
    """Run a command; its record where it has finished."""
    assert cli.main([*words, f"out={out}"]) == code
    path = out / "run.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def same_dataset(one: Path, other: Path, seen: dict[str, Any] | None = SEEN) -> None:
    """Episodes bit for bit, with what is noted of them, and the statistics as near as sums of float32 are."""
    for a, b in zip(read_episodes(one), read_episodes(other), strict=True):
        assert (a.task, a.metadata) == (b.task, b.metadata)
        assert np.array_equal(a.states, b.states)
        assert np.array_equal(a.actions, b.actions)
        assert all(np.array_equal(a.pictures[key], b.pictures[key]) for key in a.pictures)
    assert read_table(one).ids == read_table(other).ids
    assert read_scenes(one / "meta") == read_scenes(other / "meta")
    assert seen is None or read_scenes(one / "meta") == seen
    stats = [json.loads((path / "meta/stats.json").read_text()) for path in (one, other)]
    assert stats[0].keys() == stats[1].keys()
    for key, values in stats[0].items():
        assert values.keys() == stats[1][key].keys()
        for name, value in values.items():
            np.testing.assert_allclose(stats[1][key][name], value, rtol=1e-6, atol=1e-6, err_msg=f"{key} {name}")


def found(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record["result"].items() if "seconds" not in key}
