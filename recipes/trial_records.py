"""What trials leave in the run directory: the schedule, the sealed key, and a folder for every attempt.

schedule.json                    written before the first trial
key.sealed, key.json             which policy a code word is; the second one once it is opened
placements/07/0.jpg              reference picture of each camera
attempts/bakolu-1/begun.json     it has begun: what ends without a judgement was lost
                 /dataset        its episode, a LeRobotDataset, before anybody is asked
                 /attempt.json   its judgement: from here on the trial is not repeated
trials.csv                       all judged trials; with names of policies once the key is opened
dataset                          all episodes, once the key is opened
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.files import atomic_file, write_json, write_text
from toolkit.base.reading import read_bytes, read_json
from toolkit.base.typed_json import MisfitError, read_as, to_json
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_merge import merge_datasets
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.images import decode_picture, encode_jpeg
from toolkit.evaluation.trials import JUDGED, SUCCESS, Attempt, Key, Planned, Schedule, unseal

SCHEDULE, SEALED, OPENED, ENDED = "schedule.json", "key.sealed", "key.json", "ended.json"
QUALITY = 95
MOST_BYTES = 1 << 24
BLINDED = ("scene", "success", "code_word", "attempt")  # how an arm moves, or is clipped, may tell which one it is
COLUMNS = ("policy", *BLINDED, "steps", "clipped", "stopped_by_key", "seconds")


class Trials:
    """The trials of a run directory: what is planned, and what has become of it."""

    def __init__(self, directory: Path, schedule: Schedule, key: Key) -> None:
        self.directory, self.schedule, self.key = directory, schedule, key
        self.attempts = [attempt for attempt in map(self._read, self._folders()) if attempt is not None]

    @classmethod
    def create(cls, directory: Path, schedule: Schedule, key: Key, sealed: str) -> Trials:
        """Write the schedule; from here on it is never written again."""
        write_text(directory / SEALED, sealed + "\n")
        write_json(directory / SCHEDULE, to_json(schedule))
        return cls(directory, schedule, key)

    @classmethod
    def open(cls, directory: Path) -> Trials | None:
        """Those of a run that was begun, None where there is no schedule yet. Raises UserError if it is damaged."""
        if not os.path.lexists(directory / SCHEDULE):
            return None
        schedule: Schedule = _typed(Schedule, directory / SCHEDULE)
        path = directory / SEALED
        try:
            key = unseal(read_bytes(path, MOST_BYTES).decode("ascii").strip(), schedule.commitment)
        except ValueError as error:
            raise UserError(f"{path}: {error}; nobody can tell any more which policy a trial was of") from error
        return cls(directory, schedule, key)

    # ------------------------------------------------------------------------------------------------------ attempts

    def _folders(self) -> list[Path]:
        words = {planned.code_word: place for place, planned in enumerate(self.schedule.trials)}
        found = []
        for folder in (self.directory / "attempts").glob("*-*"):
            name = re.fullmatch(r"([a-z]+)-(\d+)", folder.name)
            if name and name[1] in words and (folder / "begun.json").is_file():
                found.append((words[name[1]], int(name[2]), folder))
        return [folder for _, _, folder in sorted(found)]

    def _read(self, folder: Path) -> Attempt | None:
        path = folder / "attempt.json"
        return _typed(Attempt, path) if path.is_file() else None

    def folder(self, code_word: str, attempt: int) -> Path:
        return self.directory / "attempts" / f"{code_word}-{attempt}"

    def begin(self, planned: Planned, attempt: int) -> Path:
        """Note that an attempt begins, before the robot moves."""
        folder = self.folder(planned.code_word, attempt)
        write_json(folder / "begun.json", {"placement": planned.placement})
        return folder

    def without_judgement(self) -> list[Attempt]:
        """What had begun when the program ended, as discarded; steps are 0 where its episode was not written."""
        open_ones = []
        planned = {one.code_word: one for one in self.schedule.trials}
        for folder in self._folders():
            if not (folder / "attempt.json").is_file():
                word, _, number = folder.name.rpartition("-")
                notes = read_json(folder / "steps.json") if (folder / "dataset").is_dir() else {}
                open_ones.append(
                    Attempt(
                        placement=planned[word].placement,
                        code_word=word,
                        attempt=int(number),
                        judgement="",
                        recorded=(folder / "dataset").is_dir(),
                        **notes,
                    )
                )
        return open_ones

    def record(self, folder: Path, episode: Episode, counts: Mapping[str, Any], fps: float, robot: Any) -> None:
        """Write the episode of an attempt, and what was counted; before its judgement is asked for."""
        write_json(folder / "steps.json", dict(counts))
        names = robot.features.state_names, robot.features.action_names
        with EpisodeWriter(folder / "dataset", max(1, round(fps)), *names, robot_type=robot.robot.name) as writer:
            writer.add(episode)

    def judge(self, attempt: Attempt) -> None:
        """Note what became of an attempt, at once and for good."""
        write_json(self.folder(attempt.code_word, attempt.attempt) / "attempt.json", to_json(attempt))
        self.attempts.append(attempt)
        self.write_table()

    # ---------------------------------------------------------------------------------------------------- references

    def reference(self, placement: int, cameras: Sequence[str]) -> dict[str, np.ndarray] | None:
        """Pictures of a placement by camera, None where not all have been taken."""
        paths = {camera: self._reference_path(placement, number) for number, camera in enumerate(cameras)}
        if not all(path.is_file() for path in paths.values()):
            return None
        try:
            return {camera: decode_picture(read_bytes(path, MOST_BYTES)) for camera, path in paths.items()}
        except ValueError as error:
            raise UserError(f"{self.directory}: a reference picture of placement {placement}: {error}") from error

    def take_reference(self, placement: int, pictures: Mapping[str, np.ndarray]) -> None:
        for number, picture in enumerate(pictures.values()):
            with atomic_file(self._reference_path(placement, number)) as temporary:
                temporary.write_bytes(encode_jpeg(picture, QUALITY).tobytes())

    def _reference_path(self, placement: int, camera: int) -> Path:
        return self.directory / "placements" / f"{placement:02}" / f"{camera}.jpg"

    # ----------------------------------------------------------------------------------------------------------- end

    @property
    def ended(self) -> str:
        """Why no more trials take place; empty while they do."""
        path = self.directory / ENDED
        return str(read_json(path)["why"]) if path.is_file() else ""

    def end(self, why: str) -> None:
        """No more trials; the key is opened."""
        if not self.ended:
            write_json(self.directory / ENDED, {"why": why})
        write_json(self.directory / OPENED, self.key)
        self.write_table()

    def write_table(self) -> None:
        """`trials.csv`, whole: a killed process leaves the table of before."""
        opened = bool(self.ended)
        columns = COLUMNS if opened else BLINDED
        text = io.StringIO()
        table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for attempt in self.attempts:
            if attempt.judgement in JUDGED:
                row = {**vars(attempt), "scene": scene_name(attempt.placement)}
                row |= {"success": int(attempt.judgement == SUCCESS), "policy": self.key[attempt.code_word]}
                table.writerow(row | {"stopped_by_key": int(attempt.stopped_by_key)})
        write_text(self.directory / "trials.csv", text.getvalue())

    def merge(self, identities: Mapping[str, str], seed: int) -> str:
        """One dataset of all episodes, discarded ones too, with their provenance; its name, empty where none is."""
        recorded = [attempt for attempt in self.attempts if attempt.recorded]
        if not recorded:
            return ""
        if not (self.directory / "dataset").is_dir():
            folders = [self.folder(attempt.code_word, attempt.attempt) / "dataset" for attempt in recorded]
            notes = [self._provenance(attempt, identities, seed) for attempt in recorded]
            merge_datasets(folders, self.directory / "dataset", notes)
        return "dataset"

    def _provenance(self, attempt: Attempt, identities: Mapping[str, str], seed: int) -> dict[str, Any]:
        policy = self.key[attempt.code_word]
        row: dict[str, Any] = {key: value for key, value in vars(attempt).items() if key != "recorded"}
        row |= {"source": "trial", "policy": policy, "policy_id": identities[policy], "trial_seed": seed}
        return row | ({"success": attempt.judgement == SUCCESS} if attempt.judgement in JUDGED else {})


def scene_name(placement: int) -> str:
    return f"placement_{placement:03}"


def _typed(kind: Any, path: Path) -> Any:
    try:
        return read_as(kind, read_json(path), path.stem)
    except MisfitError as error:
        raise UserError(f"{path}: damaged ({error}); put it back from a copy") from error
