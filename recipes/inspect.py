"""`vag inspect`: validate a dataset and draw a picture of it; with `fix=true` also write a repaired copy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.schema import InspectConfig
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.data.episode import ACTION, STATE
from toolkit.data.formats.lerobot_read import dataset_id
from toolkit.data.inspection.contents import flat_names, one_line
from toolkit.data.inspection.picture_checks import shown_pictures
from toolkit.data.inspection.repair import repair_dataset
from toolkit.data.inspection.validate import Inspection, inspect_dataset
from toolkit.reporting.dataset_pictures import write_contact_sheet, write_histograms
from toolkit.reporting.generator_results import Media
from toolkit.reporting.results import InspectResult


def run(config: InspectConfig, run: Run) -> InspectResult:
    """Check the dataset; `problems` are what is wrong with it, or with the copy where one was written."""
    dataset = Path(config.dataset)
    if run.directory.resolve().is_relative_to(dataset.resolve()):
        raise UserError(f"out={run.directory}: lies inside of the dataset, which stays as it is; choose another out=")
    inspection = inspect_dataset(dataset)
    contents = inspection.contents
    run.add_data(dataset, _identity(dataset), len(contents.episodes))
    result = InspectResult(
        problems=inspection.problems,
        warnings=inspection.warnings,
        episodes=len(contents.episodes),
        frames=len(contents.frames),
        features=inspection.feature_table(),
        media=draw(inspection, run.directory / "media"),
    )
    for line in inspection.problems:
        print(f"problem: {line}")
    for line in inspection.warnings:
        print(f"warning: {line}")
    if config.fix:
        run.note_result(result)  # stays where the repair fails
        target = run.directory / "dataset"
        done = repair_dataset(inspection, target)
        copy = inspect_dataset(target)
        result = replace(result, found=inspection.problems, problems=copy.problems, fixed=done, dataset="dataset")
        for line in done:
            print(f"repair: {line}")
        for line in copy.problems:
            print(f"still a problem: {line}")
    return result


def draw(inspection: Inspection, directory: Path) -> list[Media]:
    """Write histograms of state and action and a contact sheet per camera; returns them as the report lists media."""
    contents, media = inspection.contents, []
    for key in (STATE, ACTION):
        if key in contents.values:
            names = flat_names(contents.features[key].get("names"))
            values = contents.values[key]
            labels = [one_line(names[i]) if i < len(names) else str(i) for i in range(values.shape[1])]
            name = f"histograms_{_file_name(key)}.png"
            write_histograms(directory / name, values, labels, f"{key}: frames per value")
            media.append(Media(path=f"media/{name}", caption=f"{key}: how often each value occurs, by dimension"))
    strips: dict[str, list[Any]] = {}
    for camera, episode, pictures in shown_pictures(inspection.pictures):
        text = one_line(f"{contents.ids[episode]}: {contents.instruction(episode) or 'no instruction'}")
        strips.setdefault(camera, []).append((text, pictures))
    for camera, found in strips.items():
        name = f"frames_{_file_name(camera)}.png"
        write_contact_sheet(directory / name, found)
        caption = f"{camera}: first, middle and last frame of {len(found)} episodes"
        media.append(Media(path=f"media/{name}", caption=caption))
    return media


def _file_name(key: str) -> str:
    """A feature key as part of a file name; keys of damaged datasets may hold anything."""
    return "".join(letter if letter.isalnum() else "_" for letter in key)[:60]


def _identity(dataset: Path) -> str:
    try:
        return dataset_id(dataset)
    except UserError:
        return "damaged"


def summary(result: InspectResult) -> str:
    found = f", {len(result.found)} before the repair" if result.found is not None else ""
    problems, warnings = len(result.problems), len(result.warnings)
    return (
        f"{result.episodes} episodes, {result.frames} frames, {problems} problem{'s' * (problems != 1)}{found}, "
        f"{warnings} warning{'s' * (warnings != 1)}"
    )
