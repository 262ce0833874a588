"""`vag mix`: real and synthetic episodes as one LeRobotDataset, with a given fraction of synthetic frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes.common import load_notes, scenes_told
from recipes.exchange_schema import MixConfig
from recipes.mixture import check_sides, choose_synthetic, synthetic_episodes
from toolkit.base.errors import UserError, warn
from toolkit.base.files import atomic_directory
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.cached_files import remembered_id
from toolkit.data.canvas import choose_cameras
from toolkit.data.episode import ACTION, STATE
from toolkit.data.episode_notes import Notes, add_notes, check_used, filled
from toolkit.data.formats.lerobot_layout import camera_keys, check_links, feature_names, picture_size, read_info
from toolkit.data.formats.lerobot_mix import MixedDataset, MixWriter, Taken, common_features
from toolkit.data.formats.lerobot_read import provenance, read_table
from toolkit.data.formats.lerobot_v21 import write_v21
from toolkit.data.mixing import Side, mixed
from toolkit.data.seen_scenes import UNKNOWN, SeenScenes, merge, write_scenes
from toolkit.data.selection import action_donors, balanced, first_of_each
from toolkit.reporting.exchange_results import MixedPart, MixResult

LAYOUT = "vag import writes it anew"


@dataclass
class Part:
    """Episodes of a dataset that may take part, recorded or synthetic ones.

    available: how many there were before any were chosen. ranks: which are taken first. donors: of each the episode
    whose actions it gets, None for its own.
    """

    name: str
    dataset: MixedDataset
    identity: str
    metadata: list[dict[str, Any]]
    seen: SeenScenes | None
    synthetic: bool
    available: int
    episodes: np.ndarray
    ranks: np.ndarray | None = None
    donors: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        return self.dataset.table.lengths[self.episodes]

    @property
    def tasks(self) -> list[str]:
        return [self.dataset.table.tasks[i] for i in self.episodes]


def run(config: MixConfig, run: Run) -> MixResult:
    """Choose episodes and write them as `dataset`, each with a note of where it comes from."""
    check_sides(None, bool(config.real), bool(config.synthetic))
    notes = load_notes(run, config.notes)
    opened = [open_dataset(run, path, config, notes) for path in [*config.real, *config.synthetic]]
    check_alike([part.dataset for part in opened], [part.name for part in opened])
    features, left_out = common_features([part.dataset for part in opened])
    if left_out:
        print(
            f"left out, since not all datasets have them alike or they are no rows of numbers: {', '.join(left_out)}",
            flush=True,
        )
    parts = chosen_parts(config, opened)
    check_used(notes)
    kinds = {part.synthetic for part in parts}  # a dataset given as real may hold both
    check_sides(config.synthetic_fraction, False in kinds, True in kinds)
    real, synthetic = (side_of([part for part in parts if part.synthetic == kind]) for kind in (False, True))
    rounds = mixed(real, synthetic, config.synthetic_fraction, config.repeat, config.seed)
    taken = [one for side, turns in enumerate(rounds) for one in taken_in(parts, bool(side), turns)]
    total = sum(len(part.episodes) for _, part in taken)
    info = {**opened[0].dataset.info, "robot_type": robot_type(opened)}
    with (
        atomic_directory(run.directory / "dataset") as folder,
        progress(description="mix", total=total, unit="ep") as bar,
    ):
        writer = MixWriter(folder, features, float(info["fps"]))
        for _, part in taken:
            writer.add(part, bar.update)
        writer.finish(info)
        write_seen(folder, [parts[number] for number in dict.fromkeys(number for number, _ in taken)])
    if config.v21:
        with atomic_directory(run.directory / "dataset_v21") as folder:
            with progress(description="v2.1", total=len(writer.episodes), unit="ep") as bar:
                write_v21(run.directory / "dataset", folder, bar.update)
            write_seen(folder, [parts[number] for number in dict.fromkeys(number for number, _ in taken)])
    for path, count in writer.uncut.items():
        warn(f"{path}: cannot be cut without encoding it anew, so it is copied with {count} pictures of no episode")
    told = [told_part(part, [one for number, one in taken if number == k]) for k, part in enumerate(parts)]
    generated = sum(part.frames for part in told if part.source == "synthetic")
    return MixResult(
        episodes=len(writer.episodes),
        frames=writer.frames,
        tasks=len(writer.tasks),
        synthetic_fraction=round(generated / writer.frames, 6),
        fps=info["fps"],
        cameras=writer.cameras,
        parts=told,
        left_out=left_out,
        uncut=writer.uncut,
        dataset="dataset",
    )


def open_dataset(run: Run, path: str, config: MixConfig, notes: Sequence[Notes]) -> Part:
    """A dataset with what is noted of its episodes, entered in the run record. Raises UserError for damage."""
    directory = Path(path)
    if not directory.is_dir():
        raise UserError(f"{path}: not found; expected a LeRobotDataset directory")
    check_links(directory)
    info = read_info(directory)
    chosen = choose_cameras(camera_keys(info), config.cameras, config.rename, path)
    table, identity = read_table(directory), remembered_id(directory)
    run.add_data(path, identity, len(table.lengths))
    metadata = add_notes(table.metadata, table.ids, notes)
    seen, everything = scenes_told(path, table.ids, notes), np.arange(len(table.lengths))
    dataset = MixedDataset(directory, info, table, chosen)
    return Part(path, dataset, identity, metadata, seen, False, len(everything), everything)


def check_alike(datasets: Sequence[MixedDataset], names: Sequence[str]) -> None:
    """Raise UserError where two datasets cannot be one: rate, cameras, their sizes, widths or names of vectors."""
    first, name = datasets[0], names[0]
    for dataset, other in zip(datasets, names, strict=True):
        for key in dataset.cameras.values():
            if dataset.info["features"][key]["dtype"] != "video":
                raise UserError(f"{other}: pictures of '{key}' lie in its tables, not in videos; {LAYOUT} as videos")
        rates = first.info["fps"], dataset.info["fps"]
        if rates[0] != rates[1]:
            faster = other if rates[1] > rates[0] else name
            raise UserError(
                f"{other}: {rates[1]:g} steps a second, {name} {rates[0]:g}; vag import {faster} "
                f"resample_fps={min(rates):g} lowers the rate"
            )
        if dataset.cameras.keys() != first.cameras.keys():
            shared = [camera for camera in first.cameras if camera in dataset.cameras]
            raise UserError(
                f"{other}: has the cameras {', '.join(dataset.cameras)}, {name} {', '.join(first.cameras)}; "
                f"cameras=[{','.join(shared) or 'KEY'}] keeps those that both have, rename={{theirs: ours}} renames one"
            )
        for camera in first.cameras:
            height, width = picture_size(first.info, first.cameras[camera])
            own = picture_size(dataset.info, dataset.cameras[camera])
            if own != (height, width):
                raise UserError(
                    f"{other}: {camera} is {own[0]}x{own[1]} (height x width); {name} has {height}x{width}; "
                    f"vag import {other} image_size=[{height},{width}] writes them at that size"
                )
        check_vectors(first, name, dataset, other)


def check_vectors(first: MixedDataset, name: str, dataset: MixedDataset, other: str) -> None:
    """Raise UserError where states or actions of two datasets have another kind, width or other names."""
    for key in (STATE, ACTION):
        ours, theirs = (one.info["features"][key] for one in (first, dataset))
        if (ours["dtype"], ours["shape"]) != (theirs["dtype"], theirs["shape"]):
            raise UserError(
                f"{other}: '{key}' is {theirs['dtype']} {theirs['shape']}, in {name} {ours['dtype']} {ours['shape']}; "
                f"expected the same. Of the same robot, {LAYOUT} as float32"
            )
        labels = [feature_names(one.info, key) for one in (first, dataset)]
        if all(labels) and labels[0] != labels[1]:
            raise UserError(
                f"{other}: the dimensions of '{key}' are {', '.join(labels[1])}; in {name} {', '.join(labels[0])}. "
                "If they are the same, give both the same names in meta/info.json"
            )


def robot_type(opened: Sequence[Part]) -> Any:
    """That of the first dataset; says so where others differ."""
    kinds = list(dict.fromkeys(str(part.dataset.info.get("robot_type")) for part in opened))
    if len(kinds) > 1:
        warn(f"robot_type: the datasets say {', '.join(kinds)}; {kinds[0]} is written")
    return opened[0].dataset.info.get("robot_type")


def chosen_parts(config: MixConfig, opened: Sequence[Part]) -> list[Part]:
    """Recorded episodes, then synthetic ones, as `vag pretrain` with the same options takes them."""
    recorded, generated = list[Part](), list[Part]()
    for part in opened[: len(config.real)]:
        synthetic = synthetic_episodes(part.metadata, part.name)
        for kind, members in ((False, recorded), (True, generated)):
            episodes = np.flatnonzero(synthetic == kind)
            if len(episodes):
                members.append(
                    Part(
                        part.name, part.dataset, part.identity, part.metadata, part.seen, kind, len(episodes), episodes
                    )
                )
    for part in opened[len(config.real) :]:
        part.synthetic = True
        generated.append(part)
    for part in recorded:
        if config.episodes_per_task is not None:
            part.episodes = part.episodes[first_of_each(numbered(part.tasks), config.episodes_per_task)]
    for part in generated:
        tasks, metadata = numbered(part.tasks), [part.metadata[i] for i in part.episodes]
        kept, weights = choose_synthetic(config, metadata, tasks, part.name)
        part.episodes = part.episodes[kept]
        if config.weight_by and weights is not None:
            part.ranks = -weights / balanced(tasks[kept])
        if config.shuffle_actions:
            names = list(dict.fromkeys(part.tasks))
            part.donors = part.episodes[action_donors(numbered(part.tasks), names, part.name, config.seed)]
    return [*recorded, *generated]


def numbered(tasks: Sequence[str]) -> np.ndarray:
    """(E,) numbers of instructions, in order of appearance."""
    numbers = {task: number for number, task in enumerate(dict.fromkeys(tasks))}
    return np.array([numbers[task] for task in tasks], dtype=np.int64)


def side_of(parts: Sequence[Part]) -> Side:
    """All parts of a side one after the other."""
    lengths = np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)])
    ranked = any(part.ranks is not None for part in parts)
    ranks = np.concatenate([part.ranks for part in parts if part.ranks is not None]) if ranked else None
    return Side(lengths, numbered([task for part in parts for task in part.tasks]), ranks)


def taken_in(parts: Sequence[Part], synthetic: bool, turns: Sequence[np.ndarray]) -> list[tuple[int, Taken]]:
    """By number of the part what is written of it, once for each round."""
    members = [number for number, part in enumerate(parts) if part.synthetic == synthetic]
    ends, found = np.cumsum([len(parts[number].episodes) for number in members]), list[tuple[int, Taken]]()
    for turn, places in enumerate(turns):
        for number, end in zip(members, ends, strict=True):
            part = parts[number]
            own = places[(places >= end - len(part.episodes)) & (places < end)] - (end - len(part.episodes))
            if len(own):
                found.append(
                    (number, Taken(part.dataset, part.episodes[own], notes_of(part, own, turn), donated(part, own)))
                )
    return found


def donated(part: Part, places: np.ndarray) -> list[np.ndarray] | None:
    """The actions of other episodes, each as long as the one that gets it; where it is shorter, its last one again."""
    if part.donors is None:
        return None
    table = part.dataset.table
    starts, found = np.cumsum(table.lengths) - table.lengths, []
    for episode, donor in zip(part.episodes[places], part.donors[places], strict=True):
        steps = np.minimum(np.arange(table.lengths[episode]), table.lengths[donor] - 1)
        found.append(table.actions[starts[donor] + steps])
    return found


def notes_of(part: Part, places: np.ndarray, turn: int) -> list[dict[str, Any]]:
    """What the episode table says of each episode: all that is noted of it, and where it comes from."""
    rows = []
    for place in places:
        number = int(part.episodes[place])
        origin = {
            "source": "synthetic" if part.synthetic else "recorded",
            "source_dataset": "/".join(Path(part.name).resolve().parts[-2:]),
            "source_dataset_id": part.identity,
            "source_dataset_episode": number,
            "source_vag_episode": part.dataset.table.ids[number],
            "repetition": turn,
        }
        if part.donors is not None:
            origin["actions_of_episode"] = int(part.donors[place])
        rows.append({**provenance(filled(part.metadata[number])), **origin})
    return rows


def write_seen(folder: Path, parts: Sequence[Part]) -> None:
    """Which scenes the generators behind the episodes have seen, if there are such."""
    nothing: SeenScenes = {UNKNOWN: []}
    told = [nothing if part.seen is None and part.synthetic else part.seen for part in parts]
    if known := [seen for seen in told if seen is not None]:
        write_scenes(folder / "meta", merge(*known))


def told_part(part: Part, taken: Sequence[Taken]) -> MixedPart:
    lengths = part.dataset.table.lengths
    once = {int(number) for one in taken for number in one.episodes}
    return MixedPart(
        dataset=part.name,
        source="synthetic" if part.synthetic else "recorded",
        episodes=part.available,
        chosen=len(part.episodes),
        taken=len(once),
        written=sum(len(one.episodes) for one in taken),
        frames=sum(int(lengths[one.episodes].sum()) for one in taken),
        left_out=int(part.lengths.sum()) - sum(int(lengths[number]) for number in once),
    )


def summary(result: MixResult) -> str:
    text = (
        f"{result.episodes} episodes, {result.frames} frames, {len(result.cameras)} cameras, synthetic fraction "
        f"{result.synthetic_fraction:.4g} of the frames"
    )
    for part in result.parts:
        text += f"\n{part.dataset}: {part.written} {part.source} episodes, {part.frames} frames"
        if part.chosen < part.episodes:
            text += f"; {part.episodes - part.chosen} of {part.episodes} not chosen"
        if part.taken < part.chosen:
            text += f"; left out to meet the fraction: {part.chosen - part.taken} episodes, {part.left_out} frames"
        if part.written > part.taken:
            text += f"; {part.written - part.taken} of them again"
    return text
