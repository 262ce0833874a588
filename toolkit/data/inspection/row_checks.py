"""What can be wrong with the rows of a dataset: counters, time stamps, values, instructions, repeated episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from toolkit.data.episode import ACTION, STATE
from toolkit.data.formats.lerobot_layout import BOOKKEEPING, MOST_LETTERS
from toolkit.data.inspection.contents import Contents, Findings, dimension, whole_numbers

TIME_TOLERANCE = 1e-4  # seconds; LeRobot's own, beyond which it refuses a frame
LEAVE_OUT = "leave the episode out or record it again"


def check_rows(contents: Contents, findings: Findings) -> None:
    """Add everything that the tables tell to the findings; no picture is decoded."""
    for key in (STATE, ACTION):
        if key not in contents.features:
            names = ", ".join(key for key in contents.features if key not in BOOKKEEPING)
            findings.add("rewrite", f"no feature '{key}', which training needs; the dataset has: {names}")
    for key in BOOKKEEPING:
        if key not in contents.features:
            findings.add("rewrite", f"no feature '{key}', which LeRobot needs; write the rows again")
    _check_totals(contents, findings)
    _check_episode_table(contents, findings)
    _check_counters(contents, findings)
    _check_timestamps(contents, findings)
    _check_finite(contents, findings)
    _check_instructions(contents, findings)
    _check_duplicates(contents, findings)


def _check_totals(contents: Contents, findings: Findings) -> None:
    counted = {"total_episodes": len(contents.episodes), "total_frames": len(contents.frames)}
    if contents.has_tasks:
        counted["total_tasks"] = len(contents.instructions)
    for key, number in counted.items():
        if contents.info.get(key) != number:
            findings.add(
                "rewrite", f"info.json: {key} is {contents.info.get(key)}, the files hold {number}; correct it"
            )


def _check_episode_table(contents: Contents, findings: Findings) -> None:
    """Lengths and places of the episodes against the rows that there are."""
    import pandas as pd

    table = pd.DataFrame(contents.episodes)
    counted = np.array([len(rows) for rows in contents.rows])
    for episode in np.flatnonzero(counted == 0):
        findings.add("drop", f"{contents.name(episode)}: no rows in the data; leave it out", [episode])
    lengths = whole_numbers(table, "length")
    if lengths is None:
        findings.add("rewrite", "episode table: no column of whole numbers 'length'; write the table again")
    else:
        wrong = np.flatnonzero((lengths != counted) & (counted > 0))
        texts = [f"the episode table says {lengths[e]} frames, the data holds {counted[e]} rows" for e in wrong]
        texts = [f"{contents.name(e)}: {text}; {LEAVE_OUT}" for e, text in zip(wrong, texts, strict=True)]
        findings.each("rewrite", "lengths", list(zip(wrong.tolist(), texts, strict=True)))
    for key, wanted in (
        ("dataset_from_index", [rows.min() if len(rows) else 0 for rows in contents.rows]),
        ("dataset_to_index", [rows.max() + 1 if len(rows) else 0 for rows in contents.rows]),
    ):
        found = whole_numbers(table, key)
        if found is None:
            findings.add("rewrite", f"episode table: no column of whole numbers '{key}'; write the table again")
        elif len(wrong := np.flatnonzero((found != wanted) & (counted > 0))):
            first = wrong[0]
            findings.add(
                "rewrite",
                f"episode table: {key} disagrees with the rows in {len(wrong)} of {len(counted)} episodes, first in "
                f"{contents.name(first)} ({found[first]}, the rows say {wanted[first]}); write the table again",
            )
    lost = len(contents.frames) - counted.sum()
    if lost:
        findings.add("rewrite", f"data: {lost} rows belong to no episode of the episode table; leave them out")


def _check_counters(contents: Contents, findings: Findings) -> None:
    for key, wanted in _counted(contents):
        if key not in contents.values:
            continue
        found = contents.values[key][:, 0]
        wrong = np.flatnonzero(~(found == wanted) & np.isfinite(wanted))
        if len(wrong):
            first = wrong[0]
            findings.add(
                "rewrite",
                f"{key}: does not count in {len(wrong)} of {len(found)} rows, first in {contents.place(first)} "
                f"({found[first]:g} where {wanted[first]:g} is next); number the rows again",
            )


def _counted(contents: Contents) -> Iterator[tuple[str, np.ndarray]]:
    """What the counters of all rows should be, NaN where a row belongs to no episode."""
    count = len(contents.frames)
    frame_index, episode_index = np.full((2, count), np.nan)
    for id_, rows in zip(contents.ids, contents.rows, strict=True):
        frame_index[np.sort(rows)] = np.arange(len(rows))
        episode_index[rows] = id_
    yield "frame_index", frame_index
    yield "episode_index", episode_index
    yield "index", np.arange(count, dtype=float)


def _check_timestamps(contents: Contents, findings: Findings) -> None:
    """Frame k of an episode stands at k / fps."""
    if "timestamp" not in contents.values:
        return
    period, found = 1 / contents.fps, []
    for episode, rows in enumerate(contents.rows):
        if not len(rows):
            continue
        stamps = contents.values["timestamp"][rows, 0]
        slack = TIME_TOLERANCE + 2 * np.spacing(np.float32(len(rows) * period))  # what float32 can tell apart
        off = ~(np.abs(stamps - np.arange(len(rows)) * period) <= slack)
        if not off.any():
            continue
        frame = int(np.argmax(off))
        now, before = float(stamps[frame]), float(stamps[max(frame - 1, 0)])
        if not np.isfinite(now):
            what = f"frame {frame} has the time stamp {now}"
        elif frame == 0:
            what = f"starts at {now:.4g} s instead of 0"
        elif now <= before:
            what = f"time does not increase at frame {frame} ({before:.4g} s, then {now:.4g} s)"
        elif abs(now - before - period) > slack:
            what = f"time jumps by {now - before:.4g} s at frame {frame}, {period:.4g} s is one frame"
        else:
            what = f"time stamps drift from the frame rate, at frame {frame} by {now - frame * period:.2g} s"
        found.append((episode, f"timestamp: {contents.name(episode)}: {what}; check for lost frames, stamp them again"))
    findings.each("rewrite", "timestamp", found)


def _check_finite(contents: Contents, findings: Findings) -> None:
    for key in contents.vectors:
        broken = ~np.isfinite(contents.values[key])
        if not broken.any():
            continue
        found = []
        for episode, rows in enumerate(contents.rows):
            places = np.argwhere(broken[rows])
            if len(places):
                frame, column = (int(i) for i in places[0])
                where = f"first at frame {frame}, {dimension(contents.features[key], column)}"
                text = f"{key}: {contents.name(episode)}: {len(places)} values are NaN, infinite or no number, {where}"
                found.append((episode, f"{text}; {LEAVE_OUT}"))
        findings.each("drop", f"{key}: NaN or infinity", found)


def _check_instructions(contents: Contents, findings: Findings) -> None:
    known = contents.instructions
    if contents.has_tasks and list(known) != list(range(len(known))):
        findings.add("rewrite", "meta/tasks.parquet: task_index does not count from 0, so LeRobot reads other tasks")
    unknown: list[tuple[int, str]] = []
    nameless: list[tuple[int, str]] = []
    differing: list[tuple[int, str]] = []
    for episode, rows in enumerate(contents.rows):
        if not len(rows):
            continue
        name = contents.name(episode)
        indices = contents.task_indices(episode)
        missing = [f"{index:g}" for index in indices if index not in known]
        instruction = contents.instruction(episode)
        if instruction is not None and len(instruction) > MOST_LETTERS:
            text = f"{name}: its instruction has {len(instruction)} letters, at most {MOST_LETTERS}; {LEAVE_OUT}"
            nameless.append((episode, text))
        elif instruction is None:
            nameless.append(
                (episode, f"{name}: no instruction is known (task index {', '.join(missing)}); leave it out")
            )
        elif missing and contents.has_tasks:
            text = f"{name}: task index {', '.join(missing)} is not in meta/tasks.parquet; write the tasks again"
            unknown.append((episode, text))
        own = contents.episodes[episode].get("tasks")
        told = {known[int(i)] for i in indices if i in known}
        if not missing and told and (not isinstance(own, list | np.ndarray) or set(own) != told):
            text = f"{name}: the episode table names other tasks than its rows; write the table again"
            differing.append((episode, text))
    findings.each("drop", "instructions", nameless)
    findings.each("rewrite", "task indices", unknown)
    findings.each("rewrite", "tasks", differing)


def _check_duplicates(contents: Contents, findings: Findings) -> None:
    """Episodes with the same states and actions: a problem if the instruction is the same too, and both recorded.

    Generated samples of one scene may share a plan and differ in their pictures.
    """
    keys = [key for key in (STATE, ACTION) if key in contents.vectors]
    if len(keys) < 2:
        return
    numbers = np.concatenate([contents.values[key].astype(np.float32) for key in keys], axis=1)
    first: dict[str, int] = {}
    again: list[tuple[int, str]] = []
    samples: list[int] = []
    for episode, rows in enumerate(contents.rows):
        if not len(rows):
            continue
        digest = hashlib.sha256(numbers[rows].tobytes()).hexdigest()
        earlier = first.setdefault(digest, episode)
        if earlier == episode or meant_again(contents.episodes[episode]):
            continue
        text = f"{contents.name(episode)}: same states and actions as {contents.name(earlier)}"
        if is_synthetic(contents, episode) and is_synthetic(contents, earlier):
            samples.append(episode)
        elif contents.instruction(episode) == contents.instruction(earlier):
            again.append((episode, f"{text}; leave one of them out"))
            findings.originals[episode] = earlier
        else:
            findings.warn(f"{text}, with another instruction")
    findings.each("duplicate", "duplicates", again)
    if samples:
        findings.warn(
            f"{len(samples)} synthetic episodes have the states and actions of an earlier one, as samples of one scene "
            f"with one plan have; their pictures may differ (the first: {contents.name(samples[0])})"
        )


def is_synthetic(contents: Contents, episode: int) -> bool:
    """True for an episode that vag has noted as generated, in the episode table or beside it."""
    return "synthetic" in (contents.episodes[episode].get("source"), contents.notes[episode].get("source"))


def meant_again(row: dict[str, object]) -> bool:
    """True for an episode that `vag mix repeat=true` has written again, by its row of the episode table."""
    again = row.get("repetition")
    return isinstance(again, int | float | np.number) and bool(again > 0)
