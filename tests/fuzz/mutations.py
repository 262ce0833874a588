"""Damage to one file: to its bytes, to what it says while it stays valid, or to what it is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

Rng = np.random.Generator
SCRIPT = "<script>alert(1)</script>"
DEEP = "deep inside"  # stands for a value that is nested deeper than Python can write

# ------------------------------------------------------------------------------------------------------- bytes


def flip_bytes(data: bytes, rng: Rng) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(len(array), size=int(rng.integers(1, 20)))
    array[places] = rng.integers(0, 256, size=len(places))
    return array.tobytes()


def flip_metadata(data: bytes, rng: Rng) -> bytes:
    """Bytes of the headers only: the first 4 kB, and in Parquet the footer."""
    cut = min(4096, len(data))
    if data[:4] == b"PAR1":
        return data[:-cut] + flip_bytes(data[-cut:], rng)
    return flip_bytes(data[:cut], rng) + data[cut:]


def truncate(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data)))]


def overwrite_block(data: bytes, rng: Rng) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 2048))
    filler = bytes(length) if rng.random() < 0.5 else rng.bytes(length)
    return data[:start] + filler + data[start + length :]


def repeat_block(data: bytes, rng: Rng) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 2048))
    return data[: start + length] + data[start:]


BYTES: list[Callable[[bytes, Rng], bytes]] = [
    *(flip_bytes, flip_metadata, flip_metadata, truncate, overwrite_block, repeat_block),
]


def damage_bytes(path: Path, rng: Rng) -> str:
    data = path.read_bytes()
    if not data:
        return "nothing"
    function = BYTES[int(rng.integers(len(BYTES)))]
    path.write_bytes(function(data, rng))
    return function.__name__


# -------------------------------------------------------------------------------------------------------- JSON

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 10**9, 2**70, 1e308, -0.5, 1e-300, float("nan"), float("inf"), "", " ", "0"),
    *("x" * 100_000, "../x", "/etc/passwd", "subprocess.Popen", "owner/name", "\ud800", "a\0b", "a\nb", SCRIPT),
    *([], {}, [[]], [None], {"a": {}}, [0] * 1000, {"class": "subprocess.Popen"}, "${oc.env:HOME}", "$(touch x)", DEEP),
]
KEYS: dict[str, Any] = {
    "class": "subprocess.Popen",
    "auto_map": {"AutoConfig": "evil.py--Evil"},
    "trust_remote_code": True,
    "pretrained_path": "owner/name",
    "state_file": "../outside.safetensors",
    "custom_pipelines": {"a": {"impl": "evil.py"}},
    "_target_": "subprocess.Popen",
    "registry_name": "evil_step",
    "type": "evil",
    "path": "/etc/passwd",
    "use_peft": True,
    "x": 1,
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict | list):
            for key in item if isinstance(item, dict) else range(min(len(item), 50)):
                found.append((item, key))
                todo.append(item[key])
    return found


def mutate_json(value: Any, rng: Rng) -> tuple[Any, str]:
    """The value with one thing changed, and what."""
    found = places(value)
    choice = int(rng.integers(9))
    if not found or (choice == 8 and rng.random() < 0.2):
        return VALUES[int(rng.integers(len(VALUES)))], "all of it replaced"
    holder, key = found[int(rng.integers(len(found)))]
    where = str(key)[:40]
    if choice <= 2:
        holder[key] = VALUES[int(rng.integers(len(VALUES)))]
        return value, f"{where} = {str(holder[key])[:40]!a}"
    if choice == 3:
        del holder[key]
        return value, f"without {where}"
    if choice == 4 and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
        return value, f"{where} renamed"
    if choice == 5:
        name = list(KEYS)[int(rng.integers(len(KEYS)))]
        tables = [value, *(item[k] for item, k in found)]
        tables = [item for item in tables if isinstance(item, dict)]
        if tables:
            tables[int(rng.integers(len(tables)))][name] = KEYS[name]
        return value, f"added {name}"
    if choice == 6:
        other, its = found[int(rng.integers(len(found)))]
        one, two = json.dumps(holder[key]), json.dumps(other[its])  # a value must not come to hold itself
        holder[key], other[its] = json.loads(two), json.loads(one)
        return value, f"{where} and {str(its)[:40]} swapped"
    if choice == 7 and isinstance(holder, list):
        holder.insert(int(key), json.loads(json.dumps(holder[key])))
        return value, f"item {where} twice"
    return value, change_slightly(holder, key, rng)


def change_slightly(holder: Any, key: Any, rng: Rng) -> str:
    """Another value of the same kind: these get furthest."""
    old = holder[key]
    if isinstance(old, bool) or old is None:
        holder[key] = not old
    elif isinstance(old, int | float):
        holder[key] = [-old, old + 1, old * 1000, old / 3, str(old), [old]][int(rng.integers(6))]
    elif isinstance(old, str):
        holder[key] = [old + "x", old[:-1], old.upper(), old * 50, [old], f"../{old}", f"/{old}"][int(rng.integers(7))]
    elif isinstance(old, list):
        holder[key] = [old * 2, old[1:], old[::-1], {"0": old}, [old]][int(rng.integers(5))]
    else:
        holder[key] = [[old], list(old), str(old)][int(rng.integers(3))]
    return f"{str(key)[:40]}: {str(old)[:30]!a} -> {str(holder[key])[:30]!a}"


def to_text(value: Any, rng: Rng) -> str:
    depth = [70, 2000, 200_000][int(rng.integers(3))]
    return json.dumps(value).replace(json.dumps(DEEP), "[" * depth + "]" * depth)


def damage_json(path: Path, rng: Rng) -> str:
    """Of the text: 1 in 8 its bytes, else something that it says."""
    if rng.random() < 0.12:
        return damage_bytes(path, rng)
    value, told = mutate_json(json.loads(path.read_text()), rng)
    path.write_text(to_text(value, rng))
    return told


def damage_lines(path: Path, rng: Rng) -> str:
    """A manifest: a JSON text on each line."""
    lines = path.read_text().splitlines()
    more = [
        *('"../victim.txt"', '"/etc/passwd"', '"."', '".."', '""', '"../victim/"', '"media/"', "7"),
        *('["a"]', '"a\\u0000b"', '"a\\ud800"', '"' + "x" * 5000 + '"', "[" * 100_000, '"link/victim.txt"', "{}"),
        *('"dataset"', '"pretrained_model/"', '".vag-replaced/"', '"checkpoints"', '"run.json/"'),
    ]
    choice = int(rng.integers(4))
    if choice == 0:
        return damage_bytes(path, rng)
    if choice == 1:
        del lines[int(rng.integers(len(lines)))]
        told = "a line less"
    else:
        lines.insert(int(rng.integers(len(lines) + 1)), more[int(rng.integers(len(more)))])
        told = "a line more"
    path.write_text("".join(f"{line}\n" for line in lines))
    return told


# ------------------------------------------------------------------------------------------------- safetensors


def damage_tensors(path: Path, rng: Rng) -> str:
    """Of the header: any value, the length; of the tensors: names, shapes, types, numbers."""
    choice = int(rng.integers(12))
    if choice == 0:
        return damage_bytes(path, rng)
    if choice <= 5:
        return damage_header(path, rng)
    tensors = load_tensors(path.read_bytes())
    name = sorted(tensors)[int(rng.integers(len(tensors)))]
    old = tensors[name]
    if choice == 6:
        tensors[name] = [old.flatten(), old[None], old.reshape(-1)[:1], old.new_zeros(0), old.new_zeros(3, 5)][
            int(rng.integers(5))
        ]
        told = f"another shape of {name}"
    elif choice == 7:
        kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
        tensors[name] = old.to(kinds[int(rng.integers(len(kinds)))])
        told = f"another type of {name}"
    elif choice == 8:
        del tensors[name]
        told = f"without {name}"
    elif choice == 9:
        tensors[["extra", f"{name}x", "", "0", "../x", "9999999.step"][int(rng.integers(6))]] = old.clone()
        told = "a tensor more"
    elif choice == 10:
        del tensors[name]
        tensors[name.upper()] = old
        told = f"{name} renamed"
    else:
        value = [float("nan"), float("inf"), -1e38, 1e20, 0.0, -1.0][int(rng.integers(6))]
        changed = old.clone().double() if old.dtype.is_floating_point else old.clone()
        with contextlib.suppress(RuntimeError, ValueError, OverflowError):  # no such number in this type
            changed.view(-1)[: 1 if rng.random() < 0.5 else None] = value
        tensors[name] = changed.to(old.dtype)
        told = f"{name} holds {value}"
    path.write_bytes(save_tensors({k: v.contiguous() for k, v in tensors.items()}))
    return told


def damage_header(path: Path, rng: Rng) -> str:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    entry = header[names[int(rng.integers(len(names)))]]
    choice = int(rng.integers(6))
    told = ""
    if choice == 0:
        wrong = [0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1][int(rng.integers(7))]
        path.write_bytes(struct.pack("<Q", wrong) + data[8:])
        return f"header of length {wrong}"
    if choice == 1:
        entry["dtype"] = ["F64", "I32", "F8_E4M3", "BOOL", "X9", "", 3][int(rng.integers(7))]
        told = f"dtype {entry['dtype']}"
    elif choice == 2:
        entry["shape"] = [entry["shape"][::-1], [*entry["shape"], 1], [10**9], [2**40, 2**40], [-1], [0], []][
            int(rng.integers(7))
        ]
        told = f"shape {entry['shape']}"
    elif choice == 3:
        start, end = entry["data_offsets"]
        entry["data_offsets"] = [[end, start], [start + 4, end + 4], [0, end], [start, 2**60], [-4, end], [start]][
            int(rng.integers(6))
        ]
        told = f"offsets {entry['data_offsets']}"
    else:
        header, told = mutate_json(header, rng)
    text = to_text(header, rng).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return f"header: {told}"


# -------------------------------------------------------------------------------------------------------- HDF5


def mutate_tree(path: Path, rng: Rng) -> str:
    """Change one thing in an HDF5 file that stays valid: a key, a shape, a type, a value, an attribute, a link."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[int(rng.integers(len(names)))]
        choice = int(rng.integers(10))
        holder = file if rng.random() < 0.3 else file[name]
        if choice == 0:
            del file[name]
            return f"without {name}"
        if choice == 1 and holder.attrs:
            keys = sorted(holder.attrs)
            key = keys[int(rng.integers(len(keys)))]
            values: list[Any] = [b"\xff\xfe", -1, np.nan, "", np.zeros(3), 10**9, 1e308, "text", SCRIPT]
            holder.attrs[key] = values[int(rng.integers(len(values)))]
            return f"another attribute {key}"
        if choice == 2:
            file[name].attrs["compress"] = True
            return f"an attribute more of {name}"
        if choice == 3:
            del file[name]
            if rng.random() < 0.5:
                file[name] = h5py.ExternalLink("/etc/passwd", "/data")
            else:
                file[name] = h5py.SoftLink("/nowhere" if rng.random() < 0.5 else "/")
            return f"{name} is a link"
        if choice == 4:  # holds no bytes on the disk
            del file[name]
            shape = [(10**9, 4), (10**6, SIDE, SIDE, 3), (STEPS, 10**5, 10**5, 3)][int(rng.integers(3))]
            file.create_dataset(name, shape, np.uint8, chunks=tuple(min(32, n) for n in shape))
            return f"{name} is huge"
        old = file[name][()] if isinstance(file[name], h5py.Dataset) else None
        if choice in (5, 6) and isinstance(old, np.ndarray) and old.size and old.dtype.kind in "fiu":
            changed: Any = [old[:-1], np.repeat(old, 2, 0), old.astype(np.int64), old[..., None], old.astype(">f8")]
            value: Any = changed[int(rng.integers(5))]
            if rng.random() < 0.4:
                value = old.astype(np.float64 if old.dtype.kind == "f" else old.dtype)
                value.reshape(-1)[int(rng.integers(old.size))] = (
                    [np.nan, np.inf, 1e300, -1][int(rng.integers(4))]
                    if (old.dtype.kind == "f")
                    else [0, 1, 127][int(rng.integers(3))]
                )
        else:
            value = [
                np.zeros((0, 7), np.float32),
                np.full((STEPS, 7), np.nan, np.float32),
                np.zeros((STEPS + 1, 7), np.float32),
                np.zeros((STEPS, 7), np.complex64),
                np.array([b"text"] * STEPS),
                np.float32(1),
                np.zeros((STEPS, SIDE, SIDE), np.uint8),
                np.zeros((STEPS, SIDE, SIDE, 3), np.float32),
                np.zeros((STEPS, 40), np.uint8),
            ][int(rng.integers(9))]
        del file[name]
        file[name] = value
    return f"another {name}"


STEPS, SIDE = 6, 32


def damage_hdf5(path: Path, rng: Rng) -> str:
    if rng.random() < 0.5:
        return damage_bytes(path, rng)
    kept = path.read_bytes()
    try:
        return mutate_tree(path, rng)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):  # not every change can be written
        path.write_bytes(kept)
        return damage_bytes(path, rng)


# ----------------------------------------------------------------------------------------------------- Parquet


CELLS: list[Any] = [
    *("text", None, float("nan"), -1, 10**12, 1e308, True, [1.0, 2.0], "../x", "/etc/passwd", "a\0b", "x" * 10_000),
    *(SCRIPT, b"\xff", {"a": 1}, pd.Timestamp("2020-01-01"), [], 2**63 - 1),
]


def mutate_table(path: Path, rng: Rng) -> str:
    """Change one thing in a Parquet file that stays valid: a column, a type, a value, the number of rows."""
    table = pd.read_parquet(path)
    column = table.columns[int(rng.integers(len(table.columns)))]
    row = int(rng.integers(len(table)))
    choice = int(rng.integers(11))
    told = f"{column}: change {choice}"
    if choice == 0:
        table = table.drop(columns=column)
    elif choice == 1:
        table = table.iloc[:row]
    elif choice in (2, 3):
        value = CELLS[int(rng.integers(len(CELLS)))]
        told = f"{column} = {str(value)[:30]!a}"
        table[column] = [value] * len(table)
    elif choice == 4:
        table[column] = table[column].astype(object)
        table.at[table.index[row], column] = None
    elif choice == 5 and isinstance(table[column].iloc[0], np.ndarray):
        cells = list(table[column])
        cells[row] = [cells[row][: len(cells[row]) // 2], cells[row] * np.nan, np.tile(cells[row], 3)][
            int(rng.integers(3))
        ]
        table[column] = cells
    elif choice == 6:
        table = pd.concat([table, table.iloc[row:]])
    elif choice == 7 and table[column].dtype.kind in "fi":
        cells = list(table[column])
        cells[row] = [-cells[row] - 1, cells[row] + 1, 10**6, cells[row] + 0.5][int(rng.integers(4))]
        table[column] = cells
    elif choice == 8:
        table = table.iloc[::-1]
    elif choice == 9:
        table[["score_x", "seed", "task_name", "replay_success"][int(rng.integers(4))]] = [
            CELLS[int(rng.integers(len(CELLS)))]
        ] * len(table)
    else:
        table = table.rename(columns={column: "renamed"})
        told = f"{column} renamed"
    table.to_parquet(path)
    return told


def damage_parquet(path: Path, rng: Rng) -> str:
    if rng.random() < 0.4:
        return damage_bytes(path, rng)
    kept = path.read_bytes()
    try:
        return mutate_table(path, rng)
    except Exception:  # pyarrow has errors of its own for changes that cannot be written
        path.write_bytes(kept)
        return damage_bytes(path, rng)


# ------------------------------------------------------------------------------------------------ what it is


def another_kind(path: Path, rng: Rng, victim: Path) -> str:
    """No file there, an empty one, a folder, a pipe, a link to itself or to a file of somebody else."""
    choice = int(rng.integers(6))
    path.unlink()
    if choice == 1:
        path.touch()
    elif choice == 2:
        path.mkdir()
    elif choice == 3:
        os.mkfifo(path)
    elif choice == 4:
        path.symlink_to(path.name)
    elif choice == 5:
        path.symlink_to(victim)
    return ("missing", "empty", "a folder", "a pipe", "a link to itself", "a link to another file")[choice]


def stray(path: Path, rng: Rng, victim: Path) -> str:
    """In a run: a link where vag writes by itself, to a file of somebody else, or a folder that lies elsewhere."""
    choice = int(rng.integers(4))
    if choice == 3 and path.parent.name not in ("work", "interrupted", "replacing", "pretrained", "exported"):
        elsewhere = victim.with_name("elsewhere")
        shutil.rmtree(elsewhere, ignore_errors=True)
        shutil.move(path.parent, elsewhere)
        path.parent.symlink_to(elsewhere)
        return "its folder is a link to another folder"
    name = (f".{path.name}.vag-partial", f".{path.name}.vag-removed", ".vag-lock", f".{path.name}.vag-partial")[choice]
    link = path.with_name(name)
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    return f"{name} beside it is a link to another file"


DAMAGES: dict[str, Callable[[Path, Rng], str]] = {
    ".json": damage_json,
    ".safetensors": damage_tensors,
    ".hdf5": damage_hdf5,
    ".h5": damage_hdf5,
    ".parquet": damage_parquet,
    ".vag-manifest": damage_lines,
}


def damage(path: Path, rng: Rng, victim: Path, of_run: bool) -> str:
    """Change one file; returns what was done."""
    if of_run and rng.random() < 0.15:
        return stray(path, rng, victim)
    if rng.random() < 0.06:
        return another_kind(path, rng, victim)
    return DAMAGES.get(path.suffix or path.name, damage_bytes)(path, rng)


def copy(source: Path, target: Path) -> None:
    """A copy to be damaged. Large files, which are read only, get a second name instead."""

    def copy_file(one: str, other: str) -> None:
        (os.link if os.path.getsize(one) > 4_000_000 else shutil.copyfile)(one, other)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=copy_file)
    else:
        shutil.copyfile(source, target)


def files_of(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
