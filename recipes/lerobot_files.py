"""What LeRobot's tools and readers look for beside a policy: `train_config.json` and a model card, `README.md`."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import ModelCardData
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from policies.factory import PolicyObjective
from recipes.policy_schema import PolicyTrainingConfig
from toolkit.base.provenance import git_sha, versions
from toolkit.data.batches import WeightedDataset
from toolkit.data.seen_scenes import UNKNOWN, SeenScenes
from toolkit.training.config import OptimConfig
from toolkit.training.optim import LOWEST_RATE

CARD = "README.md"


def write_train_config(
    directory: Path, objective: PolicyObjective, config: PolicyTrainingConfig, optim: OptimConfig
) -> None:
    """Settings with which `lerobot-train --config_path=` trains such a policy anew, in LeRobot's own loop.

    LeRobot trains on one dataset: the first one. Sizes and keys of the policy's inputs are left open, since LeRobot
    takes them from the dataset: it neither scales pictures nor turns instructions into vectors, as vag does.
    optim: the options of the training, with none left open.
    """
    policy: PreTrainedConfig = copy.deepcopy(objective.config)
    policy.device, policy.input_features, policy.output_features = None, {}, {}
    for name, value in objective.built_with.items():
        setattr(policy, name, value)
    rate, clip = optim.learning_rate, optim.gradient_clip or 0.0
    first, second = optim.betas or (0.9, 0.95)
    TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="local/dataset", root=first_dataset(config)),
        policy=policy,
        job_name=objective.policy_type,
        seed=config.seed,
        batch_size=optim.batch_size * optim.gradient_accumulation,
        steps=optim.steps,
        log_freq=optim.log_every,
        save_freq=optim.checkpoint_every,
        env_eval_freq=0,
        use_policy_training_preset=False,
        optimizer=AdamWConfig(
            lr=rate,
            betas=(first, second),
            eps=optim.epsilon or 1e-8,
            weight_decay=optim.weight_decay or 0.0,
            grad_clip_norm=clip if clip < float("inf") else 0.0,  # which stands for none
        ),
        scheduler=CosineDecayWithWarmupSchedulerConfig(
            peak_lr=rate,
            decay_lr=LOWEST_RATE * rate,
            num_warmup_steps=optim.warmup_steps,
            num_decay_steps=optim.steps,
        ),
    ).save_pretrained(directory)


def first_dataset(config: PolicyTrainingConfig) -> str:
    """The dataset that LeRobot would train on, as the user has named it."""
    return [*config.real, *config.synthetic][0]


def write_model_card(
    directory: Path,
    objective: PolicyObjective,
    config: PolicyTrainingConfig,
    sources: Sequence[WeightedDataset],
    shares: Sequence[float],
    seen: SeenScenes,
    losses: dict[str, float],
    optim: OptimConfig,
) -> None:
    """Front matter as the Hugging Face hub reads it, inputs, data, scenes, numbers of the training, how to load.

    LeRobot's own card is for what it has trained on one dataset of the hub, and is checked there, over the network.
    shares: of the clips, for each dataset; optim: as `write_train_config`. Nothing depends on when or where it ran.
    """
    kind, policy = objective.policy_type, objective.config
    about = ModelCardData(
        license=policy.license,
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=sorted({"robotics", "lerobot", "vag", kind, *(policy.tags or [])}),
        model_name=kind,
    )
    features = {**(policy.input_features or {}), **(policy.output_features or {})}
    numbers = {
        "weights": sum(p.numel() for p in objective.parameters()),
        **{name: value for name, value in asdict(optim).items() if not name.endswith("_every")},
        "seed": config.seed,
        **losses,
    }
    made = [f"{name} {version}" for name, version in versions().items() if name in ("lerobot", "torch")]
    lines = [
        *("---", about.to_yaml().strip(), "---", "", f"# {kind} policy", ""),
        f"Trained with the VAG toolkit, commit {git_sha()}, {', '.join(made)}.",
        *("", "## Inputs and outputs", "", *table("feature", "kind", "shape")),
        *(row(key, feature.type.value, list(feature.shape)) for key, feature in features.items()),
        *("", "## Data", "", *table("dataset", "kind", "episodes", "steps a second", "share of the clips")),
        *(
            row(
                *(source.store.name, "synthetic" if source.synthetic else "real", source.store.num_episodes),
                *(f"{source.store.fps:g}", f"{share:.3f}"),
            )
            for source, share in zip(sources, shares, strict=True)
        ),
        *("", "## Scenes that it, or the generator of its data, has seen", "", *scene_lines(seen)),
        *("", "## Training", "", *table("setting or result", "value")),
        *(row(name, value) for name, value in numbers.items()),
        *("", "## Use", "", "In the place of DIR goes the directory of this file.", "", *usage(config, seen)),
    ]
    (directory / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def scene_lines(seen: SeenScenes) -> list[str]:
    """A list of tasks, each with how many of its scenes and which seeds."""
    lines = [
        f"- {plain(task)}: {len(seeds)} (seeds {min(seeds)} to {max(seeds)})"
        for task, seeds in seen.items()
        if task != UNKNOWN and seeds
    ]
    if UNKNOWN in seen:
        lines.append("- others, without a task and seed of a simulator, as recordings of a robot")
    return lines or ["None is known."]


def usage(config: PolicyTrainingConfig, seen: SeenScenes) -> list[str]:
    """Commands, for the simulator if the data comes from there."""
    several = len(config.real) + len(config.synthetic) > 1
    only = ", on the first dataset alone" if several else ""
    rollouts = ["    vag evaluate checkpoint=DIR dataset=HELD_OUT"]
    if tasks := [task for task in seen if re.fullmatch(r"[a-z-]+", task)]:
        rollouts = [
            f"    vag evaluate checkpoint=DIR tasks=[{tasks[0]}]",
            f"    lerobot-eval --policy.path=DIR --env.type=metaworld --env.task={tasks[0]}-v3 --eval.n_episodes=10",
        ]
    return [
        *rollouts,
        "    lerobot-train --config_path=DIR/train_config.json",
        "",
        "LeRobot finds the type in the package `lerobot_policy_vag`. The last line trains another policy with these "
        f"settings{only}; it knows nothing of synthetic fractions, selections and averaged weights.",
    ]


def table(*titles: str) -> list[str]:
    return [row(*titles), row(*["---"] * len(titles))]


def row(*cells: object) -> str:
    return f"| {' | '.join(plain(cell) for cell in cells)} |"


def plain(value: object) -> str:
    """Text of others in a table: no line, cell, tag or link begins in it."""
    text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
    return "".join(f"\\{letter}" if letter in "\\|<>[]`*_" else letter for letter in text)
