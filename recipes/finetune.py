"""`vag finetune`: go on from a policy checkpoint, usually on the few real episodes."""

from __future__ import annotations

from collections.abc import Sequence

from policies.factory import PolicyObjective
from recipes.common import weights_id
from recipes.pretrain import load_mixture, summary, train_policy
from recipes.schema import FinetuneConfig
from toolkit.data.clips import ClipStore, Control, check_dimensions, check_rates
from toolkit.data.normalizer import compute_statistics
from toolkit.data.scenes import told_scenes
from toolkit.errors import UserError
from toolkit.reporting.run_record import Run
from toolkit.training.runtime import seed_everything

__all__ = ["run", "summary"]


def run(config: FinetuneConfig, run: Run) -> None:
    """Fine-tune and write `pretrained_model/`; pretraining's statistics are kept unless `refit_statistics`."""
    seed_everything(config.seed)
    objective = PolicyObjective.from_pretrained(config.checkpoint)
    if config.normalization == "per_source" and not config.refit_statistics:
        raise UserError("normalization=per_source moves the data's ranges: it needs refit_statistics=true")
    sources = load_mixture(
        config,
        run,
        state_dim=objective.state_dim,
        action_dim=objective.action_dim,
        asked_by=config.checkpoint,
    )
    if sources[0].store.image_size != objective.image_shape[1]:
        raise UserError(f"image_size={config.image_size}; {config.checkpoint} expects {objective.image_shape[1]}")
    if not config.refit_statistics and (before := Control.read(config.checkpoint)):
        check_control(before, [source.store for source in sources], config.pad_widths)
    if config.refit_statistics:
        objective.refit_statistics(compute_statistics([source.unpadded for source in sources if source.weight]))
    if config.freeze_vision_encoder:
        objective.freeze_vision_encoder()
    run.result["pretrained_id"] = weights_id(config.checkpoint)
    train_policy(config, run, objective, sources, seen_before=told_scenes(config.checkpoint))


def check_control(before: Control, stores: Sequence[ClipStore], pad_widths: bool) -> None:
    """Raise UserError where the data's numbers mean something else than those of a checkpoint's training."""
    try:
        check_rates([before, *stores])
        if not pad_widths:
            check_dimensions([before, *stores])
    except UserError as error:
        raise UserError(f"{error}. To go on from these weights all the same: refit_statistics=true") from error
