"""Cache views and activations on disk, in files that any number of processes may share.

A cache is a folder of partitions, one for each configuration that entries were computed with. A
partition is a folder of shards: safetensors files that are written under a temporary name, renamed,
and never modified. So processes can read, write and evict at the same time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thawline.data.atomic_write import sync, write_atomic

logger = logging.getLogger(__name__)

GB = 1e9
CACHE_FORMAT = 2  # in every description, so that no entry of another format is ever read
SHARD_BYTES = 32_000_000  # entries wait in memory until there are so many bytes of them
SHARD_ENTRIES = 65_536  # or so many of them: their keys lie in the header of the file
MAX_OPEN_SHARDS = 256  # files per partition
ALIGNMENT = 8  # bytes, of each tensor in a row
KEY_BYTES = 16
MIXER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no two views of an image get the same hash
SHARD_SHIFT = 32  # bits of a place that number the row; those above number the shard
ROWS = (1 << SHARD_SHIFT) - 1  # the bits of a place that number the row
MISSING = -1  # the place of an entry that is not on disk
STALE_SECONDS = 3600  # an unfinished file this old was left behind by a process that was killed
PROBE_BYTES = 8_000_000  # of the file that measures the disk

Tensors = tuple[Tensor, ...]


def cache_key(sha256: str, view: int | None) -> bytes:
    """Return the key of an entry: 12 bytes of its image's hash, and 4 of the number of its view.

    Args:
        sha256: of the image file, 64 hexadecimal digits.
        view: number of the random view; None is the one for evaluation.
    """
    return bytes.fromhex(sha256[-24:]) + (0 if view is None else view + 1).to_bytes(4, "little")


class ActivationCache:
    """A folder of partitions that together hold at most `max_gb`."""

    def __init__(self, folder: Path, max_gb: float) -> None:
        """Open the cache in `folder`, which need not exist; `max_gb` is in GB (10^9 bytes)."""
        self.folder, self.max_bytes = folder, max_gb * GB

    def partition(self, description: dict[str, Any], pin_memory: bool = False) -> CachePartition:
        """Return the partition of all entries that were computed as `description` says.

        Args:
            description: plain data.
            pin_memory: whether what is read lies in page-locked memory, to be copied to a GPU.
        """
        text = json.dumps({**description, "cache_format": CACHE_FORMAT}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return CachePartition(self.folder / name, text, self, pin_memory)

    def contents(self) -> pd.DataFrame:
        """Return one row per partition: what it holds, entries, MB (10^6 bytes), last use."""
        rows = []
        for folder in sorted(path for path in self.folder.glob("*") if path.is_dir()):
            shards = [(path, path.stat()) for path in sorted(folder.glob("*.safetensors"))]
            found = [_read_metadata(path) for path, _ in shards]
            readable = [metadata for metadata in found if metadata]
            if readable:
                description = json.loads(readable[-1]["description"])
                earlier = description.get("cache_format") != CACHE_FORMAT
                last_used = max(status.st_mtime for _, status in shards)
                rows.append(
                    {
                        "partition": folder.name[:8],
                        "holds": description["holds"] + " (earlier format, unused)" * earlier,
                        "entries": sum(_count_entries(metadata) for metadata in readable),
                        "MB": round(sum(status.st_size for _, status in shards) / 1e6, 1),
                        "last used": datetime.fromtimestamp(int(last_used)),
                    }
                )
        return pd.DataFrame(rows, columns=["partition", "holds", "entries", "MB", "last used"])

    def empty(self) -> None:
        """Remove all entries; a process that is training computes what it misses again."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def evict(self) -> None:
        """Remove the least recently used shards beyond `max_gb`, and what killed processes left.

        A shard in a folder of another user that this process may not change stays.
        """
        now = time.time()
        files = []
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            if path.suffix == ".unfinished" and now - status.st_mtime > STALE_SECONDS:
                _remove(path)
            elif path.suffix == ".safetensors":
                files.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in files) - self.max_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            if _remove(path):
                excess -= size
                logger.info("%s GB limit: evicting %s", self.max_bytes / GB, path)

    def bytes_per_second(self) -> float:
        """Return the measured rate of writing a file to the disk and reading it back once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / f"{uuid.uuid4().hex}.unfinished"
        data = os.urandom(PROBE_BYTES)
        start = time.perf_counter()
        try:
            probe.write_bytes(data)
            sync(probe)
            probe.read_bytes()
            return len(data) / (time.perf_counter() - start)
        finally:
            probe.unlink(missing_ok=True)


class CachePartition:
    """The entries of one configuration: for each image and view the same number of tensors.

    The index takes 24 bytes per entry, whatever the number of shards.

    Attributes:
        seconds_saved: how long it once took to compute all that was read from disk since.
    """

    def __init__(
        self, folder: Path, description: str, store: ActivationCache, pin_memory: bool = False
    ) -> None:
        """Open the partition in `folder`, which need not exist; see `ActivationCache.partition`."""
        self._folder, self.description, self._store = folder, description, store
        self._pin_memory = pin_memory
        self._shards: dict[int, str] = {}  # their files, by number
        # Of each shard there ever was: the byte of its file at which the first row begins, and the
        # seconds that it took to compute an entry.
        self._starts, self._seconds = np.empty(0, np.int64), np.empty(0)
        self._unreadable: set[str] = set()
        # The index: hash and second half of each key, sorted; the shard and the row of its entry.
        self._hashes, self._halves = np.empty(0, np.uint64), np.empty(0, np.uint64)
        self._places = np.empty(0, np.int64)
        self._new: list[tuple[np.ndarray, ...]] = []  # parts that are to be merged into it
        self._lay_out([])
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        self._waiting: dict[bytes, np.ndarray] = {}
        self._waiting_seconds = self.seconds_saved = 0.0
        self.refresh()

    def __len__(self) -> int:
        """Return the number of entries on disk."""
        self._merge_new()
        return len(self._hashes)

    def refresh(self) -> None:
        """Index the shards that other processes have written, and note that ours are in use."""
        try:
            names = {f.name for f in os.scandir(self._folder) if f.name.endswith(".safetensors")}
        except (FileNotFoundError, NotADirectoryError):
            names = set()
        for number, name in [*self._shards.items()]:
            if name not in names:
                self._forget(number)
        for number in self._files:
            self._mark_used(self._folder / self._shards[number])
        for name in sorted(names - self._unreadable - {*self._shards.values()}):
            self._index(name)

    def contains(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return for each of N keys, as bool (N,), whether its entry can be read."""
        there = self._find(keys) != MISSING
        if self._waiting:
            there |= np.fromiter((key in self._waiting for key in keys), bool, len(keys))
        return there

    def read(self, keys: Sequence[bytes]) -> Tensors:
        """Return the tensors (N, …) of N entries, which share no memory with anything else.

        Raises:
            KeyError: when one is not, or no longer, there.
        """
        places = self._find(keys)
        is_missing = places == MISSING
        tensor = torch.empty(
            (len(keys), self._offsets[-1]), dtype=torch.uint8, pin_memory=self._pin_memory
        )
        rows = tensor.numpy()
        for row in np.flatnonzero(is_missing).tolist():
            rows[row] = self._waiting[keys[row]]
        self._read_rows(places, rows)
        self.seconds_saved += float(self._seconds[places[~is_missing] >> SHARD_SHIFT].sum())
        return self._unpack(tensor)

    def add(self, keys: Sequence[bytes], tensors: Sequence[Tensor], seconds: float = 0) -> None:
        """Copy the tensors (N, …) of N entries; they are written when there are enough of them.

        Args:
            keys: of the entries.
            tensors: on any device. Whoever has them may write to them afterwards.
            seconds: how long it took to compute them all.
        """
        self._lay_out([(tensor.dtype, tuple(tensor.shape[1:])) for tensor in tensors])
        rows = np.zeros((len(keys), self._offsets[-1]), np.uint8)
        for tensor, start in zip(tensors, self._offsets, strict=False):
            flat = tensor.detach().cpu().contiguous().reshape(len(keys), -1).view(torch.uint8)
            rows[:, start : start + flat.shape[1]] = flat.numpy()
        self._waiting |= dict(zip(keys, rows, strict=True))
        self._waiting_seconds += seconds
        count = len(self._waiting)
        if count * self._offsets[-1] >= SHARD_BYTES or count >= SHARD_ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Write the entries that wait into a shard of their own."""
        if not self._waiting:
            return
        name = f"{uuid.uuid4().hex}.safetensors"
        rows = torch.from_numpy(np.stack([*self._waiting.values()]))
        metadata = {
            "description": self.description,
            "keys": b"".join(self._waiting).hex(),
            "layout": json.dumps([(str(t).removeprefix("torch."), s) for t, s in self._layout]),
            "seconds": f"{self._waiting_seconds:.6f}",
        }
        self._waiting, self._waiting_seconds = {}, 0.0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(
                self._folder / name, lambda file: save_file({"rows": rows}, file, metadata)
            )
        except (OSError, SafetensorError) as error:  # no reason for training to end
            logger.warning("Cannot write %s (%s): it will be computed again", name, error)
        self._store.evict()
        self.refresh()

    def close(self) -> None:
        """Write what waits and close all files."""
        self.flush()
        while self._files:
            self._files.popitem()[1].close()

    def _index(self, name: str) -> None:
        """Index the entries of a shard."""
        path = self._folder / name
        metadata = _read_metadata(path, remove_damaged=True)
        try:
            size = path.stat().st_size
        except FileNotFoundError:  # removed, by this process or another
            return
        if not metadata:
            self._unreadable.add(name)
            return
        hashes, halves = _split_keys(bytes.fromhex(metadata["keys"]))
        layout = json.loads(metadata["layout"])
        self._lay_out([(getattr(torch, dtype), tuple(shape)) for dtype, shape in layout])
        number, count = len(self._seconds), len(hashes)
        self._shards[number] = name
        # The rows are the only tensor, so they end where the file ends.
        self._starts = np.append(self._starts, size - count * self._offsets[-1])
        self._seconds = np.append(self._seconds, float(metadata["seconds"]) / count)
        self._new.append((hashes, halves, (number << SHARD_SHIFT) + np.arange(count)))

    def _merge_new(self) -> None:
        """Merge what was indexed since into the sorted index; of equal keys the first stays."""
        if not self._new:
            return
        parts = zip((self._hashes, self._halves, self._places), *self._new, strict=True)
        hashes, halves, places = (np.concatenate(part) for part in parts)
        self._new.clear()
        order = np.argsort(hashes, kind="stable")
        hashes, halves, places = hashes[order], halves[order], places[order]
        first = np.ones(len(order), bool)
        first[1:] = (hashes[1:] != hashes[:-1]) | (halves[1:] != halves[:-1])
        self._hashes, self._halves, self._places = hashes[first], halves[first], places[first]

    def _find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the place of the entry of each of N keys, (N,) int64, or `MISSING`."""
        self._merge_new()
        if not len(self._hashes):
            return np.full(len(keys), MISSING)
        hashes, halves = _split_keys(b"".join(keys))
        found = np.searchsorted(self._hashes, hashes)
        found[found == len(self._hashes)] = 0
        is_there = (self._hashes[found] == hashes) & (self._halves[found] == halves)
        return np.where(is_there, self._places[found], MISSING)

    def _read_rows(self, places: np.ndarray, rows: np.ndarray) -> None:
        """Read the entries at places (N,) into rows (N, bytes), except `MISSING` ones.

        Raises:
            KeyError: when a shard has been evicted.
        """
        buffer, size = rows.reshape(-1).data, rows.shape[1]
        order = places.argsort()  # one shard after the other, each from its beginning
        order = order[places[order] != MISSING]
        places = places[order]
        numbers = places >> SHARD_SHIFT
        starts = self._starts[numbers] + (places & ROWS) * size
        current = MISSING
        columns = (column.tolist() for column in (order, numbers, starts))
        for row, number, start in zip(*columns, strict=True):
            if number != current:
                current, file = number, self._open(number)
            try:
                file.seek(start)
                count = file.readinto(buffer[row * size : (row + 1) * size])
            except OSError:  # stale: another host has removed the file from a network file system
                count = 0
            if count != size:
                self._forget(number)
                raise KeyError(number)

    def _open(self, number: int) -> FileIO:
        """Return a shard, opened for reading.

        Raises:
            KeyError: when another process has evicted it.
            OSError: when this process may open no file at all.
        """
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        path = self._folder / self._shards[number]
        self._mark_used(path)
        if len(self._files) >= MAX_OPEN_SHARDS:
            self._files.popitem(last=False)[1].close()
        try:
            self._files[number] = FileIO(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                self._forget(number)
                raise KeyError(number) from error
            if not self._files:
                raise
            self._files.popitem(last=False)[1].close()  # the process has reached its own limit
            return self._open(number)
        return self._files[number]

    def _mark_used(self, path: Path) -> None:
        """Set the time by which `evict` decides; that of another user's file cannot be set."""
        with suppress(OSError):
            os.utime(path)

    def _forget(self, number: int) -> None:
        """Remove a shard from the index."""
        self._merge_new()
        rest = self._places >> SHARD_SHIFT != number
        self._hashes, self._halves = self._hashes[rest], self._halves[rest]
        self._places = self._places[rest]
        del self._shards[number]
        if number in self._files:
            self._files.pop(number).close()

    def _lay_out(self, layout: list[tuple[torch.dtype, tuple[int, ...]]]) -> None:
        """Note dtype and shape of an entry's tensors, and at which byte of a row each begins."""
        self._layout = layout
        sizes = (math.prod(shape) * dtype.itemsize for dtype, shape in layout)
        aligned = (-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
        self._offsets = [*accumulate(aligned, initial=0)]

    def _unpack(self, rows: Tensor) -> Tensors:
        """Return the tensors (N, …) in rows (N, bytes) uint8."""
        tensors = []
        for (dtype, shape), start in zip(self._layout, self._offsets, strict=False):
            size = math.prod(shape) * dtype.itemsize
            part = rows[:, start : start + size].contiguous()
            tensors.append(part.view(dtype).reshape(len(rows), *shape))
        return tuple(tensors)


def _split_keys(keys: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of N keys and their second halves, each (N,) uint64; the two tell all keys."""
    first, second = np.frombuffer(keys, "<u8").reshape(-1, 2).T
    return first ^ (second * MIXER), second.copy()


def _read_metadata(path: Path, remove_damaged: bool = False) -> dict[str, str]:
    """Return what a shard says of itself; nothing where it is damaged or no longer there."""
    try:
        with safe_open(path, framework="pt") as shard:
            return dict(shard.metadata())
    except SafetensorError as error:
        if remove_damaged:
            logger.warning("Removing %s, which is damaged (%s)", path, error)
            _remove(path)
    except FileNotFoundError:  # evicted by another process
        pass
    except OSError as error:
        logger.warning("Cannot read %s (%s)", path, error)
    return {}


def _count_entries(metadata: dict[str, str]) -> int:
    """Return the number of entries in a shard of this format or the one before."""
    if "keys" in metadata:
        return len(metadata["keys"]) // (2 * KEY_BYTES)
    return len(json.loads(metadata["entries"]))


def _remove(path: Path) -> bool:
    """Remove a file if this process may, and return whether it is gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True
