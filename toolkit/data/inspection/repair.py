"""A repaired copy of a dataset: never in place, under a temporary name until it is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.files import atomic_directory, write_json
from toolkit.base.progress import progress
from toolkit.data.episode import ACTION, IMAGE, STATE, Episode
from toolkit.data.episode_notes import filled
from toolkit.data.formats.lerobot_layout import BOOKKEEPING, UNFINISHED, camera_keys, copy_files
from toolkit.data.formats.lerobot_read import provenance
from toolkit.data.formats.lerobot_write import EpisodeWriter, check_finite
from toolkit.data.inspection.contents import Contents, flat_names
from toolkit.data.inspection.picture_spans import EpisodePictures
from toolkit.data.inspection.stats_checks import repaired_statistics
from toolkit.data.inspection.validate import Inspection
from toolkit.data.seen_scenes import read_scenes, write_scenes

SCRATCH = (*(f"*{ending}" for ending in UNFINISHED), "images")  # what interrupted writers leave


def repair_dataset(inspection: Inspection, target: Path) -> list[str]:
    """Write a copy without the problems that were found and return what was done, a line each.

    Where nothing but statistics is wrong, the files are copied and stats.json is new, so pictures stay exact. Else
    episodes that cannot be kept are left out and the others are written again, which encodes their video anew.
    Raises UserError if no episode is left, or for what would be lost: further features, depth pictures.
    """
    remedies = {problem.remedy for problem in inspection.findings.problems}
    if remedies <= {"statistics"}:
        return _copy(inspection, target)
    return _rewrite(inspection, target)


def _copy(inspection: Inspection, target: Path) -> list[str]:
    contents = inspection.contents
    with atomic_directory(target) as temporary:
        copy_files(contents.directory, temporary, SCRATCH)
        done = ["nothing to repair: a plain copy"]
        if inspection.findings.problems:
            levels = {camera: sample.levels for camera, sample in inspection.pictures.items()}
            statistics = repaired_statistics(contents, levels)
            check_finite(statistics, f"{target / 'meta/stats.json'}")
            write_json(temporary / "meta/stats.json", statistics)
            done = ["computed the statistics again from all frames; every other file is an exact copy"]
    return done


def _rewrite(inspection: Inspection, target: Path) -> list[str]:
    contents, findings = inspection.contents, inspection.findings
    cameras = _cameras(contents)
    dropped = findings.dropped
    kept = [episode for episode in range(len(contents.rows)) if episode not in dropped]
    if not kept:
        raise UserError(f"{contents.directory}: no episode is whole, so there is nothing to repair; record it again")
    _check_nothing_lost(contents, kept)
    readers = {camera: EpisodePictures(contents, camera) for camera in cameras}
    names = _names(contents, STATE), _names(contents, ACTION)
    robot = contents.info.get("robot_type")
    # Without loss, since the pictures went through one encoder already.
    with EpisodeWriter(target, round(contents.fps), *names, str(robot or "unknown"), crf=0) as writer:
        for episode in progress(kept, description="repair", total=len(kept), unit="ep"):
            rows = contents.rows[episode]
            pictures = {camera: reader.read(episode) for camera, reader in readers.items()}
            instruction = contents.instruction(episode)
            assert instruction is not None  # else it was dropped
            writer.add(
                Episode(
                    images=pictures.pop(IMAGE, None),
                    states=contents.values[STATE][rows].astype(np.float32),
                    actions=contents.values[ACTION][rows].astype(np.float32),
                    task=instruction,
                    metadata=filled({**provenance(contents.episodes[episode]), **contents.notes[episode]}),
                    cameras=pictures,
                )
            )
        if (scenes := read_scenes(contents.directory / "meta")) is not None:
            write_scenes(writer.temporary / "meta", scenes)
    done = [f"left out {contents.name(episode)}" for episode in sorted(dropped)]
    done.append(f"wrote {len(kept)} episodes again: rows numbered, time stamps at k / fps, statistics of all frames")
    return done


def _cameras(contents: Contents) -> list[str]:
    """Keys of the colour pictures. Raises UserError where there are others, or none."""
    cameras = camera_keys(contents.info)
    if not cameras or set(cameras) != set(contents.cameras):
        names = ", ".join(set(contents.cameras) - set(cameras)) or "none"
        raise UserError(
            f"{contents.directory}: fix=true writes colour pictures only, the dataset has others ({names}); "
            "leave out fix=true and repair it by hand"
        )
    return cameras


def _check_nothing_lost(contents: Contents, kept: list[int]) -> None:
    """Raise UserError for what a rewritten copy could not hold."""
    where = f"{contents.directory}: fix=true cannot keep"
    for key in (STATE, ACTION):
        if key not in contents.values:
            raise UserError(f"{contents.directory}: no readable '{key}', so nothing can be repaired; record it again")
    own = {STATE, ACTION, *contents.cameras, *BOOKKEEPING}
    if further := [key for key in contents.features if key not in own]:
        raise UserError(f"{where} the features {', '.join(further)}; leave out fix=true and repair it by hand")
    if contents.fps != round(contents.fps):
        raise UserError(f"{where} a frame rate of {contents.fps:g}, only whole numbers; correct fps in meta/info.json")
    for episode in kept:
        if sum(index in contents.instructions for index in contents.task_indices(episode)) > 1:
            raise UserError(f"{where} several instructions in one episode ({contents.name(episode)}); split it first")


def _names(contents: Contents, key: str) -> list[str]:
    names, width = flat_names(contents.features[key].get("names")), contents.values[key].shape[1]
    return names if len(names) == width else [f"{key.split('.')[-1]}_{i}" for i in range(width)]
