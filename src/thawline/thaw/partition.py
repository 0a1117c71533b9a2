"""Keep the entries of one configuration on disk, in shards that processes share.

A shard is a safetensors file with one row of bytes per entry. It is written to a temporary file,
renamed and never modified, so processes can read, write and evict concurrently.
"""

import errno
import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thawline.data.atomic_write import write_atomic

logger = logging.getLogger(__name__)

SHARD_BYTES = 32_000_000  # entries wait in memory until they have so many bytes,
SHARD_ENTRIES = 65_536  # or until there are so many: their keys lie in the header of the file
MAX_OPEN_SHARDS = 256  # files per partition
ALIGNMENT = 8  # bytes, of each tensor in a row
KEY_BYTES = 16
HASH_MULTIPLIER = -0x61C8864680B583EB  # odd: no two views of an image share a hash
SHARD_SHIFT = 32  # a place is (number of the shard << SHARD_SHIFT) + row
ROW_MASK = (1 << SHARD_SHIFT) - 1
MISSING = -1  # the place of an entry that is not on disk

Tensors = tuple[Tensor, ...]


class EntryIndex:
    """The place of each entry on disk by its key: 24 bytes per entry, sorted by a hash."""

    def __init__(self) -> None:
        """Index nothing yet."""
        # Rows: hashes of the keys, in order; their second halves; the places.
        self._columns = np.empty((3, 0), np.int64)

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._columns.shape[1]

    def add(self, keys_of_shards: Mapping[int, bytes]) -> None:
        """Add the entries of shards, by their numbers; of equal keys the first stays."""
        if not keys_of_shards:
            return
        parts = [self._columns]
        for number, keys in keys_of_shards.items():
            rows = np.arange(len(keys) // KEY_BYTES)
            parts.append(np.stack([*_split_keys(keys), (number << SHARD_SHIFT) + rows]))
        columns = np.concatenate(parts, axis=1)
        columns = columns.take(columns[0].argsort(kind="stable"), axis=1)
        is_first = np.ones(columns.shape[1], bool)
        is_first[1:] = (columns[:2, 1:] != columns[:2, :-1]).any(axis=0)
        self._columns = columns.compress(is_first, axis=1)

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the place of each of N keys, int64 (N,), or `MISSING`."""
        if not len(self):
            return np.full(len(keys), MISSING)
        all_hashes, all_halves, places = self._columns
        hashes, halves = _split_keys(b"".join(keys))
        found = all_hashes.searchsorted(hashes)
        found[found == len(self)] = 0
        is_there = (all_hashes[found] == hashes) & (all_halves[found] == halves)
        return np.where(is_there, places[found], MISSING)

    def remove(self, shard: int) -> None:
        """Remove the entries of a shard."""
        is_other = self._columns[2] >> SHARD_SHIFT != shard
        self._columns = self._columns.compress(is_other, axis=1)


class CachePartition:
    """The entries of one configuration: the same number of tensors for each image view."""

    def __init__(
        self, folder: Path, description: str, on_write: Callable[[], None], pin_memory: bool = False
    ) -> None:
        """Open the partition in `folder`; `on_write` is called after each write."""
        self._folder, self._description, self._on_write = folder, description, on_write
        self._pin_memory, self._index = pin_memory, EntryIndex()
        self._shards: dict[int, str] = {}  # file names by number
        self._unreadable: set[str] = set()
        self._starts = np.empty(0, np.int64)  # offset of the first row, by number
        self._files: dict[int, FileIO] = {}
        self._waiting: dict[bytes, np.ndarray] = {}
        self._set_layout([])
        self.refresh()

    def __len__(self) -> int:
        """Return the number of entries on disk."""
        return len(self._index)

    def refresh(self) -> None:
        """Index the shards that other processes have written, and mark open ones as used."""
        names = {path.name for path in self._folder.glob("*.safetensors")}
        for number, name in [*self._shards.items()]:
            if name not in names:
                self._forget(number)
        for number in self._files:
            self._mark_used(number)
        new = sorted(names - self._unreadable - {*self._shards.values()})
        self._index.add(dict(filter(None, map(self._add_shard, new))))

    def contains(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return for each of N keys, as bool (N,), whether its entry can be read."""
        is_waiting = np.array([key in self._waiting for key in keys], bool)
        return is_waiting | (self._index.find(keys) != MISSING)

    def read(self, keys: Sequence[bytes]) -> Tensors:
        """Return the tensors (N, …) of N entries, which share no memory with the cache.

        Raises:
            KeyError: when an entry is missing, or has been evicted.
        """
        places, shape = self._index.find(keys), (len(keys), self._offsets[-1])
        tensor = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin_memory)
        rows = tensor.numpy()
        for row in np.flatnonzero(places == MISSING).tolist():
            rows[row] = self._waiting[keys[row]]
        self._read_rows(places, rows)
        return self._unpack(tensor)

    def add(self, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
        """Copy the tensors (N, …) of N entries, and write a shard when enough entries wait."""
        self._set_layout([(tensor.dtype, tuple(tensor.shape[1:])) for tensor in tensors])
        rows = np.zeros((len(keys), self._offsets[-1]), np.uint8)
        for tensor, start in zip(tensors, self._offsets, strict=False):
            flat = tensor.detach().cpu().contiguous().reshape(len(keys), -1).view(torch.uint8)
            rows[:, start : start + flat.shape[1]] = flat.numpy()
        self._waiting |= dict(zip(keys, rows, strict=True))
        count = len(self._waiting)
        if count * self._offsets[-1] >= SHARD_BYTES or count >= SHARD_ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Write the waiting entries to a shard."""
        if not self._waiting:
            return
        path = self._folder / f"{uuid.uuid4().hex}.safetensors"
        rows = torch.from_numpy(np.stack([*self._waiting.values()]))
        metadata = {
            "description": self._description,
            "keys": b"".join(self._waiting).hex(),
            "layout": json.dumps([(str(t).removeprefix("torch."), s) for t, s in self._layout]),
        }
        self._waiting = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, lambda file: save_file({"rows": rows}, file, metadata))
        except (OSError, SafetensorError) as error:  # training continues without the entries
            logger.warning("Cannot write %s (%s): its entries will be recomputed", path.name, error)
        self._on_write()
        self.refresh()

    def close(self) -> None:
        """Write the waiting entries and close all files."""
        self.flush()
        self._close_files()

    def _add_shard(self, name: str) -> tuple[int, bytes] | None:
        """Give a shard its number and return it with the keys; None if it cannot be read."""
        metadata = read_metadata(self._folder / name)
        if not metadata:
            self._unreadable.add(name)
            return None
        keys, layout = bytes.fromhex(metadata["keys"]), json.loads(metadata["layout"])
        self._set_layout([(getattr(torch, dtype), tuple(shape)) for dtype, shape in layout])
        number = len(self._starts)
        self._shards[number] = name
        # The rows are the only tensor, so they end where the file ends.
        start = int(metadata["bytes"]) - len(keys) // KEY_BYTES * self._offsets[-1]
        self._starts = np.append(self._starts, start)
        return number, keys

    def _read_rows(self, places: np.ndarray, rows: np.ndarray) -> None:
        """Read the entries at places (N,), but those `MISSING`, into uint8 rows (N, bytes)."""
        buffer, size = rows.reshape(-1).data, rows.shape[1]
        order = places.argsort()  # shard by shard, each from its beginning
        order = order[places[order] != MISSING]
        numbers = places[order] >> SHARD_SHIFT
        starts = self._starts[numbers] + (places[order] & ROW_MASK) * size
        current = -1
        entries = zip(order.tolist(), numbers.tolist(), starts.tolist(), strict=True)
        for row, number, start in entries:
            try:
                if number != current:
                    current, file = number, self._open(number)
                file.seek(start)
                is_read = file.readinto(buffer[row * size : (row + 1) * size]) == size
            except OSError:  # evicted; on a network file system also while it is open
                is_read = False
            if not is_read:
                self._forget(number)
                raise KeyError(number)

    def _open(self, number: int) -> FileIO:
        """Open a shard, and close others first if there are too many."""
        if number not in self._files:
            self._mark_used(number)
            path = self._folder / self._shards[number]
            if len(self._files) >= MAX_OPEN_SHARDS:
                self._close_files()
            try:
                self._files[number] = FileIO(path)
            except OSError as error:
                if not self._files or error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                self._close_files()
                self._files[number] = FileIO(path)
        return self._files[number]

    def _close_files(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def _mark_used(self, number: int) -> None:
        """Set the time by which `ActivationCache.evict` orders shards."""
        with suppress(OSError):  # the file belongs to another user, or has been evicted
            os.utime(self._folder / self._shards[number])

    def _forget(self, number: int) -> None:
        """Remove a shard from the index."""
        self._index.remove(number)
        del self._shards[number]
        if number in self._files:
            self._files.pop(number).close()

    def _set_layout(self, layout: list[tuple[torch.dtype, tuple[int, ...]]]) -> None:
        """Set dtype and shape of an entry's tensors, and the offset of each in a row of bytes."""
        self._layout = layout
        sizes = (math.prod(shape) * dtype.itemsize for dtype, shape in layout)
        aligned = (-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
        self._offsets = [*accumulate(aligned, initial=0)]

    def _unpack(self, rows: Tensor) -> Tensors:
        """Return the tensors (N, …) in uint8 rows (N, bytes)."""
        tensors = []
        for (dtype, shape), start in zip(self._layout, self._offsets, strict=False):
            size = math.prod(shape) * dtype.itemsize
            part = rows[:, start : start + size].contiguous()
            tensors.append(part.view(dtype).reshape(len(rows), *shape))
        return tuple(tensors)


def _split_keys(keys: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of N keys and their second halves, each int64 (N,); both identify a key."""
    first, second = np.frombuffer(keys, "<i8").reshape(-1, 2).T
    return first ^ (second * HASH_MULTIPLIER), second


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a shard and its size in bytes; remove a damaged shard."""
    try:
        with safe_open(path, framework="pt") as shard:
            return {**shard.metadata(), "bytes": str(path.stat().st_size)}
    except FileNotFoundError:  # evicted
        pass
    except SafetensorError as error:
        logger.warning("Removing %s, which is damaged (%s)", path, error)
        with suppress(OSError):
            path.unlink()
    except OSError as error:
        logger.warning("Cannot read %s (%s)", path, error)
    return {}
