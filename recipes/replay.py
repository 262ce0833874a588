"""`vag replay`: execute the actions of a dataset open loop from its initial scenes and note which succeed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recipes.common import load_notes
from recipes.schema import ReplayConfig
from recipes.worlds import noted_world
from toolkit.base.engine import open_engine
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.data.episode_notes import FILE, add_notes, check_used, write_notes
from toolkit.data.formats.lerobot_read import dataset_id, read_table
from toolkit.data.seen_scenes import is_hole, scene_of
from toolkit.evaluation.replay import replay_episodes
from toolkit.evaluation.statistics import rollout_rates
from toolkit.reporting.results import ReplayResult


def run(config: ReplayConfig, run: Run) -> ReplayResult:
    """Replay every episode; the outcome is noted as `replay_success`, in `vag_episodes.parquet` of the run directory.

    The result has the outcomes too, as (task, seed, success).
    """
    dataset = Path(config.dataset)
    recorded, notes = read_table(dataset), load_notes(run, config.notes)
    scenes, rows = [], add_notes(recorded.metadata, recorded.ids, notes)
    for index, metadata in enumerate(rows):
        scene = scene_of(metadata, f"{dataset}: episode {index}")
        if scene is None:
            missing = next(key for key in ("task_name", "seed") if is_hole(metadata.get(key)))
            raise UserError(
                f"{dataset}: nothing notes the '{missing}' of episode {index}, so its initial scene is unknown; only "
                "episodes of `vag collect` and `vag synthesize` can be replayed. If another tool made this dataset of "
                "theirs, give these too: notes=[DATASET]"
            )
        scenes.append((str(metadata["task_name"]), scene[1]))
    check_used(notes)
    world = noted_world(config, rows, str(dataset))
    run.add_data(dataset, dataset_id(dataset), len(scenes))
    episodes = np.split(recorded.actions, np.cumsum(recorded.lengths)[:-1])
    items = [(*scene, actions[: config.max_steps]) for scene, actions in zip(scenes, episodes, strict=True)]
    engine = open_engine(config.engine, run.directory, config.workers)
    try:
        outcomes = [result["success"] for result in replay_episodes(items, engine, world=world)]
    except UserError as error:  # a task that does not exist, actions of another width, a world that does not repeat
        raise UserError(f"{dataset}: {error}") from error
    write_notes(run.directory / FILE, recorded.ids, [{"replay_success": success} for success in outcomes])
    replayed = [(task, seed, success) for (task, seed, _), success in zip(items, outcomes, strict=True)]
    return ReplayResult(systems={config.system: rollout_rates(replayed)})


def summary(result: ReplayResult) -> str:
    return "; ".join(
        f"{name}: {rate.successes}/{rate.n} succeed, of this dataset [{rate.low:.2f}, {rate.high:.2f}]"
        for name, rate in result.systems.items()
    )
