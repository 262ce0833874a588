"""`vag pretrain`: train a policy on real and synthetic datasets at a fixed synthetic fraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.configs import PreTrainedConfig

from policies.checkpoint_config import Loading
from policies.checkpoints import checkpoint_directory
from policies.factory import PolicyObjective, Wanted, build_policy, check_choice
from policies.policy_types import OURS, traits_of
from policies.stock import StockPolicy
from recipes.common import Pictures, converter, load_all, load_notes, resample_all, seen_behind, speed, weights_id
from recipes.lerobot_files import write_model_card, write_train_config
from recipes.mixture import check_sides, choose_synthetic, synthetic_episodes
from recipes.policy_memory import memory_text, policy_memory
from recipes.policy_schema import PolicyTrainingConfig, PretrainConfig
from toolkit.base.errors import UserError, warn
from toolkit.base.processes import processes
from toolkit.base.run import Run
from toolkit.data.actions import converted_rows, find_reference
from toolkit.data.augmentation import Augmented
from toolkit.data.batches import BatchSource, Mixture, WeightedDataset, make_sources
from toolkit.data.canvas import Size
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import Conventions
from toolkit.data.episode_notes import check_used
from toolkit.data.images import as_size
from toolkit.data.normalizer import compute_statistics
from toolkit.data.seen_scenes import SeenScenes, merge, scenes_behind, scenes_of, write_scenes
from toolkit.data.selection import first_of_each, subset, with_shuffled_actions
from toolkit.data.text import split_words
from toolkit.reporting.generator_results import Throughput
from toolkit.reporting.results import PretrainResult
from toolkit.training.fsdp import check_sharding, group_sizes
from toolkit.training.loop import train
from toolkit.training.optim import make_optimizer
from toolkit.training.runtime import seed_everything, set_threads

OWN_SIZE = (64, 64)  # of the pictures of our types, unless another is asked for; LeRobot's see what was recorded


def run(config: PretrainConfig, run: Run) -> PretrainResult:
    """Train a new policy and write `pretrained_model/` in LeRobot's layout."""
    if config.dry_run:
        return policy_memory(config)
    wanted, identity = wanted_policy(config), None
    check_choice(wanted)
    if config.policy.path is not None and wanted.path is not None:
        run.add_data(config.policy.path, identity := weights_id(wanted.path))
    check_one_unit(config, config.action_representation)
    if config.own_sizes and config.image_size is not None:
        raise UserError(f"own_sizes=true and image_size={config.image_size}: give one of them")
    sources = load_mixture(config, run, size=OWN_SIZE if wanted.type in OURS and not config.own_sizes else None)
    seed_everything(config.seed)
    store, kind, reference = sources[0].store, config.action_representation, list[int]()
    if kind != "absolute":
        reference = find_reference([source.store for source in sources], kind, config.absolute_dimensions)
    objective = build_policy(
        config.policy.type,
        cameras={camera: (3, *size) for camera, size in store.canvas.sizes.items()},
        state_dim=store.states.shape[1],
        action_dim=store.actions.shape[1],
        stats=lambda horizon: statistics_of(sources, kind, reference, horizon),
        options={**words_read(config, sources), **config.policy.options},
        text_encoder=config.text_encoder,
        representation=kind,
        reference=reference,
        wanted=wanted,
        action_names=list(store.action_names),
    )
    before = scenes_behind(wanted.path) if wanted.path is not None else None
    return train_policy(config, run, objective, sources, before, pretrained_id=identity)


def wanted_policy(config: PretrainConfig) -> Wanted:
    """The policy that the options name; of a checkpoint on the hub, downloaded."""
    policy, loading = config.policy, Loading.of(config)
    path = None if policy.path is None else checkpoint_directory(policy.path, loading)
    return Wanted(policy.type, policy.options, path, policy.lora_rank, config.freeze_vision_encoder, loading)


def picture_sizes(policy: PolicyObjective | StockPolicy, trained: Conventions) -> Size | dict[str, Size] | None:
    """Of the pictures that a checkpoint expects: one for all cameras, by camera, or (None) whatever was recorded.

    Of one that brings pictures to its own size by itself: as it was trained.
    """
    sizes = policy.picture_sizes
    if traits_of(policy.policy_type).resizes:
        if trained.canvas is None:
            return None
        sizes = trained.canvas.sizes
    first = next(iter(sizes.values()))
    return first if set(sizes.values()) == {first} else sizes


def expected_sizes(policy: PolicyObjective | StockPolicy, checkpoint: str | Path) -> Size | dict[str, Size]:
    """Of the pictures that a checkpoint is handed: as `picture_sizes`, or else those of its features."""
    return picture_sizes(policy, Conventions.of(checkpoint)) or policy.picture_sizes


def check_one_unit(config: PolicyTrainingConfig, kind: str) -> None:
    """Raise UserError where actions are learned relative to states, and an option moves or pads them apart."""
    if kind != "absolute" and (config.pad_widths or config.normalization == "per_source"):
        option = "pad_widths=true" if config.pad_widths else "normalization=per_source"
        raise UserError(
            f"{option}: the policy learns actions as {kind}, differences to a state, which then are in another unit; "
            "leave it out, or pretrain with action_representation=absolute"
        )


def statistics_of(
    sources: Sequence[WeightedDataset], kind: str, reference: Sequence[int], horizon: int
) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of a mixture, of actions as a policy learns them: those of the chunks that training draws."""
    used = [source for source in sources if source.weight]
    if kind == "absolute":
        return compute_statistics([source.unpadded for source in used])
    actions = []
    for source in used:
        spans = zip(source.store.episode_lengths, source.picture_every, strict=True)
        starts = [np.arange(0, length, every) for length, every in spans]
        actions.append(converted_rows(source.unpadded, horizon, converter(kind, reference), starts))
    return compute_statistics([source.unpadded for source in used], actions)


def words_read(config: PretrainConfig, sources: Sequence[WeightedDataset]) -> dict[str, int]:
    """The option that lets a policy read as many words as the longest instruction has; none where it does anyway."""
    if config.policy.type not in OURS or config.policy.path is not None:
        return {}  # whose tokens are not words, or that reads what it has read before
    default = getattr(PreTrainedConfig.get_choice_class(config.policy.type), "tokenizer_max_length", None)
    longest = max(len(split_words(task)) for source in sources for task in source.store.tasks)
    return {"tokenizer_max_length": longest} if isinstance(default, int) and longest > default else {}


def load_mixture(
    config: PolicyTrainingConfig,
    run: Run,
    cameras: Sequence[str] = (),
    size: Size | Mapping[str, Size] | None = OWN_SIZE,
    **widths: Any,
) -> list[WeightedDataset]:
    """All datasets, with the share of each; widths as `make_sources`.

    cameras: all of the first dataset where none is named; size: of the pictures, unless the config says another, of
    all, by camera, or (None) as recorded.

    Raises UserError if the fraction does not fit the datasets, or these not each other.
    """
    set_threads(config.runtime)
    group_sizes(config.parallelism)
    check_sides(config.synthetic_fraction, bool(config.real), bool(config.synthetic))
    notes = load_notes(run, config.notes)
    chosen = size if config.image_size is None else as_size(config.image_size, "image_size")
    pictures = Pictures(chosen, cameras or config.cameras, config.rename, config.frame_storage)
    stores = resample_all(load_all(run, [*config.real, *config.synthetic], pictures, notes), config)
    real, mixed_in = [], list[ClipStore]()
    for store in stores[: len(config.real)]:
        recorded, generated = by_origin(store)
        real.append(recorded)
        mixed_in += generated
    if config.episodes_per_task is not None:
        real = [subset(store, first_of_each(store.episode_tasks, config.episodes_per_task)) for store in real]
    generated = [*mixed_in, *stores[len(config.real) :]]
    picked = [chosen_synthetic(config, store) for store in generated]
    check_used(notes)
    synthetic = [store for store, _ in picked]
    weights = [float(store.episode_lengths.sum()) for store in [*real, *synthetic]]
    if config.real_shares is not None:
        if len(config.real_shares) != len(real):
            raise UserError(f"real_shares={config.real_shares}: expected a number for each of real=[...]")
        total = sum(weights[: len(real)])
        weights[: len(real)] = [total * share / max(1e-9, sum(config.real_shares)) for share in config.real_shares]
    if (fraction := config.synthetic_fraction) is not None:
        weights = [
            share * size / max(1.0, sum(part))
            for share, part in ((1 - fraction, weights[: len(real)]), (fraction, weights[len(real) :]))
            for size in part
        ]
    sources = make_sources(
        [*real, *synthetic],
        weights,
        len(real),
        normalization=config.normalization,
        pad_widths=config.pad_widths,
        **widths,
    )
    for source, (_, episode_weights) in zip(sources[len(real) :], picked, strict=True):
        source.episode_weights = episode_weights
    return sources


def by_origin(store: ClipStore) -> tuple[ClipStore, list[ClipStore]]:
    """The recorded episodes of a dataset, and a store of its synthetic ones where it holds any, as a merged one does.

    Raises UserError if all are synthetic.
    """
    synthetic = synthetic_episodes(store.metadata, store.name)
    if not synthetic.any():
        return store, []
    return subset(store, np.flatnonzero(~synthetic)), [subset(store, np.flatnonzero(synthetic))]


def chosen_synthetic(config: PolicyTrainingConfig, store: ClipStore) -> tuple[ClipStore, np.ndarray | None]:
    """The episodes of a synthetic dataset that take part, and their weights if they are not drawn alike."""
    episodes, weights = choose_synthetic(config, store.metadata, store.episode_tasks, store.name)
    store = subset(store, episodes)
    if config.shuffle_actions:
        store = with_shuffled_actions(store, config.seed)
    return store, weights


def train_policy(
    config: PolicyTrainingConfig,
    run: Run,
    objective: PolicyObjective,
    sources: list[WeightedDataset],
    seen_before: SeenScenes | None = None,
    before: Conventions | None = None,
    pretrained_id: str | None = None,
) -> PretrainResult:
    """Train through the one loop and write the checkpoint, what it has seen and learned from.

    seen_before, before, pretrained_id: scenes, conventions and weights of the checkpoint that training goes on from.
    """
    check_sharding(objective, config.parallelism)
    objective.check_instructions([task for source in sources for task in source.store.tasks])
    warn_of_rate(objective, config.optim.learning_rate)
    drop_last = int(getattr(objective.config, "drop_n_last_frames", 0) or 0)
    around = objective.action_deltas, config.seed, objective.observation_deltas, drop_last
    mixture = Mixture(sources, config.optim.batch_size, *around)
    data: BatchSource = Augmented(mixture, config.seed) if config.augment else mixture
    name = objective.policy_type
    settled = make_optimizer(objective, config.optim)[1]
    description = f"{run.record['command']} {name}"
    where = config.runtime, run.directory, description
    metrics, throughput = train(objective, data, config.optim, *where, seed=config.seed, parallelism=config.parallelism)
    realised = mixture.fractions(config.optim.steps, config.optim.gradient_accumulation * processes().size)
    losses = {k: round(v, 4) for k, v in metrics.items() if k != "synthetic_fraction"}  # that of one batch
    parameters = sum(p.numel() for p in objective.parameters())
    trained_on = [source.store for source in sources if source.weight]
    starts = [scenes_of(store.metadata) for store in trained_on]
    behind = [seen_behind(source.store) if source.synthetic else source.store.seen_scenes or {} for source in sources]
    seen = merge(seen_before or {}, *starts, *behind)

    def write(folder: Path) -> None:
        objective.save_pretrained(folder)
        write_train_config(folder, objective, config, settled)
        write_model_card(folder, objective, config, sources, realised, seen, losses, settled)
        write_scenes(folder, seen)
        Conventions.shared([*([before] if before else []), *trained_on]).write(folder)

    run.make("pretrained_model", write)
    run.remove_when_finished(run.directory / "checkpoints")
    return PretrainResult(
        policy=name,
        steps=config.optim.steps,
        loss=losses.pop("loss", None),
        losses=losses,
        parameters=parameters,
        throughput=Throughput(**throughput),
        checkpoint="pretrained_model",
        synthetic_fraction=round(sum(f for f, s in zip(realised, sources, strict=True) if s.synthetic), 4),
        episodes=[source.store.num_episodes for source in sources],
        pretrained_id=pretrained_id,
    )


def warn_of_rate(objective: PolicyObjective, rate: float) -> None:
    """Say where one of LeRobot's types would learn far faster than in LeRobot."""
    own = float(getattr(objective.config.get_optimizer_preset(), "lr", 0.0))
    if objective.policy_type not in OURS and rate > 3 * own > 0:
        warn(
            f"optim.learning_rate={rate:g} is {rate / own:.0f} times what LeRobot trains all weights of "
            f"{objective.policy_type} with, {own:g}; adapters (policy.lora_rank) take more than that"
        )


def summary(result: PretrainResult) -> str:
    if result.dry_run is not None:
        return memory_text(result.policy, result.dry_run)
    fraction = f"synthetic fraction {result.synthetic_fraction}"
    return f"{result.policy}, loss {result.loss}, {fraction}{speed(result.throughput)}"
