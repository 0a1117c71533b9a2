"""Keep the entries of one configuration on disk, in shards that processes share.

A shard is a safetensors file with one row of bytes per entry. It is written to a temporary file,
renamed and never modified, so processes can read, write and evict concurrently.
"""

import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from itertools import accumulate, count
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
MAX_OPEN_SHARDS = 128  # files per partition
ALIGNMENT = 8  # bytes, of each tensor in a row
KEY_BYTES = 16
ENTRY = np.dtype([("key", f"S{KEY_BYTES}"), ("shard", np.int32), ("row", np.int32)])
MISSING = -1  # the shard of an entry that is not on disk
LAST_KEY = b"\xff" * KEY_BYTES  # greater than that of any view

Tensors = tuple[Tensor, ...]


class CachePartition:
    """The entries of one configuration: the same number of tensors for each image view."""

    def __init__(
        self, folder: Path, description: str, on_write: Callable[[], None], pin_memory: bool = False
    ) -> None:
        """Open the partition in `folder`; `on_write` is called after each write."""
        self._folder, self._description, self._on_write = folder, description, on_write
        self._pin_memory = pin_memory
        # Of the entries on disk, sorted by key, and one behind them that ends every search.
        self._index = np.array([(LAST_KEY, MISSING, 0)], ENTRY)
        self._shards: dict[int, tuple[str, int]] = {}  # file name, and offset of the first row
        self._numbers = count()  # of shards
        self._files: dict[int, FileIO] = {}  # shards that are being read
        self._waiting: dict[bytes, np.ndarray] = {}
        self._set_layout([])
        self.refresh()

    def refresh(self) -> None:
        """Index the shards that other processes have written, and forget those evicted."""
        names = {path.name for path in self._folder.glob("*.safetensors")}
        for number, (name, _) in [*self._shards.items()]:
            if name not in names:
                self._forget(number)
        if new := sorted(names - {name for name, _ in self._shards.values()}):
            index = np.concatenate([self._index, *map(self._add_shard, new)])
            _, first = np.unique(index["key"], return_index=True)
            self._index = index[first]

    def contains(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return for each of N keys, as bool (N,), whether its entry can be read."""
        is_waiting = np.array([key in self._waiting for key in keys], bool)
        return is_waiting | (self._find(keys)["shard"] != MISSING)

    def read(self, keys: Sequence[bytes]) -> tuple[np.ndarray, Tensors]:
        """Return which of N entries there are, as bool (N,), and the tensors (M, …) of these.

        The tensors share no memory with the cache.
        """
        shape = (len(keys), self._offsets[-1])
        tensor = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin_memory)
        rows, places = tensor.numpy(), self._find(keys)
        is_known, buffer, size = np.zeros(len(keys), bool), rows.reshape(-1).data, shape[1]
        order = places["shard"].argsort(kind="stable")  # shard by shard
        for position, (_, number, row) in zip(order.tolist(), places[order].tolist(), strict=True):
            if number in self._shards:
                target = buffer[position * size : (position + 1) * size]
                is_known[position] = self._read_row(number, row, target)
        for position in np.flatnonzero(~is_known).tolist():
            if keys[position] in self._waiting:
                rows[position], is_known[position] = self._waiting[keys[position]], True
        return is_known, self._unpack(tensor if is_known.all() else tensor[is_known])

    def add(self, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
        """Copy the tensors (N, …) of N entries, and write a shard when enough entries wait."""
        self._set_layout([(tensor.dtype, tuple(tensor.shape[1:])) for tensor in tensors])
        rows = np.zeros((len(keys), self._offsets[-1]), np.uint8)
        for tensor, start in zip(tensors, self._offsets, strict=False):
            flat = tensor.detach().cpu().contiguous().reshape(len(keys), -1).view(torch.uint8)
            rows[:, start : start + flat.shape[1]] = flat.numpy()
        self._waiting |= dict(zip(keys, rows, strict=True))
        entries = len(self._waiting)
        if entries * self._offsets[-1] >= SHARD_BYTES or entries >= SHARD_ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Write the waiting entries to a shard, and close the shards that were read."""
        self._close_files()
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

    def _add_shard(self, name: str) -> np.ndarray:
        """Give a shard its number and return its entries; none if it cannot be read."""
        metadata = read_metadata(self._folder / name)
        keys = bytes.fromhex(metadata.get("keys", ""))
        entries = np.zeros(len(keys) // KEY_BYTES, ENTRY)
        number, start = next(self._numbers), 0
        if metadata:
            layout = json.loads(metadata["layout"])
            self._set_layout([(getattr(torch, dtype), tuple(shape)) for dtype, shape in layout])
            entries["key"] = np.frombuffer(keys, ENTRY["key"])
            entries["shard"], entries["row"] = number, np.arange(len(entries))
            # The rows are the only tensor, so they end where the file ends.
            start = int(metadata["bytes"]) - len(entries) * self._offsets[-1]
        self._shards[number] = name, start
        return entries

    def _find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the place of each of N keys on disk, `ENTRY` (N,)."""
        wanted = np.frombuffer(b"".join(keys), ENTRY["key"])
        places = self._index[self._index["key"].searchsorted(wanted)]
        places["shard"][places["key"] != wanted] = MISSING
        return places

    def _read_row(self, number: int, row: int, target: memoryview) -> bool:
        """Read an entry into `target`, if its shard is there."""
        try:
            file = self._open(number)
            file.seek(self._shards[number][1] + row * len(target))
            if file.readinto(target) == len(target):
                return True
        except OSError:  # evicted; on a network file system also while it is open
            pass
        self._forget(number)
        return False

    def _open(self, number: int) -> FileIO:
        """Open a shard, unless it is open, and set the time by which `ActivationCache` evicts."""
        if number not in self._files:
            path = self._folder / self._shards[number][0]
            if len(self._files) >= MAX_OPEN_SHARDS:
                self._close_files()
            try:
                self._files[number] = FileIO(path)
            except OSError:  # evicted, or the process may open no more files
                self._close_files()
                self._files[number] = FileIO(path)
            with suppress(OSError):  # the file belongs to another user
                os.utime(path)
        return self._files[number]

    def _close_files(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def _forget(self, number: int) -> None:
        """Remove a shard from the index."""
        if number in self._files:
            self._files.pop(number).close()
        self._index = self._index[self._index["shard"] != number]
        del self._shards[number]

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
