"""Cards, `README.md`, for the Hugging Face hub: what was made of what, by which command, and how it was measured.

Every number is read from a record or from the data themselves. Texts of others are escaped; paths of this machine are
shortened to their last names.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import DatasetCardData, ModelCardData

from policies.generator_kinds import GENERATOR
from recipes.benchmark_policies import generators_behind, goes_on_from
from recipes.common import weights_id
from recipes.compose import command_words
from recipes.lerobot_files import CARD, plain, row, scene_lines, table
from recipes.study_schema import SCHEMAS
from toolkit.base.errors import UserError
from toolkit.base.reading import read_json
from toolkit.base.record import RECORD, read_record
from toolkit.data.cached_files import remembered_id
from toolkit.data.formats.lerobot_layout import INFO, read_info
from toolkit.data.formats.lerobot_read import read_table
from toolkit.data.seen_scenes import read_scenes
from toolkit.reporting.cards import Measured

PATH = re.compile(r"(?<![\w.~/])/[^\s,:;'\"()\[\]{}]+")
ROOTS = ("home", "root", "Users", "tmp", "mnt", "media", "scratch", "data", "workspace")
MEANINGS = {  # of columns that vag writes
    "source": "`synthetic` for generated episodes, `recorded` or `teleoperation` for others",
    "source_dataset": "the dataset that the episode was taken from",
    "source_dataset_id": "SHA-256 of that dataset's files, 16 digits",
    "source_dataset_episode": "the number that the episode had there",
    "source_vag_episode": "SHA-256 of the states and actions that it had there, 16 digits",
    "repetition": "0, or how often the episode stands before in this dataset",
    "actions_of_episode": "the episode whose actions it was given: a control",
    "generator_id": "SHA-256 of the generator's weights, 16 digits",
    "sampler": "how the generator was sampled",
    "sample_seed": "seed of the generator's noise",
    "seed": "initial scene",
    "task_name": "task of the initial scene",
    "picture_every": "steps from one picture to the next",
    "replay_success": "its actions were executed in the simulator, and solved the task",
    "trusted": "no score is worse than those of recorded episodes",
    "source_file": "file that the episode was imported from",
    "source_episode": "its name in that file",
    "first_picture_of": "number of the recorded episode whose first picture it starts from",
    "ends": "`sampled`: as long as a recorded episode of its instruction, `window`: as long as the generator's window",
    "world": "simulator that it was made in; Meta-World where nothing is said",
    "world_settings": "options of the simulator",
    "score_flow_loss": "loss of the generator on its own episode; less is better",
    "score_cycle_error": "distance to the actions that the generator infers from the video; less is better",
    "score_limit_excess": "how far it leaves the kinematic limits of recorded episodes; less is better",
    "score_nearest": "distance to the nearest recorded episode; less is better",
}


@dataclass(frozen=True)
class Thing:
    """A directory that is described. kind: dataset, policy or generator; record: of the run that made it, if any."""

    directory: Path
    kind: str
    identity: str
    record: dict[str, Any] | None

    @property
    def repo_type(self) -> str:
        return "dataset" if self.kind == "dataset" else "model"


@dataclass
class Contents:
    """Lines of a card under its title; synthetic: a part of the data is, which the title and the tags say."""

    lines: list[str] = field(default_factory=list)
    synthetic: bool = False

    def section(self, title: str, *lines: str) -> None:
        self.lines += ["", f"## {title}", "", *lines]


def open_thing(source: str) -> Thing:
    """Find out what a directory is. Raises UserError for anything that is no dataset, policy or generator."""
    path = Path(source)
    if not path.is_dir():
        raise UserError(f"{source}: not found; expected the directory of a dataset, a policy or a generator")
    above = path.resolve().parent
    record = read_record(above) if (above / RECORD).is_file() else None
    if (path / INFO).is_file():
        return Thing(path, "dataset", remembered_id(path), record)
    if (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        is_generator = read_json(path / "config.json").get("type") in (GENERATOR, None)
        return Thing(path, "generator" if is_generator else "policy", weights_id(path), record)
    inside = [name for name in ("dataset", "pretrained_model", "generator") if (path / name).is_dir()]
    hint = f"; do you mean {path / inside[0]}?" if inside else ""
    raise UserError(
        f"{source}: holds neither {INFO} nor config.json with model.safetensors; expected a dataset, a policy "
        f"(pretrained_model) or a generator{hint}"
    )


def card(thing: Thing, repo_id: str, license: str | None, datasets: Sequence[str], runs: Sequence[Measured]) -> str:
    """The whole text of `README.md`."""
    contents = Contents()
    {"dataset": dataset_contents, "policy": policy_contents, "generator": generator_contents}[thing.kind](
        thing, contents, datasets
    )
    making_contents(thing, contents)
    number_contents(runs, contents)
    use_contents(thing, repo_id, contents)
    tags = ["vag", *(["synthetic"] if contents.synthetic else [])]
    about: Any
    if thing.kind == "dataset":
        about = DatasetCardData(
            license=license,
            tags=["LeRobot", *tags],
            task_categories=["robotics"],
            configs=[{"config_name": "default", "data_files": "data/*/*.parquet"}],
        )
    else:
        name = str(read_json(thing.directory / "config.json").get("type") or GENERATOR)
        library = "lerobot" if thing.kind == "policy" else None
        about = ModelCardData(
            license=license,
            library_name=library,
            pipeline_tag="robotics",
            tags=sorted({"robotics", name, *tags, *([library] if library else [])}),
            datasets=list(datasets) or None,
            model_name=repo_id.rsplit("/", 1)[-1],
        )
    marks = {"dataset": "synthetic data in it", "policy": "trained on synthetic data", "generator": ""}
    mark = f" ({marks[thing.kind]})" if contents.synthetic and marks[thing.kind] else ""
    title = f"# {plain(repo_id.rsplit('/', 1)[-1])}{mark}"
    return "\n".join(["---", about.to_yaml(), "---", "", title, *contents.lines, *earlier_card(thing)]) + "\n"


# ------------------------------------------------------------------------------------------------------------- what


def dataset_contents(thing: Thing, contents: Contents, datasets: Sequence[str]) -> None:
    """Episodes by source, the shares of what it was made of, features, columns, what its generator has seen."""
    info, read = read_info(thing.directory), read_table(thing.directory)
    kinds = np.array(["synthetic" if m.get("source") == "synthetic" else "recorded" for m in read.metadata])
    contents.synthetic = "synthetic" in kinds
    frames = {kind: int(read.lengths[kinds == kind].sum()) for kind in ("recorded", "synthetic")}
    total = sum(frames.values())
    said = f"A LeRobotDataset {plain(info['codebase_version'])} of {len(kinds)} episodes, {total} frames at "
    said += f"{info['fps']:g} steps a second"
    if contents.synthetic:
        share = frames["synthetic"] / total
        said += (
            f". **{int((kinds == 'synthetic').sum())} of its episodes are synthetic**: video, actions and states of "
            f"a generator, {share:.1%} of all frames"
        )
    contents.lines += ["", f"{said}. Where it was made its files have the id `{thing.identity}` (SHA-256, 16 digits)."]
    groups = Counter[tuple[str, ...]]()
    for metadata, kind, length in zip(read.metadata, kinds, read.lengths, strict=True):
        names = [str(metadata.get(key) or "") for key in ("source_dataset", "source_dataset_id", "generator_id")]
        groups[kind, *map(without_places, names)] += int(length)
    shown = [row(*group, count, f"{count / total:.3f}") for group, count in groups.items()]
    contents.section(
        "Where the frames come from", *table("source", "dataset", "id", "generator", "frames", "share"), *shown
    )
    if datasets:
        contents.lines += [
            "",
            "On the hub: " + ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets),
        ]
    features = [row(key, one["dtype"], one["shape"]) for key, one in info["features"].items()]
    contents.section("Features", *table("feature", "kind", "shape"), *features)
    tasks = Counter(read.tasks)
    contents.section("Tasks", *table("instruction", "episodes"), *(row(*item) for item in tasks.items()))
    columns = dict.fromkeys(key for metadata in read.metadata for key in metadata)
    if columns:
        where = "Of each episode, in `meta/episodes` or in `meta/vag_episodes.parquet`, where `vag_episode` joins them."
        told = [row(key, "") if key not in MEANINGS else f"| {plain(key)} | {MEANINGS[key]} |" for key in columns]
        contents.section("What is noted of the episodes", where, "", *table("column", "meaning"), *told)
    if (seen := read_scenes(thing.directory / "meta")) is not None:
        contents.section("Scenes that the generator behind them has seen", *scene_lines(seen))


def policy_contents(thing: Thing, contents: Contents, datasets: Sequence[str]) -> None:
    config = read_json(thing.directory / "config.json")
    contents.lines += [
        "",
        f"A policy of the type `{plain(config.get('type'))}`. Its weights have the id `{thing.identity}`.",
    ]
    features = {**(config.get("input_features") or {}), **(config.get("output_features") or {})}
    if features and all(isinstance(one, dict) for one in features.values()):
        shown = [row(key, one.get("type"), one.get("shape")) for key, one in features.items()]
        contents.section("Inputs and outputs", *table("feature", "kind", "shape"), *shown)
    trained_on(thing, contents, datasets)


def generator_contents(thing: Thing, contents: Contents, datasets: Sequence[str]) -> None:
    contents.lines += ["", f"A generator of video, actions and states. Its weights have the id `{thing.identity}`."]
    trained_on(thing, contents, datasets)


def trained_on(thing: Thing, contents: Contents, datasets: Sequence[str]) -> None:
    """Datasets with their ids and kinds, the generators behind them, the demonstrations that were seen."""
    if thing.record is None:
        contents.section("What it was trained on", "No record of vag lies beside it: nothing is known.")
    else:
        contents.section("What it was trained on", *training_data(thing.record, contents))
        for checkpoint, record in trained_before(thing.record):
            name = plain(without_places(checkpoint))
            lines = ["No record of its training lies beside it: nothing is known."]
            contents.section(
                f"What {name} was trained on, from which it went on",
                *(lines if record is None else training_data(record, contents)),
            )
    if datasets:
        contents.lines += [
            "",
            "On the hub: " + ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets),
        ]
    seen = read_scenes(thing.directory)
    lines = ["The checkpoint does not say."] if seen is None else scene_lines(seen)
    contents.section(
        "Demonstrations seen", "Initial scenes that it, or the generator of its data, has seen:", "", *lines
    )


def training_data(record: dict[str, Any], contents: Contents) -> list[str]:
    """A table of the data of one training and its share of synthetic clips; `contents` notes if some are synthetic."""
    synthetic = {str(path) for path in record["config"].get("synthetic") or []}
    lines = table("name", "id", "kind", "episodes", "generators")
    for entry in record["data"]:
        path, episodes = str(entry["path"]), entry.get("episodes")
        kind = "synthetic" if path in synthetic else ("dataset" if episodes is not None else "checkpoint or notes")
        behind = generators_behind(path) if episodes is not None else frozenset[str]()
        contents.synthetic |= kind == "synthetic" or bool(behind)
        counted = "" if episodes is None else episodes
        lines.append(row(without_places(path), entry["id"], kind, counted, ", ".join(sorted(behind))))
    if isinstance(share := record["result"].get("synthetic_fraction"), int | float):
        contents.synthetic |= share > 0
        lines += ["", f"Synthetic clips among all that were drawn: {plain(share)}."]
    return lines


def trained_before(
    record: dict[str, Any], named: frozenset[str] = frozenset()
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Checkpoints that a training went on from, latest first, each with the record of its own training.

    named: those that were met, so that records which name each other end. None in place of a record that is gone, or
    whose weights are no longer those that were read.
    """
    ids = {str(entry["path"]): entry["id"] for entry in record["data"]}
    checkpoint = goes_on_from(record["config"])
    if checkpoint is None or checkpoint not in ids or checkpoint in named:
        return
    above = Path(checkpoint).parent
    if not (above / RECORD).is_file() or weights_id(checkpoint) != ids[checkpoint]:
        yield checkpoint, None
        return
    earlier = read_record(above)
    yield checkpoint, earlier
    yield from trained_before(earlier, named | {checkpoint})


def making_contents(thing: Thing, contents: Contents) -> None:
    """The command, the commit, the seeds and versions, by the record of the run."""
    if thing.record is None:
        return
    record, config = thing.record, thing.record["config"]
    known = record["command"] in SCHEMAS
    words = command_words(record["command"], cleaned(config)) if known else []
    seeds = {key: value for key, value in config.items() if "seed" in key and value is not None}
    lines = [
        *("", f"    vag {plain_code(' '.join([record['command'], *words]))}", "", *table("what", "value")),
        row("commit of vag", record["git_sha"]),
        *(row(key, value) for key, value in seeds.items()),
        *(row(name, version) for name, version in record["versions"].items()),
    ]
    if record["code_before"]:
        before = {str(one.get("git_sha")) for one in record["code_before"] if isinstance(one, dict)}
        lines.append(row("begun by commit", ", ".join(sorted(before))))
    result = record["result"]
    for key in ("steps", "loss", "parameters"):
        if isinstance(result.get(key), int | float):
            lines.append(row(key, result[key]))
    contents.section("How it was made", *lines[1:])


def number_contents(runs: Sequence[Measured], contents: Contents) -> None:
    if not runs:
        return
    lines = ["95 % intervals; what they are of stands beside them.", ""]
    for run in runs:
        words = command_words(run.record["command"], cleaned(run.record["config"]))
        lines += [*table("of", "metric", "value", "interval", "n", "note")]
        for one in run.numbers:
            interval = "" if one.low is None or one.high is None else f"{one.low:.3g} to {one.high:.3g}"
            lines.append(
                row(one.of, one.metric, f"{one.value:.3g}", interval, "" if one.n is None else one.n, one.note)
            )
        command = plain_code(" ".join([run.record["command"], *words]))
        lines += ["", f"    vag {command}  # commit {plain_code(run.record['git_sha'])}", ""]
    contents.section("Numbers", *lines[:-1])


def use_contents(thing: Thing, repo_id: str, contents: Contents) -> None:
    uses = {
        "dataset": [f"lerobot-train --dataset.repo_id={repo_id} --policy.type=act --policy.push_to_hub=false"],
        "policy": [f"vag evaluate checkpoint={repo_id} dataset=HELD_OUT", f"lerobot-train --policy.path={repo_id} ..."],
        "generator": [f"hf download {repo_id} --local-dir generator", "vag synthesize checkpoint=generator"],
    }
    contents.section("Use", *(f"    {line}" for line in uses[thing.kind]))


def earlier_card(thing: Thing) -> list[str]:
    """The body of a card that somebody else wrote; those of vag are made anew."""
    path = thing.directory / CARD
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    front, body = "", text
    if text.startswith("---\n") and "\n---\n" in text[4:]:
        front, body = text[4:].split("\n---\n", 1)
    if re.search(r"^- vag$", front, re.MULTILINE):
        return []
    return ["", "## The card that was there before", "", without_places(body.strip())]


# ------------------------------------------------------------------------------------------------------------- texts


def without_places(text: str) -> str:
    """The text with each absolute path shortened to its last two names; `/arm/joint`, a topic of ROS, is none."""
    return _last_names(text) if is_place(text) else PATH.sub(lambda found: _last_names(found[0]), text)


def is_place(text: str) -> bool:
    """True for an absolute path of this machine, or of one like it."""
    parts = Path(text).parts if text.startswith("/") and "\0" not in text else ()
    return len(parts) > 2 and (parts[1] in ROOTS or os.path.lexists(f"/{parts[1]}"))


def _last_names(text: str) -> str:
    return "/".join(Path(text).parts[1:][-2:]) if is_place(text) else text


def cleaned(value: Any) -> Any:
    """The same without places, in nested mappings and lists."""
    if isinstance(value, dict):
        return {key: cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [cleaned(inner) for inner in value]
    return without_places(value) if isinstance(value, str) else value


def plain_code(text: str) -> str:
    """A text as one line of an indented block, in which nothing is read as Markdown."""
    return " ".join(str(text).split())
