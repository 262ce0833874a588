"""The report: one page that stands alone, tells the story in order and never shows a rate without its trials."""

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np

from toolkit.evaluation.statistics import success_table
from toolkit.reporting import media

EVIL = "<script>alert('push & $x$')</script>"
VOID = {"meta", "img", "br", "hr", "link", "input", "source"}


def frames(seed: int = 0, length: int = 12, size: int = 32) -> np.ndarray:
    """A red square that wanders over grey."""
    images = np.full((length, size, size, 3), 90, np.uint8)
    for step, image in enumerate(images):
        left = (seed * 3 + step) % (size - 6)
        image[8:14, left : left + 6] = (220, 40, 30)
    return images


def decoded(path: Path | io.BytesIO) -> np.ndarray:
    with av.open(path if isinstance(path, io.BytesIO) else str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_run(path: Path, command: str, result: dict[str, Any], **record: Any) -> Path:
    """A run directory as a command leaves it."""
    path.mkdir(parents=True)
    content = {
        "command": command,
        "status": "finished",
        "config": {
            "seed": 0,
            "out": str(path.name),
            "optim": {"steps": 300, "learning_rate": 3e-4},
            "tasks": ["push", EVIL],
        },
        "git_sha": "0123456789ab",
        "versions": {"python": "3.12.9", "torch": "2.11.0"},
        "hardware": "2 x Some <CPU>",
        "seed": 0,
        "data": [{"path": "data/<real>", "id": "a1b2c3d4e5f60718", "episodes": 40}],
        "started": "2026-11-03T10:20:30",
        "wall_seconds": 84.5,
        "result": result,
        **record,
    }
    (path / "run.json").write_text(json.dumps(content))
    return path


def write_curves(path: Path, seed: int, tags: tuple[str, ...] = ("loss", "learning_rate")) -> None:
    from torch.utils.tensorboard import SummaryWriter

    rng = np.random.default_rng(seed)
    writer = SummaryWriter(str(path))
    for step in range(5, 301, 5):
        for tag in tags:
            writer.add_scalar(tag, np.exp(-step / 80) * (1 + 0.2 * rng.standard_normal()) + 0.05, step)
    writer.close()


def table_of(*counts: tuple[str, int, int]) -> dict[str, Any]:
    return success_table(
        [task for task, _, n in counts for _ in range(n)],
        [trial < successes for _, successes, n in counts for trial in range(n)],
    )


def write_demo(root: Path) -> Path:
    """A finished demo with every command in it."""
    tasks = {"push": {"episodes": 20, "attempts": 23}, EVIL: {"episodes": 20, "attempts": 31}}
    run = write_run(
        root / "collect",
        "collect",
        {
            **{"episodes": 40, "attempts": 54, "frames": 4000, "episodes_per_minute": 151.2},
            **{"tasks": tasks, "dataset": "dataset", "surprise": {"nested": [1, 2.5, "<b>"]}},
        },
    )
    run = write_run(
        root / "train_generator",
        "train-generator",
        {
            "tokenizer": {"steps": 300, "psnr": 28.31},
            "generator": {"steps": 800, "loss": 0.1234, "seconds": 250, "parameters": 3_456_789},
            **{"checkpoint": "generator", "media": ["media/reconstruction.png"]},
        },
    )
    media.write_image(run / "media/reconstruction.png", media.filmstrip(frames(), 6))
    write_curves(run / "tokenizer/tensorboard", 0)
    write_curves(run / "streams/tensorboard", 1, ("loss", "loss_video", "loss_action", "learning_rate"))
    metrics = {"action_distance": 0.4123, "psnr": 21.07, "ssim": 0.812}
    run = write_run(
        root / "synthesize",
        "synthesize",
        {
            **{"episodes": 120, "seconds_per_episode": 0.532, "dataset": "dataset", "metrics": metrics},
            "media": [{"path": "media/generated.mp4", "caption": "recorded (above), generated (below)"}],
        },
    )
    pairs = [np.concatenate([frames(i), frames(i + 1)], axis=1) for i in range(6)]
    media.write_video(run / "media/generated.mp4", media.grid(pairs, 6), 20)
    generated, recorded = table_of(("push", 9, 20), (EVIL, 5, 20)), table_of(("push", 20, 20), (EVIL, 18, 20))
    write_run(root / "replay_generated", "replay", {"systems": {"vag": generated}})
    write_run(root / "replay_recorded", "replay", {"systems": {"recorded": recorded}})
    names = ["collect", "train_generator", "synthesize", "replay_generated", "replay_recorded"]
    policies = []
    outcomes = {
        "pi05_compact": {"real_few": (4, 4), "pretrain_finetune": (13, 11)},
        "diffusion": {"real_few": (7, 4), "pretrain_finetune": (9, 6)},
    }
    for seed, (policy, arms) in enumerate(outcomes.items()):
        training = {"policy": policy, "steps": 300, "loss": 0.0712, "parameters": 1_234_567}
        for command, name, fraction in (
            ("pretrain", f"real_few_{policy}", 0.0),
            ("pretrain", f"pretrain_{policy}", 1.0),
            ("finetune", f"finetune_{policy}", 0.0),
        ):
            run = write_run(root / name, command, {**training, "synthetic_fraction": fraction})
            write_curves(run / "tensorboard", seed)
            names.append(name)
        for arm, (first, second) in arms.items():
            suite = table_of(("push", first, 30), (EVIL, second, 30))
            name = f"evaluate_{policy}_{arm}"
            result = {
                "policy": policy,
                "arm": arm,
                "suites": {"unseen": suite},
                "media": ["media/unseen.mp4"],
            }
            run = write_run(root / name, "evaluate", result)
            media.write_video(run / "media/unseen.mp4", media.grid([frames(i) for i in range(6)], 6), 20)
            names.append(name)
            policies.append({"policy": policy, "arm": arm} | {k: v for k, v in suite.items() if k != "tasks"})
    success = {k: v for k, v in generated.items() if k != "tasks"}
    systems = [{"system": "vag", **metrics, "replay_success": success}]
    stages = [{"name": name, "seconds": 12.5 + 7 * i} for i, name in enumerate(names)]
    result = {"stages": stages, "generator": {"systems": systems}, "policies": policies, "runs": names}
    (root / "run.json").write_text((root / "collect/run.json").read_text())
    record = json.loads((root / "run.json").read_text())
    record |= {"command": "demo", "status": "running", "result": result, "wall_seconds": 612.0}
    (root / "run.json").write_text(json.dumps(record))
    return root
