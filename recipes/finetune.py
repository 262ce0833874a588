"""`vag finetune`: go on from a policy checkpoint, usually on the few real episodes."""

from __future__ import annotations

from dataclasses import replace

from policies.adapters import add_lora
from policies.checkpoint_config import Loading
from policies.checkpoints import checkpoint_directory
from policies.factory import PolicyObjective
from policies.policy_types import traits_of
from recipes.common import weights_id
from recipes.policy_schema import FinetuneConfig
from recipes.pretrain import check_one_unit, load_mixture, picture_sizes, statistics_of, summary, train_policy
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.data.conventions import Conventions
from toolkit.data.seen_scenes import scenes_behind
from toolkit.reporting.results import PretrainResult
from toolkit.training.runtime import seed_everything

__all__ = ["run", "summary"]


def run(config: FinetuneConfig, run: Run) -> PretrainResult:
    """Fine-tune and write `pretrained_model/`.

    Pretraining's statistics are kept unless `refit_statistics`; so data of another rate, or with other names of
    dimensions, is refused unless that is asked for.
    """
    seed_everything(config.seed)
    loading = Loading.of(config)
    checkpoint = checkpoint_directory(config.checkpoint, loading)
    objective = PolicyObjective.from_pretrained(checkpoint, loading=loading)
    identity = weights_id(checkpoint)
    run.add_data(config.checkpoint, identity)
    if config.normalization == "per_source" and not config.refit_statistics:
        raise UserError("normalization=per_source moves the data's ranges: it needs refit_statistics=true")
    check_one_unit(config, objective.representation[0])
    trained = Conventions.of(checkpoint)
    sources = load_mixture(
        config,
        run,
        cameras=trained.cameras_of(config.cameras) if trained.canvas else config.cameras or objective.cameras,
        size=picture_sizes(objective, trained),
        state_dim=objective.state_dim,
        action_dim=objective.action_dim,
        asked_by=config.checkpoint,
    )
    expected = objective.picture_sizes
    if not traits_of(objective.policy_type).resizes and sources[0].store.canvas.sizes != expected:
        shown = ", ".join(str(list(size)) for size in dict.fromkeys(expected.values()))
        raise UserError(f"image_size={config.image_size}; {config.checkpoint} expects {shown}")
    before = None if config.refit_statistics else Conventions.read(checkpoint)
    if before is not None:
        for source in sources:
            before.check(source.store, names=not config.pad_widths)
    if config.refit_statistics:
        kind, reference = objective.representation
        for source in sources if kind != "absolute" else ():  # which state belongs to which action is not fitted again
            replace(trained, fps=0).check(source.store)
        objective.refit_statistics(statistics_of(sources, kind, reference, objective.horizon))
    if config.policy.lora_rank is not None:
        add_lora(objective.policy, config.policy.lora_rank)
    if config.freeze_vision_encoder:
        objective.freeze_vision_encoder()  # with the adapters in it
    return train_policy(config, run, objective, sources, scenes_behind(checkpoint), before, identity)
