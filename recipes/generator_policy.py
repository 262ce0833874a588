"""`vag generator-policy`: a generator as a LeRobot policy checkpoint, without training."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCardData

from policies.checkpoint_config import Loading
from policies.generator_kinds import POLICY_TYPE, acts_as_generator
from policies.vag_policy.objective import GeneratorObjective, load_generator_policy
from recipes.common import weights_id
from recipes.generator_policy_schema import GeneratorPolicyCommandConfig, chosen
from recipes.lerobot_files import CARD, row, scene_lines, table
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.data.conventions import Conventions
from toolkit.data.seen_scenes import SeenScenes, scenes_behind, write_scenes
from toolkit.data.windows import Windows
from toolkit.reporting.results import GeneratorPolicyResult


def run(config: GeneratorPolicyCommandConfig, run: Run) -> GeneratorPolicyResult:
    """Write `pretrained_model/`: weights as they are, how they are used, and what the generator has seen."""
    if not acts_as_generator(config.checkpoint):
        raise UserError(f"{config.checkpoint}: not a generator; expected a directory written by train-generator")
    settings, base = chosen(config)
    loading = Loading(max_parameters=config.max_parameters)
    objective = load_generator_policy(config.checkpoint, "cpu", loading, settings, base)
    identity = weights_id(config.checkpoint)
    run.add_data(config.checkpoint, identity)
    conventions, windows = Conventions.read(config.checkpoint), Windows.read(config.checkpoint)
    seen, policy = scenes_behind(config.checkpoint), objective.policy
    if base is not None:
        policy.config.generator["video"]["path"] = str(base)  # which has been compared by its id

    def write(folder: Path) -> None:
        objective.save_pretrained(folder)
        write_scenes(folder, seen)
        (folder / CARD).write_text(card(objective, identity, seen), encoding="utf-8")
        for part in (conventions, windows):
            if part is not None:
                part.write(folder)

    run.make("pretrained_model", write)
    return GeneratorPolicyResult(
        checkpoint="pretrained_model",
        generator_id=identity,
        sample=policy.config.sample or "",
        n_action_steps=objective.n_action_steps,
        horizon=objective.horizon,
        random_start=policy.config.random_start,
    )


def card(objective: GeneratorObjective, identity: str, seen: SeenScenes) -> str:
    """A model card as the Hugging Face hub reads it: what goes in and out, how it is sampled, what it has seen."""
    config = objective.config
    about = ModelCardData(
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=["lerobot", "robotics", "vag", POLICY_TYPE],
        model_name=POLICY_TYPE,
    )
    features = {**config.input_features, **config.output_features}
    names = ("sample", "n_action_steps", "num_inference_steps", "guidance_scale", "method", "order", "random_start")
    lines = [
        *("---", about.to_yaml().strip(), "---", "", "# A generator as a policy", ""),
        f"The generator {identity} of the VAG toolkit, in closed loop: nothing was trained for it.",
        *("", "## Inputs and outputs", "", *table("feature", "kind", "shape")),
        *(row(key, feature.type.value, list(feature.shape)) for key, feature in features.items()),
        *("", "## How it is sampled", "", *table("setting", "value")),
        *(row("horizon", objective.horizon), *(row(name, getattr(config, name)) for name in names)),
        *("", "## Scenes that it has seen", "", *scene_lines(seen)),
        *("", "## Use", "", "In the place of DIR goes the directory of this file.", ""),
        "    vag evaluate checkpoint=DIR",
        "    lerobot-eval --policy.path=DIR --env.type=metaworld --env.task=push-v3 --eval.n_episodes=10",
    ]
    return "\n".join(lines) + "\n"


def summary(result: GeneratorPolicyResult) -> str:
    how = f"a {result.sample} of {result.horizon} steps, {result.n_action_steps} executed before the next"
    return f"generator {result.generator_id} as a policy: {how}"
