"""Read a manifest: a CSV or Parquet file that lists image files."""

import csv
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from thawline.data.decoding import map_threads
from thawline.data.shards import is_file
from thawline.data.splitting import BATCH_ROWS, SPLITS
from thawline.errors import DataError

ROOT = "root"  # key in a table's `attrs`: the folder that its paths are saved relative to
COLUMNS = ("path", "label", "split", "group")
MAX_CACHED_FOLDERS = 100_000


class Table(NamedTuple):
    """The columns of a manifest file, and how messages number its rows."""

    file: Path
    columns: dict[str, pa.ChunkedArray]
    row: str  # "line" in a CSV, "row" in a Parquet file
    first: int  # number of the first row


def read_manifest(file: Path, allow_external_paths: bool) -> pd.DataFrame:
    """Read the manifest in a CSV or Parquet file, whose paths are relative to the file's folder.

    It has the columns path, label and optionally split and group. A Parquet file may have sha256,
    the hash of each image's content, as 64 hexadecimal digits or 32 bytes.

    Returns:
        One row per image, sorted by path. All columns are text; paths are absolute, with all links
        resolved.

    Raises:
        DataError: if the file cannot be read, or lists a file that is missing or not allowed.
    """
    table = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
    paths = _resolve_paths(table, _read_texts(table, "path"), allow_external_paths)
    order = pc.sort_indices(paths)
    paths = paths.take(order)
    repeated = pc.index(pc.equal(paths[1:], paths[:-1]), True).as_py()
    if repeated >= 0:
        raise DataError(f"dataset.root: {file} lists the file '{paths[repeated]}' more than once.")
    columns = {"path": paths}
    for name in COLUMNS[1:]:
        if name in table.columns:
            columns[name] = _read_texts(table, name).take(order)
    unknown = set(columns["split"].unique().to_pylist()) - {*SPLITS} if "split" in columns else {}
    if unknown:
        raise DataError(
            f"dataset.root: {file} has the split '{min(unknown)}'. Use train, val and test."
        )
    if "sha256" in table.columns:
        columns["sha256"] = _read_hashes(table, order)
    pa.default_memory_pool().release_unused()  # Arrow would keep it: 0.7 GB of 10 million rows
    return pd.DataFrame({name: pd.Series(texts, dtype="str") for name, texts in columns.items()})


def _read_csv(file: Path) -> Table:
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, OSError, csv.Error) as error:  # pandas' own are ValueErrors
        raise DataError(
            f"dataset.root: {file} cannot be read as a CSV in UTF-8 ({error}). Save it again as one"
            " with the columns path and label."
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas made an index of the surplus values
        raise DataError(
            f"dataset.root: the rows of {file} have more values than there are columns. Put quotes"
            " around names with a comma."
        )
    present = _check_columns(file, frame.columns.tolist(), len(frame))
    table = pa.Table.from_pandas(frame[present].fillna(""), preserve_index=False)
    return Table(file, dict(zip(present, table.columns, strict=True)), "line", 2)


def _read_parquet(file: Path) -> Table:
    try:
        names = pq.read_schema(file).names
        present = _check_columns(file, names, pq.read_metadata(file).num_rows)
        present += ["sha256"] * ("sha256" in names)
        table = pq.read_table(file, columns=present)
    except (OSError, pa.ArrowException) as error:
        raise _not_parquet(file, error) from error
    return Table(file, {name: table[name] for name in present}, "row", 1)


def _not_parquet(file: Path, error: Exception) -> DataError:
    return DataError(
        f"dataset.root: {file} cannot be read as Parquet ({error}). Write it again, with the"
        " columns path and label."
    )


def _check_columns(file: Path, names: list[str], rows: int) -> list[str]:
    """Return those of `COLUMNS` that the file has; it needs path, label and a row."""
    if not {"path", "label"} <= set(names) or not rows:
        raise DataError(
            f"dataset.root: {file} needs the columns path and label and at least one row; it has"
            f" {rows} row(s) with the columns {', '.join(names)}."
        )
    return [name for name in COLUMNS if name in names]


def _read_texts(table: Table, name: str) -> pa.Array:
    """Remove a column from the table and return it as text, after a check for empty values."""
    try:
        texts = pc.fill_null(pc.cast(table.columns.pop(name), pa.large_string()), "")
    except pa.ArrowException as error:
        raise _not_parquet(table.file, error) from error
    blank = pc.or_(pc.equal(texts, ""), pc.utf8_is_space(texts))
    empty = pc.index(blank, True).as_py()
    if empty >= 0:
        raise DataError(
            f"dataset.root: {table.file}, {table.row} {table.first + empty}: '{name}' is empty."
        )
    return texts.combine_chunks()


def _resolve_paths(table: Table, names: pa.Array, allow_external_paths: bool) -> pa.Array:
    """Return the absolute paths of all files, after a check that they exist and may be listed."""
    folder = table.file.parent.as_posix()
    real_folder = lru_cache(MAX_CACHED_FOLDERS)(os.path.realpath)

    def resolve(start: int) -> tuple[pa.Array, list[bool]]:
        batch = names[start : start + BATCH_ROWS].to_pylist()
        located = [_locate(os.path.join(folder, name), real_folder) for name in batch]  # noqa: PTH118
        return pa.array([path for path, _ in located], pa.large_string()), [f for _, f in located]

    starts = range(0, len(names), BATCH_ROWS)
    batches = list(map_threads(resolve, starts, "Looking for the images", batch_size=1))
    paths = pa.concat_arrays([batch for batch, _ in batches])
    outside = pc.index(pc.starts_with(paths, f"{folder.rstrip('/')}/"), False).as_py()
    if outside >= 0 and not allow_external_paths:
        raise DataError(
            f"dataset.root: {table.file}, {table.row} {table.first + outside}: '{names[outside]}'"
            f" is outside of {folder} ({paths[outside]}). Move the file or the table, or set"
            " dataset.allow_external_paths=true."
        )
    exists = [exists for _, batch in batches for exists in batch]
    if not all(exists):
        first = names[exists.index(False)]
        raise DataError(
            f"dataset.root: {exists.count(False)} file(s) that {table.file} lists do not exist,"
            f" first '{first}'. Paths are relative to {folder}."
        )
    return paths


def _locate(file: str, real_folder: Callable[[str], str]) -> tuple[str, bool]:
    """Return a path with all links resolved, and whether there is a file; most take one `lstat`."""
    parent, _, name = file.rpartition("/")
    try:
        path = f"{real_folder(parent or '/').rstrip('/')}/{name}"
        with suppress(OSError):  # missing, too long, not accessible, or a member of a shard
            if stat.S_ISREG(os.lstat(path).st_mode):
                return path, True
        path = os.path.realpath(path)
    except ValueError:  # a NUL in the name
        return file, False
    return path, is_file(path)


def _read_hashes(table: Table, order: pa.Array) -> pa.ChunkedArray:
    """Remove the column sha256 from the table; return it in order, as 64 hexadecimal digits."""
    column = table.columns.pop("sha256").take(order)
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if any(is_kind(column.type) for is_kind in kinds):
        batches = pa.table([column], ["sha256"]).to_batches(BATCH_ROWS)
        digits = ([digest and digest.hex() for digest in b[0].to_pylist()] for b in batches)
        column = pa.chunked_array([pa.array(batch, pa.large_string()) for batch in digits])
    column = pc.utf8_lower(pc.cast(column, pa.large_string()))
    is_hash = pc.fill_null(pc.match_substring_regex(column, "^[0-9a-f]{64}$"), False)
    wrong = pc.index(is_hash, False).as_py()
    if wrong >= 0:
        row = table.first + order[wrong].as_py()
        raise DataError(
            f"dataset.root: {table.file}, {table.row} {row}: sha256 is not a hash. Give 64"
            " hexadecimal digits or 32 bytes, or remove the column."
        )
    return column
