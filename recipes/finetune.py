"""`vag finetune`: go on from a policy checkpoint, usually on the few real episodes."""

from __future__ import annotations

from policies.factory import PolicyObjective
from recipes.common import weights_id
from recipes.pretrain import load_mixture, summary, train_policy
from recipes.schema import FinetuneConfig
from toolkit.data.normalizer import compute_statistics
from toolkit.data.scenes import read_scenes
from toolkit.errors import UserError
from toolkit.reporting.run_record import Run
from toolkit.training.runtime import seed_everything

__all__ = ["run", "summary"]


def run(config: FinetuneConfig, run: Run) -> None:
    """Fine-tune and write `pretrained_model/`; pretraining's statistics are kept unless `refit_statistics`."""
    stores, weights = load_mixture(config, run)
    seed_everything(config.seed)
    objective = PolicyObjective.from_pretrained(config.checkpoint)
    expected = {"state": objective.state_dim, "action": objective.action_dim, "picture": objective.image_shape[1]}
    for path, store in zip([*config.real, *config.synthetic], stores, strict=True):
        found = {"state": store.states.shape[1], "action": store.actions.shape[1], "picture": store.image_size}
        for what, width in found.items():
            if width != expected[what]:
                raise UserError(f"{path}: {what} width {width}; {config.checkpoint} expects {expected[what]}")
    if config.refit_statistics:
        objective.refit_statistics(compute_statistics([s for s, w in zip(stores, weights, strict=True) if w]))
    run.result["pretrained_id"] = weights_id(config.checkpoint)
    train_policy(config, run, objective, stores, weights, seen_before=read_scenes(config.checkpoint) or {})
