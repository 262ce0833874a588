"""Typed configuration of the commands that hand datasets and checkpoints to others."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from recipes.schema import MOST_EPISODES, NOTES, RENAME, CommonConfig
from toolkit.base.options import option


@dataclass
class MixConfig(CommonConfig):
    real: list[str] = option([], "recorded datasets")
    synthetic: list[str] = option([], "datasets written by synthesize")
    notes: list[str] = option([], NOTES)
    synthetic_fraction: float | None = option(
        None, "of all frames of the dataset; null = all episodes, whatever that makes", least=0, most=1
    )
    repeat: bool = option(False, "write episodes of the short side again, instead of leaving some of the other out")
    episodes_per_task: int | None = option(
        None, "use only the first so many real episodes of each task", least=1, most=MOST_EPISODES
    )
    synthetic_per_task: int | None = option(
        None, "the same for synthetic ones, before any are selected", least=1, most=MOST_EPISODES
    )
    select: list[str] = option([], "synthetic episodes by score: score_cycle_error<=0.2, or <=50%")
    weight_by: str | None = option(None, "score whose best synthetic episodes are taken first, where not all are")
    shuffle_actions: bool = option(False, "synthetic episodes get the actions of others of their task: a control")
    v21: bool = option(False, "write dataset_v21 too, the same as LeRobotDataset v2.1, which openpi's LeRobot reads")
    cameras: list[str] = option([], "by their keys, to keep them alone; [] = all, which every dataset must then have")
    rename: dict[str, str] = option({}, RENAME)


@dataclass
class PushConfig(CommonConfig):
    source: str = option(MISSING, "directory of a dataset, of a policy (pretrained_model) or of a generator")
    repo_id: str = option(MISSING, "owner/name on the Hugging Face hub")
    revision: str | None = option(None, "branch to upload to, made where there is none; null = main")
    private: bool | None = option(
        None, "visibility of a repository that is made; null = the hub's own choice, which is public for persons"
    )
    license: str | None = option(
        None, "as the hub names it, such as cc-by-4.0; null = what the checkpoint says, unknown for a dataset"
    )
    datasets: list[str] = option([], "names on the hub of what it was trained on or made of, for links on the card")
    metrics: list[str] = option([], "run directories of evaluate, replay, score and the like, whose numbers are shown")
    dry_run: bool = option(False, "write the folder that would be uploaded, and upload nothing")
