"""`vag replay`: execute the actions of a dataset open loop from its initial scenes and note which succeed."""

from __future__ import annotations

from pathlib import Path

from recipes.schema import ReplayConfig
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.data.formats.lerobot_read import dataset_id, read_actions
from toolkit.data.formats.lerobot_write import add_episode_columns
from toolkit.data.seen_scenes import is_hole, scene_of
from toolkit.evaluation.replay import replay_episodes
from toolkit.evaluation.statistics import rollout_rates
from toolkit.reporting.results import ReplayResult


def run(config: ReplayConfig, run: Run) -> ReplayResult:
    """Replay every episode; the outcome becomes the column `replay_success` of the dataset.

    The result has the outcomes too, as (task, seed, success).
    """
    dataset = Path(config.dataset)
    episodes = list(read_actions(dataset))
    scenes = []
    for index, (metadata, _) in enumerate(episodes):
        scene = scene_of(metadata, f"{dataset}: episode {index}")
        if scene is None:
            missing = next(key for key in ("task_name", "seed") if is_hole(metadata.get(key)))
            raise UserError(
                f"{dataset}: episode {index} has no '{missing}' in the episode table, so its initial scene is unknown; "
                "only episodes of `vag collect` and `vag synthesize` can be replayed"
            )
        scenes.append(scene)
    run.add_data(dataset, dataset_id(dataset), len(episodes))
    items = [(*scene, actions[: config.max_steps]) for scene, (_, actions) in zip(scenes, episodes, strict=True)]
    outcomes = [result["success"] for result in replay_episodes(items, workers=config.workers)]
    add_episode_columns(dataset, {"replay_success": outcomes})
    replayed = [(task, seed, success) for (task, seed, _), success in zip(items, outcomes, strict=True)]
    return ReplayResult(systems={config.system: rollout_rates(replayed)})


def summary(result: ReplayResult) -> str:
    return "; ".join(
        f"{name}: {rate.successes}/{rate.n} succeed [{rate.low:.2f}, {rate.high:.2f}]"
        for name, rate in result.systems.items()
    )
