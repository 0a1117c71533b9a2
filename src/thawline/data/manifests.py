"""Read a table of images, a CSV or a Parquet file, with no Python object for each of its rows.

Parquet is read a column at a time and in batches: what is held is the text of the paths, once, and
a number for each label, split and group. Millions of rows fit into memory so.
"""

from __future__ import annotations

import binascii
import csv
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.progress import track

from thawline.data.shards import find_member
from thawline.errors import DataError

SPLITS = ("train", "val", "test")
ROOT = "root"  # in `attrs` of a table: the folder that its paths are saved relative to
BATCH = 65_536  # rows that are looked at together
SORTED = 4  # batches that are sorted together
SHA256_BYTES = 32
FILE, ABSENT, LINK = range(3)
PART = 4096  # files that a thread looks at at a time
# What a path does not have if it is as the operating system itself would write it.
DETOUR = r"/\.{0,2}(/|$)|\x00"


class Table(NamedTuple):
    """A file of rows: its columns, how many rows, what a row is called, and how to read one."""

    file: Path
    columns: Sequence[str]
    rows: int
    row: str  # "line 2" is the first of a CSV, "row 1" that of a Parquet file
    first: int
    read: Callable[[str], Iterator[pa.Array]]


def read_manifest(file: Path, allow_external_paths: bool) -> pd.DataFrame:
    """Return the manifest in a CSV or Parquet file; its paths are relative to the file's folder.

    Args:
        file: with the columns path, label and perhaps split and group; a Parquet file also with
            sha256, of each image's content, as 64 hexadecimal digits or 32 bytes.
        allow_external_paths: whether it may name files outside of its folder.

    Returns:
        One row an image, sorted by path, which is absolute with all links followed. Label, split
        and group are text, from Parquet categories, and sha256 is 32 bytes.

    Raises:
        DataError: when the file cannot be read or names what is not there or not allowed.
    """
    table = _open_csv(file) if file.suffix.lower() == ".csv" else _open_parquet(file)
    if not {"path", "label"} <= set(table.columns) or not table.rows:
        raise DataError(
            f"dataset.root: {file} needs the columns path and label and at least one row; it has"
            f" {table.rows} row(s) with the columns {', '.join(table.columns)}."
        )
    present = [name for name in ("label", "split", "group") if name in table.columns]
    categories = {name: _read_categories(table, name) for name in present}
    _release()
    if "split" in categories:
        odd = sorted(set(categories["split"].categories) - set(SPLITS))
        if odd:
            raise DataError(
                f"dataset.root: {file} names the split '{odd[0]}'; possible are train, val, test."
            )
    paths, order = sort_texts(_read_paths(table, allow_external_paths))
    twice = first_repeated(paths)
    if twice is not None:
        raise DataError(f"dataset.root: {file} names the file '{twice}' more than once.")
    columns = {"path": pd.Series(paths, dtype="str")}
    for name, column in categories.items():
        columns[name] = pd.Series(column.take(order))
        if file.suffix.lower() == ".csv":
            columns[name] = columns[name].astype("str")
    if "sha256" in table.columns and file.suffix.lower() != ".csv":
        columns["sha256"] = _read_hashes(table, order)
        _release()
    return pd.DataFrame(columns, copy=False)


def sort_texts(chunks: list[pa.Array]) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Return texts in order, and the position (N,) int32 that each had.

    They are sorted part after part and the list is emptied, so that memory never holds all of them
    twice.
    """
    whole = pa.chunked_array(chunks, pa.large_string())
    bounds = np.cumsum([0, *map(len, chunks)])
    if is_increasing(whole):
        return whole, np.arange(bounds[-1], dtype=np.int32)
    del whole
    places = (np.arange(*pair, dtype=np.int32) for pair in pairwise(bounds))
    rest = list(zip(chunks, places, strict=True))
    chunks.clear()
    texts, positions = [], []
    for pivot in [*_pivots([chunk for chunk, _ in rest]), None]:
        part = []
        for idx, (chunk, numbers) in enumerate(rest):
            below = pc.less(chunk, pivot) if pivot else pa.repeat(True, len(chunk))
            mask = below.to_numpy(zero_copy_only=False)
            part.append((chunk.filter(below), numbers[mask]))
            rest[idx] = chunk.filter(pc.invert(below)), numbers[~mask]
        joined = pa.concat_arrays([chunk for chunk, _ in part])
        order = pc.sort_indices(joined)
        texts.append(joined.take(order))
        positions.append(np.concatenate([numbers for _, numbers in part])[order.to_numpy()])
        del part, joined, order
        _release()
    return pa.chunked_array(texts, pa.large_string()), np.concatenate(positions)


def texts_of(column: pd.Series) -> pa.ChunkedArray:
    """Return a column of text as it is in memory, without a copy where Arrow holds it."""
    texts = pa.array(column, pa.large_string())
    return texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([texts])


def is_file(path: str | Path) -> bool:
    """Return whether there is a file, or a member of a shard, that a path leads to.

    Raises:
        DataError: when the shard is damaged.
    """
    try:
        return os.path.isfile(path) or find_member(path) is not None  # noqa: PTH113
    except OSError:
        return False


def is_increasing(texts: pa.ChunkedArray) -> bool:
    """Return whether each text comes after the one before it; then there is none twice."""
    return all(pc.all(pc.less(*pair)).as_py() is not False for pair in _neighbors(texts))


def first_repeated(texts: pa.ChunkedArray) -> str | None:
    """Return the first of sorted texts that is the same as the one before it."""
    for before, after in _neighbors(texts):
        place = pc.index(pc.equal(before, after), True).as_py()
        if place >= 0:
            return str(after[place].as_py())
    return None


def categorical(chunks: Iterable[pa.Array]) -> pd.Categorical:
    """Return texts as categories in alphabetical order."""
    encoded = pa.chunked_array([chunk.dictionary_encode() for chunk in chunks])
    encoded = encoded.unify_dictionaries()
    names = encoded.chunk(0).dictionary
    order = pc.sort_indices(names).to_numpy()
    rank = np.empty(len(order), np.min_scalar_type(-len(order)))
    rank[order] = np.arange(len(order))
    codes = np.concatenate([rank[chunk.indices.to_numpy()] for chunk in encoded.chunks])
    return pd.Categorical.from_codes(codes, pd.Index(names.take(order), dtype="str"))


def _release() -> None:
    """Give memory back to the system, of which Arrow otherwise keeps half as much again."""
    pa.default_memory_pool().release_unused()


def _neighbors(texts: pa.ChunkedArray) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield pairs of arrays of neighbors: those within each chunk, and those across two."""
    chunks = [chunk for chunk in texts.chunks if len(chunk)]
    for chunk in chunks:
        yield chunk[:-1], chunk[1:]
    for chunk, after in pairwise(chunks):
        yield chunk[-1:], after[:1]


def _pivots(chunks: Sequence[pa.Array]) -> list[pa.Scalar]:
    """Return texts that divide all texts into parts of about `SORTED` batches."""
    parts = sum(map(len, chunks)) // (SORTED * BATCH) + 1
    sample = pa.concat_arrays([chunk.take(np.arange(0, len(chunk), 100)) for chunk in chunks])
    sample = sample.take(pc.sort_indices(sample))
    return [sample[len(sample) * part // parts] for part in range(1, parts)]


def _open_csv(file: Path) -> Table:
    texts = pa.Table.from_pandas(_read_texts(file), preserve_index=False)

    def read(name: str) -> Iterator[pa.Array]:
        for batch in texts.select([name]).to_batches(BATCH):
            yield batch.column(0)

    return Table(file, texts.column_names, len(texts), "line", 2, read)


def _read_texts(path: Path) -> pd.DataFrame:
    """Return a CSV with all of it as text."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError, csv.Error) as error:  # pandas' own are ValueErrors
        raise DataError(
            f"dataset.root: {path} cannot be read as a CSV in UTF-8 ({error}). Save it again as one"
            " with the columns path and label."
        ) from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the surplus for names of rows
        raise DataError(
            f"dataset.root: the rows of {path} have more values than there are columns. Put quotes"
            " around names with a comma."
        )
    return table.fillna("")  # a row that ends early


def _open_parquet(file: Path) -> Table:
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)  # else all of a column is held
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error

    def read(name: str) -> Iterator[pa.Array]:
        try:
            for batch in parquet.iter_batches(BATCH, columns=[name]):
                yield batch.column(0)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, error) from error

    rows = parquet.metadata.num_rows
    return Table(file, parquet.schema_arrow.names, rows, "row", 1, read)


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        f"dataset.root: {file} cannot be read as Parquet ({error}). Write it again, with the"
        " columns path and label."
    )


def _read_filled(table: Table, name: str) -> Iterator[tuple[int, pa.Array]]:
    """Yield batches of a column as text, each with the number of its first row.

    Raises:
        DataError: when a value is no text, or missing, or empty.
    """
    number = table.first
    for batch in table.read(name):
        try:
            texts = pc.fill_null(pc.cast(batch, pa.large_string()), "")
        except pa.ArrowException as error:
            raise _unreadable(table.file, error) from error
        empty = pc.index(pc.utf8_trim_whitespace(texts), pa.scalar("", pa.large_string())).as_py()
        if empty >= 0:
            raise DataError(
                f"dataset.root: {table.file}, {table.row} {number + empty}: '{name}' is empty."
            )
        yield number, texts
        number += len(texts)


def _read_categories(table: Table, name: str) -> pd.Categorical:
    return categorical(texts for _, texts in _read_filled(table, name))


def _read_paths(table: Table, allow_external_paths: bool) -> list[pa.Array]:
    """Return the absolute paths of the files, in batches, all links followed.

    Every file is looked at once, since nobody but the operating system knows whether it is there
    and no link that leads elsewhere: 5 µs each.

    Raises:
        DataError: when a file is not there, or outside of the table's folder.
    """
    found, absent, first = [], 0, ""
    real_folder = lru_cache(100_000)(os.path.realpath)  # of the folders, which are few
    batches = _read_filled(table, "path")
    total = -(-table.rows // BATCH)
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        for number, names in track(batches, "Looking for the images", total, transient=True):
            files, kinds = _follow(table, number, names, real_folder, pool)
            if not allow_external_paths:
                _check_inside(table, number, names, files)
            missing = np.flatnonzero(kinds == ABSENT)
            if len(missing) and not absent:
                first = names[missing[0]].as_py()
            absent += len(missing)
            found.append(files)
    if absent:
        raise DataError(
            f"dataset.root: {absent} file(s) that {table.file} names do not exist, first '{first}'."
            f" Paths are relative to {table.file.parent}."
        )
    return found


def _follow(
    table: Table,
    number: int,
    names: pa.Array,
    real_folder: Callable[[str], str],
    pool: ThreadPoolExecutor,
) -> tuple[pa.Array, np.ndarray]:
    """Return the absolute paths of files, and whether each is a `FILE` or `ABSENT`."""
    text = pa.large_string()
    base = pa.scalar(f"{table.file.parent.as_posix().rstrip('/')}/", text)
    plain = pc.replace_substring_regex(names, r"^(\./)+", "")
    prefix = pc.if_else(pc.starts_with(plain, "/"), pa.scalar("", text), base)
    files = pc.binary_join_element_wise(prefix, plain, pa.scalar("", text))
    detours = pc.match_substring_regex(files, DETOUR)
    files = _in_real_folders(pc.if_else(detours, base, files), real_folder)
    parts = [files.slice(start, PART) for start in range(0, len(files), PART)]
    kinds = np.concatenate(list(pool.map(_kinds, parts)))
    odd = np.flatnonzero(detours.to_numpy(zero_copy_only=False) | (kinds == LINK))
    if len(odd):
        texts = files.to_pylist()
        for row in map(int, odd):
            file = _resolve(table, number + row, names[row].as_py())
            texts[row], kinds[row] = file.as_posix(), FILE if is_file(file) else ABSENT
        files = pa.array(texts, text)
    return files, kinds


def _in_real_folders(files: pa.Array, real_folder: Callable[[str], str]) -> pa.Array:
    """Return absolute paths with those links followed that lie in the folders' part of them."""
    folders = pc.replace_substring_regex(files, "[^/]*$", "").dictionary_encode()
    named = folders.dictionary.to_pylist()
    real = [f"{real_folder(folder).rstrip('/')}/" for folder in named]
    if real == named:
        return files
    names = pc.replace_substring_regex(files, "(?s)^.*/", "")
    there = pa.array(real, pa.large_string()).take(folders.indices)
    return pc.binary_join_element_wise(there, names, pa.scalar("", pa.large_string()))


def _kinds(files: pa.Array) -> np.ndarray:
    """Return what each path leads to."""
    return np.fromiter(map(_kind, files.to_pylist()), np.int8, len(files))


def _kind(file: str) -> int:
    try:
        mode = os.lstat(file).st_mode
    except NotADirectoryError:  # below a file, which is a shard, or is none
        return FILE if is_file(file) else ABSENT
    except (OSError, ValueError):  # not there, too long, in a folder that is closed
        return ABSENT
    return FILE if stat.S_ISREG(mode) else LINK if stat.S_ISLNK(mode) else ABSENT


def _resolve(table: Table, row: int, name: str) -> Path:
    """Return the absolute path of a file that the table names, all links followed."""
    try:
        return (table.file.parent / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a NUL
        raise DataError(
            f"dataset.root: {table.file}, {table.row} {row}: {name!r} is no path of a file"
            f" ({error})."
        ) from error


def _check_inside(table: Table, number: int, names: pa.Array, files: pa.Array) -> None:
    """Refuse a table that names files which lie, links followed, outside of its folder."""
    folder = table.file.parent
    outside = pc.index(pc.starts_with(files, f"{folder.as_posix().rstrip('/')}/"), False).as_py()
    if outside >= 0:
        name, file = names[outside].as_py(), files[outside].as_py()
        raise DataError(
            f"dataset.root: {table.file}, {table.row} {number + outside}: '{name}' is outside of"
            f" {folder} ({file}). Move the file or the table, or allow it with"
            " dataset.allow_external_paths=true."
        )


def _read_hashes(table: Table, order: np.ndarray) -> pd.Series:
    """Return SHA-256 hashes, given as 64 hexadecimal digits or 32 bytes, as 32 bytes each.

    Raises:
        DataError: when one is missing or something else.
    """
    place = np.empty_like(order)  # where each row of the table has gone
    place[order] = np.arange(len(order), dtype=order.dtype)
    hashes = np.empty((len(order), SHA256_BYTES), np.uint8)
    number = 0
    for batch in table.read("sha256"):
        try:
            digests = _digests(batch)
        except (ValueError, pa.ArrowException) as error:
            raise DataError(
                f"dataset.root: {table.file}: of the values of sha256 in {table.row}s"
                f" {number + 1} to {number + len(batch)} one is none ({error}). Give 64 hexadecimal"
                " digits or 32 bytes, or leave the column out."
            ) from error
        hashes[place[number : number + len(batch)]] = digests
        number += len(batch)
    return pd.Series(pd.arrays.ArrowExtensionArray(as_binary(hashes)))


def as_binary(digests: np.ndarray) -> pa.Array:
    """Return hashes (N, 32) uint8 as values of 32 bytes each, without a copy.

    Pandas cannot read columns of a fixed width back from Parquet.
    """
    fits = digests.nbytes < 2**31
    kind = np.dtype(np.int32 if fits else np.int64)
    offsets = np.arange(0, digests.nbytes + 1, SHA256_BYTES, dtype=kind)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(digests)]
    return pa.Array.from_buffers(pa.binary() if fits else pa.large_binary(), len(digests), buffers)


def _digests(hashes: pa.Array) -> np.ndarray:
    """Return SHA-256 hashes, given as 64 hexadecimal digits or 32 bytes, as (N, 32) uint8.

    Raises:
        ValueError: when one is missing or something else.
    """
    if hashes.null_count:
        raise ValueError("a value is missing")
    if pa.types.is_string(hashes.type) or pa.types.is_large_string(hashes.type):
        digits = hashes.cast(pa.large_binary()).cast(pa.binary(2 * SHA256_BYTES))
        digests = binascii.unhexlify(_bytes(digits))
    else:
        digests = _bytes(hashes.cast(pa.binary(SHA256_BYTES)))
    return np.frombuffer(digests, np.uint8).reshape(-1, SHA256_BYTES)


def _bytes(values: pa.Array) -> pa.Buffer:
    """Return values of equal width one after the other, without a copy."""
    width, (_, buffer) = values.type.byte_width, values.buffers()
    return buffer[values.offset * width : (values.offset + len(values)) * width]
