"""Parquet files from elsewhere: what they say of their size is looked at before anything of them is unpacked.

A run of equal values takes a few bytes in such a file however long it is, so a small file can ask for any amount of
memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError, first_line
from toolkit.base.reading import check_content

FREE_BYTES = 512 << 20  # in memory, that every file may take
MAX_EXPANSION = 100  # times the size of the file, for what takes more; real tables stay below 50
MEMORY_SHARE = 0.75  # of this machine's memory, at most
CELL_BYTES = 120  # of a list or a text as an object of its own
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
FREE_ROWS = 100_000
PORTION_BYTES = 64 << 20  # that are unpacked together where texts may be longer than the file tells


def plausible_rows(total: int) -> int:
    """How many rows a table may have of which meta/info.json announces `total`; a total that is wrong is no attack."""
    return FREE_ROWS + 10 * total


def read_parquet(
    path: Path,
    columns: Sequence[str] | None = None,
    between: tuple[str, int, int] | None = None,
    most_rows: int | None = None,
) -> Any:
    """A pyarrow table. `between`: only rows whose column lies between two numbers; other row groups are not read.

    Raises UserError, one line with the file's name, if it is missing, no regular file, damaged, has more than
    `most_rows` rows, or would take more memory than its size allows.
    """

    def read(file: Any) -> Any:
        groups = [group for group in range(file.metadata.num_row_groups) if _may_hold(file.metadata, group, between)]
        check_size(path, file.metadata, groups, columns, most_rows)
        table = _unpacked(path, file, groups, columns)
        if between is not None:
            import pyarrow.compute

            key, low, high = between
            field = pyarrow.compute.field(key)
            table = table.filter((field >= low) & (field <= high))
        return table.select(list(columns)) if columns is not None else table

    return _opened(path, read)


def column_names(path: Path) -> list[str]:
    """What the columns of a file are called. Raises UserError as `read_parquet`."""
    return _opened(path, lambda file: list(file.schema_arrow.names))


def read_data_frame(path: Path, columns: Sequence[str] = (), *, only: bool = False, most_rows: int) -> Any:
    """A pandas table that has each of `columns` once; `only` leaves others out. Raises UserError as `read_parquet`."""
    names = column_names(path)
    for column in columns:
        if names.count(column) != 1:
            raise UserError(f"{path}: no column '{column}', or two; it has: {', '.join(names)[:500]}")
    table = read_parquet(path, list(dict.fromkeys(columns)) if only else None, most_rows=most_rows)
    return _converted(path, table.to_pandas)


def read_rows(path: Path, most_rows: int | None = None) -> list[dict[str, Any]]:
    """All rows as Python values. Raises UserError as `read_parquet`."""
    return _converted(path, read_parquet(path, most_rows=most_rows).to_pylist)


def _converted[Found](path: Path, convert: Callable[[], Found]) -> Found:
    try:
        return convert()
    except MemoryError:
        raise
    except Exception as error:  # what pandas says of itself in the file may be damaged, too, or the letters of a text
        raise UserError(f"{path}: not readable as Parquet ({first_line(error)})") from error


def check_size(
    path: Path, metadata: Any, groups: Sequence[int], columns: Sequence[str] | None, most_rows: int | None
) -> None:
    """Raise UserError if a file has more rows than it should, or its row groups unpack to more than it may hold."""
    if most_rows is not None and metadata.num_rows > most_rows:
        raise UserError(
            f"{path}: has {metadata.num_rows} rows, far more than meta/info.json announces; correct its totals"
        )
    needed = sum(
        _unpacked_size(metadata, group, part)
        for group in groups
        for part in range(metadata.num_columns)
        if columns is None or _belongs(metadata.schema.column(part).path, columns)
    )
    if needed > (limit := memory_limit(path)):
        raise UserError(_too_large(path, needed, limit))


def memory_limit(path: Path) -> int:
    """How much memory a file may take [byte]."""
    own = max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size)
    return min(own, int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))


def _too_large(path: Path, size: int, limit: int) -> str:
    return (
        f"{path}: takes {size / 2**30:.1f} GiB in memory, which a file of {path.stat().st_size} bytes may not "
        f"(at most {limit / 2**30:.1f} GiB); write the table in several files"
    )


def _unpacked_size(metadata: Any, group: int, part: int) -> int:
    """Of a leaf column of a row group [byte]: texts as if each stood there once, and objects in lists."""
    column, kind = metadata.row_group(group).column(part), metadata.schema.column(part)
    rows = metadata.row_group(group).num_rows
    if column.physical_type == "BYTE_ARRAY":
        return column.total_uncompressed_size + CELL_BYTES * max(rows, column.num_values)
    width = WIDTHS.get(column.physical_type) or max(kind.length, 1)
    return width * max(rows, column.num_values) + (CELL_BYTES * rows if kind.max_repetition_level else 0)


def _may_hold(metadata: Any, group: int, between: tuple[str, int, int] | None) -> bool:
    """False if the statistics of a row group exclude that a row of it lies between two numbers."""
    if between is None:
        return True
    key, low, high = between
    for part in range(metadata.num_columns):
        column = metadata.row_group(group).column(part)
        if column.path_in_schema == key and column.is_stats_set and column.statistics.has_min_max:
            return bool(column.statistics.min <= high and column.statistics.max >= low)
    return True


def _unpacked(path: Path, file: Any, groups: Sequence[int], columns: Sequence[str] | None) -> Any:
    """The row groups as one table; in portions where a text that stands in the file once may belong to many rows."""
    import pyarrow

    limit, longest, most = memory_limit(path), 1, 0
    for group in groups:
        for part in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(part)
            wanted = columns is None or _belongs(column.path_in_schema, columns)
            if wanted and column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
                longest = max(longest, column.total_uncompressed_size)
                most += column.num_values * column.total_uncompressed_size
    if most <= limit:
        return file.read_row_groups(list(groups), columns=None if columns is None else list(columns))
    parts, size = [], 0
    portions: Any = file.iter_batches(
        max(1, min(65_536, PORTION_BYTES // longest)), list(groups), None if columns is None else list(columns)
    )
    for portion in portions:
        parts.append(portion)
        size += portion.nbytes
        if size > limit:
            raise UserError(_too_large(path, size, limit))
    return pyarrow.Table.from_batches(parts, None if parts else file.schema_arrow)


def _belongs(place: str, columns: Sequence[str]) -> bool:
    return any(place == name or place.startswith(f"{name}.") for name in columns)


def _opened[Found](path: Path, use: Callable[[Any], Found]) -> Found:
    if not path.is_file():  # a pipe would wait for a writer
        raise UserError(f"{path}: is missing, or no regular file; the dataset is incomplete")
    check_content(path)
    try:
        import pyarrow.parquet

        with path.open("rb") as raw:
            utf8 = not any("\udc80" <= letter <= "\udcff" for letter in str(path))
            with pyarrow.parquet.ParquetFile(path if utf8 else raw) as file:  # by its name it is read faster
                return use(file)
    except (UserError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # pyarrow raises several classes for a damaged file
        raise UserError(f"{path}: not readable as Parquet ({first_line(error)})") from error
