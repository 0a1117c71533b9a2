"""Keep on disk what every epoch would compute again: views, and what the frozen part yields.

A store is a folder of shelves, one for each way in which entries came about; a shelf is a folder of
shards, safetensors files with the entries of some images. A shard is written under a temporary
name, moved, and never changed: whoever finds it, finds it whole, and any number of processes may
read, write and evict at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thawline.files import sync, write_whole
from thawline.freezing import hash_tensors
from thawline.loading import View, ViewDataset, ViewLoader
from thawline.thaw_line import ThawLine
from thawline.transforms import Transforms, normalise

logger = logging.getLogger(__name__)

GB = 1e9
SHARD_BYTES = 32_000_000  # entries wait in memory until there are so many of them
# Files of so many bytes are mapped at a time: of a file of which a few rows are read the kernel
# keeps all resident, and memory is to stay flat.
MAPPED_BYTES = 64_000_000
# Images that a CPU computes at once. With 8 instead of 32 the activations stay in its caches (370
# instead of 230 images/s through EfficientNet-Lite0, 70 instead of 54 through ResNet-50); and with
# always as many, results do not depend on which images happen to be missing from the store.
CHUNK = 8
MEASURED = 8  # images that tell what an entry costs
ACTIVATIONS, VIEWS, NOTHING = "activations", "views", "nothing"
STALE_SECONDS = 3600  # an unfinished file this old was left behind by a process that was killed

Tensors = tuple[Tensor, ...]


class Image(NamedTuple):
    """A view of an image file of known content: the one for evaluation, or the nth random one."""

    path: str
    sha256: str
    view: int | None = None


class Entry(NamedTuple):
    """What an entry is found by: an image's content, and which view of it."""

    sha256: str
    view: int | None


class ActivationStore:
    """A folder of shelves that together hold at most `max_gb`."""

    def __init__(self, folder: Path, max_gb: float) -> None:
        """Take the folder, which need not exist, and the bound in GB (10^9 bytes)."""
        self.folder, self.max_bytes = folder, max_gb * GB

    def shelf(self, description: dict[str, Any]) -> Shelf:
        """Return the shelf of all that came about as `description`, plain data, says."""
        text = json.dumps(description, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return Shelf(self.folder / name, text, self)

    def contents(self) -> pd.DataFrame:
        """Return a row a shelf: what it holds, entries, MB (10^6 bytes), when it was last used."""
        rows = []
        for folder in sorted(path for path in self.folder.glob("*") if path.is_dir()):
            shelf = Shelf(folder, "{}", self)
            shards = [path.stat() for path in folder.glob("*.safetensors")]
            if shards:
                description = json.loads(shelf.description)
                rows.append(
                    {
                        "shelf": folder.name[:8],
                        "holds": description["holds"],
                        "entries": len(shelf),
                        "MB": round(sum(shard.st_size for shard in shards) / 1e6, 1),
                        "last used": datetime.fromtimestamp(int(max(s.st_mtime for s in shards))),
                    }
                )
        return pd.DataFrame(rows, columns=["shelf", "holds", "entries", "MB", "last used"])

    def empty(self) -> None:
        """Remove all; a process that is training goes on and computes again what it misses."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def evict(self) -> None:
        """Remove the least recently used shards beyond `max_gb`, and what killed processes left."""
        now = time.time()
        files = []
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            if path.suffix == ".unfinished" and now - status.st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
            elif path.suffix == ".safetensors":
                files.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in files) - self.max_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
            logger.info("%s GB are full: %s is removed", self.max_bytes / GB, path)

    def bytes_per_second(self) -> float:
        """Return the measured rate of writing to the disk and reading back once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / f"{uuid.uuid4().hex}.unfinished"
        data = os.urandom(8_000_000)
        start = time.perf_counter()
        try:
            probe.write_bytes(data)
            sync(probe)
            probe.read_bytes()
            return len(data) / (time.perf_counter() - start)
        finally:
            probe.unlink(missing_ok=True)


class Shelf:
    """Entries that came about in one way: for each image and view the same number of tensors."""

    def __init__(self, folder: Path, description: str, store: ActivationStore) -> None:
        """Take the folder, a JSON text on what is in it, and the store that bounds it."""
        self._folder, self.description, self._store = folder, description, store
        self._places: dict[Entry, tuple[str, int]] = {}
        self._indexed: set[str] = set()
        self._mapped: dict[str, Tensors] = {}
        self._waiting: list[tuple[Sequence[Entry], Tensors, float]] = []
        self._seconds: dict[str, float] = {}
        self.refresh()

    def __contains__(self, entry: object) -> bool:
        """Return whether an entry can be read."""
        return entry in self._places

    def __len__(self) -> int:
        """Return the number of entries that can be read."""
        return len(self._places)

    def refresh(self) -> None:
        """Look for shards that other processes have written since."""
        try:
            names = {f.name for f in os.scandir(self._folder) if f.name.endswith(".safetensors")}
        except (FileNotFoundError, NotADirectoryError):
            names = set()
        for name in self._indexed - names:
            self._forget(name)
        for name in sorted(names - self._indexed):
            try:
                with safe_open(self._folder / name, framework="pt") as shard:
                    metadata = shard.metadata()
            except FileNotFoundError:  # evicted by another process
                continue
            except SafetensorError as error:
                logger.warning("%s is damaged and removed (%s)", self._folder / name, error)
                (self._folder / name).unlink(missing_ok=True)
                continue
            self.description, entries = metadata["description"], json.loads(metadata["entries"])
            self._indexed.add(name)
            self._seconds[name] = float(metadata.get("seconds", 0)) / len(entries)
            for row, (sha256, view) in enumerate(entries):
                self._places.setdefault(Entry(sha256, view), (name, row))

    def read(self, entries: Sequence[Entry]) -> Tensors:
        """Return the tensors (N, …) of N entries, as copies.

        Raises:
            KeyError: when one is not, or no longer, there.
        """
        rows: dict[str, tuple[list[int], list[int]]] = {}
        for position, entry in enumerate(entries):
            name, row = self._places[entry]
            positions, rows_of_shard = rows.setdefault(name, ([], []))
            positions.append(position)
            rows_of_shard.append(row)
        found = [(p, [t[r] for t in self._map(name)]) for name, (p, r) in rows.items()]
        return merge(len(entries), found)

    def seconds(self, entries: Sequence[Entry]) -> float:
        """Return how long it once took to compute entries that can be read."""
        return sum(self._seconds[self._places[entry][0]] for entry in entries)

    def add(self, entries: Sequence[Entry], tensors: Sequence[Tensor], seconds: float = 0) -> None:
        """Take the tensors (N, …) of N entries; they are written when there are enough of them.

        Args:
            entries: what they are.
            tensors: the tensors.
            seconds: how long it took to compute them all.
        """
        kept = tuple(tensor.cpu().contiguous() for tensor in tensors)
        self._waiting.append((entries, kept, seconds))
        if sum(t.nbytes for _, waiting, _ in self._waiting for t in waiting) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits into a shard of its own."""
        if not self._waiting:
            return
        entries = [entry for some, _, _ in self._waiting for entry in some]
        columns = zip(*(tensors for _, tensors, _ in self._waiting), strict=True)
        tensors = {f"{idx}": torch.cat(column) for idx, column in enumerate(columns)}
        seconds = sum(seconds for _, _, seconds in self._waiting)
        self._waiting.clear()
        name = f"{uuid.uuid4().hex}.safetensors"
        metadata = {
            "entries": json.dumps(entries),
            "description": self.description,
            "seconds": f"{seconds:.6f}",
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / name, lambda file: save_file(tensors, file, metadata))
        except (OSError, SafetensorError) as error:  # no reason for training to end
            logger.warning("%s cannot be written (%s); it will be computed again", name, error)
        self._store.evict()
        self.refresh()

    def _map(self, name: str) -> Tensors:
        """Return the tensors of a shard, memory-mapped."""
        if name not in self._mapped:
            if sum(t.nbytes for some in self._mapped.values() for t in some) >= MAPPED_BYTES:
                self._mapped.clear()
            try:
                os.utime(self._folder / name)  # used just now
                with safe_open(self._folder / name, framework="pt") as shard:
                    names = sorted(shard.keys(), key=int)
                    self._mapped[name] = tuple(shard.get_tensor(n) for n in names)
            except (OSError, SafetensorError) as error:  # evicted by another process
                self._forget(name)
                raise KeyError(name) from error
        return self._mapped[name]

    def _forget(self, name: str) -> None:
        self._indexed.discard(name)
        self._mapped.pop(name, None)
        self._places = {e: place for e, place in self._places.items() if place[0] != name}


def merge(length: int, parts: Sequence[tuple[Sequence[int], Sequence[Tensor]]]) -> Tensors:
    """Return tensors (length, …) from parts of their rows, each with the rows' positions."""
    if len(parts) == 1 and [*parts[0][0]] == [*range(length)]:
        return tuple(parts[0][1])
    positions = [position for rows, _ in parts for position in rows]
    columns = list(zip(*(tensors for _, tensors in parts), strict=True))
    device = columns[-1][-1].device
    joined = [torch.cat([tensor.to(device) for tensor in column]) for column in columns]
    order = torch.tensor(positions, device=device).argsort()
    return tuple(tensor[order] for tensor in joined)


class Cost(NamedTuple):
    """What it costs to keep an entry, and to use it once more."""

    bytes: int
    seconds: float

    def __str__(self) -> str:
        """Return both in units that fit the log."""
        return f"{self.bytes / 1e3:.0f} kB and {self.seconds * 1e3:.2f} ms an image"


def cheapest(costs: dict[str, Cost], entries: int, max_bytes: float) -> str:
    """Return the name of what costs the least time among what fits on the disk for all entries."""
    fitting = [name for name, cost in costs.items() if cost.bytes * entries <= max_bytes]
    return min(fitting, key=lambda name: costs[name].seconds)


class ActivationLoader:
    """Yields what crosses a phase's thaw line, batch after batch: read, or computed and kept.

    Files are decoded by other processes, ahead of the batches that need them. What is kept on disk
    (activations, decoded views or nothing) is chosen by `cheapest` when the first entry is missing;
    that decides about speed, never about what is yielded.

    Attributes:
        read: images whose activations, or views where nothing lies below the line, were on disk.
        computed: images for which they were computed.
        seconds_saved: how long it once took to compute all that was read.
    """

    def __init__(
        self,
        line: ThawLine,
        transforms: Transforms,
        loader: ViewLoader,
        store: ActivationStore,
        device: torch.device,
        dtype: torch.dtype,
        entries: int,
    ) -> None:
        """Take what the activations depend on and where they are kept.

        Args:
            line: the network of the phase, split.
            transforms: how files become views.
            loader: decodes them.
            store: keeps them, unless its bound is 0.
            device: what computes.
            dtype: what the part below the line computes in.
            entries: how many there will be in all, to choose what fits.
        """
        self._transforms, self._loader, self._store = transforms, loader, store
        self._device, self._dtype, self._entries = device, dtype, entries
        self._below = line.below
        if self._below is not None:
            self._below.to(device, dtype).to(memory_format=torch.channels_last)
        self._chunk = CHUNK if device.type == "cpu" else sys.maxsize  # less where memory is short
        self._bytes = 0  # an image's activations
        self._shelves = self._open_shelves(line) if store.max_bytes else {}
        self._keeping = None if store.max_bytes else NOTHING
        self.read = self.computed = 0
        self.seconds_saved = self._seconds_decoding = 0.0

    def load(self, batches: Sequence[Sequence[Image]], keep: bool = True) -> Iterator[Tensors]:
        """Yield for each batch the tensors (N, …) that cross the line, on the device.

        Args:
            batches: of images that are all for evaluation, or all random views.
            keep: whether to write what is new; not for views that are never seen again.

        Raises:
            DataError: when an image file cannot be read, or is no longer there.
        """
        for shelf in self._shelves.values():
            shelf.refresh()
        missing = [[i for i in images if not self._is_on_disk(i)] for images in batches]
        decoded = self._loader.load([[*map(self._view, images)] for images in missing if images])
        for images, undecoded in zip(batches, missing, strict=True):
            start = time.perf_counter()
            fresh = dict(zip(undecoded, next(decoded), strict=True)) if undecoded else {}
            self._seconds_decoding = time.perf_counter() - start
            ready = sum(map(self._is_ready, images))
            self.read += ready
            self.computed += len(images) - ready
            if keep and self._keeping is None and ready < len(images):
                self._keeping = self._choose(images)
            yield self._tensors(images, fresh, keep)
        for shelf in self._shelves.values():
            shelf.flush()

    def summary(self) -> str:
        """Return for the log how much was read from the store."""
        what = "views" if self._below is None else "activations"
        counts = f"{self.read} {what} were read, {self.computed} computed"
        return counts + f"; reading saved about {self.seconds_saved:.1f} s" * bool(self.read)

    def _tensors(self, images: Sequence[Image], fresh: dict[Image, Tensor], keep: bool) -> Tensors:
        """Return what crosses the line (N, …) for N images, of which some were decoded ahead."""

        def decode(some: Sequence[Image]) -> Tensors:
            dataset = ViewDataset(self._transforms)  # for what was evicted a moment ago
            return (
                torch.stack([fresh[i] if i in fresh else dataset[self._view(i)] for i in some]),
            )

        def compute(some: Sequence[Image]) -> Tensors:
            return self._run(*self._recall(VIEWS, some, decode, keep))

        tensors = (
            compute(images)
            if self._below is None
            else self._recall(ACTIVATIONS, images, compute, keep)
        )
        return tuple(_channels_last(tensor.to(self._device)) for tensor in tensors)

    def _recall(
        self,
        holds: str,
        images: Sequence[Image],
        compute: Callable[[Sequence[Image]], Tensors],
        keep: bool,
    ) -> Tensors:
        """Return the entries of images, from a shelf or else computed and put there."""
        shelf = self._shelves.get((holds, images[0].view is not None))
        if shelf is None:
            return compute(images)
        entries = [Entry(image.sha256, image.view) for image in images]
        there = [idx for idx, entry in enumerate(entries) if entry in shelf]
        absent = [idx for idx, entry in enumerate(entries) if entry not in shelf]
        parts: list[tuple[list[int], Tensors]] = []
        if there:
            try:
                parts.append((there, shelf.read([entries[idx] for idx in there])))
                self.seconds_saved += shelf.seconds([entries[idx] for idx in there])
            except KeyError:  # evicted by another process between the lines
                return self._recall(holds, images, compute, keep)
        if absent:
            start = time.perf_counter()
            parts.append((absent, compute([images[idx] for idx in absent])))
            if keep and self._keeping == holds:
                seconds = self._seconds_decoding + time.perf_counter() - start
                shelf.add([entries[idx] for idx in absent], parts[-1][1], seconds)
        return merge(len(images), parts)

    def _run(self, views: Tensor) -> Tensors:
        """Return what crosses the line (N, …) for views (N, 3, size, size) uint8."""
        if self._below is None:
            preprocessing = self._transforms.preprocessing
            return (normalise(views.to(self._device, non_blocking=True), preprocessing),)
        while True:
            chunk = min(self._chunk, len(views)) if self._device.type != "cpu" else self._chunk
            try:
                return self._run_in_chunks(views, chunk)
            except RuntimeError as error:
                if chunk == 1 or not should_reduce_batch_size(error):
                    raise
            self._chunk = chunk // 2
            clear_device_cache(garbage_collection=True)  # what did not fit is held until here
            logger.warning(
                "The device has no memory for %d images at once: what is frozen runs on %d",
                chunk,
                self._chunk,
            )

    def _run_in_chunks(self, views: Tensor, chunk: int) -> Tensors:
        """Return what crosses the line for views, of which so many are computed at once."""
        assert self._below is not None
        preprocessing, parts = self._transforms.preprocessing, []
        reduced = self._dtype != torch.float32
        # Inference mode's tensors could not be saved for the gradients above the line.
        with torch.no_grad(), torch.autocast(self._device.type, self._dtype, enabled=reduced):
            for some in views.split(chunk):
                full = torch.cat([some, some[:1].expand(chunk - len(some), -1, -1, -1)])
                images = normalise(full.to(self._device, non_blocking=True), preprocessing)
                tensors = self._below(images.to(self._dtype))
                parts.append([tensor[: len(some)] for tensor in tensors])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _choose(self, images: Sequence[Image]) -> str:
        """Return what to keep, as measured on some images, and say so in the log."""
        size = self._transforms.preprocessing.size
        if 0 < self._bytes <= 3 * size**2 and self._bytes * self._entries <= self._store.max_bytes:
            logger.info(
                "The store keeps activations (%.0f kB an image, no more than the view itself)",
                self._bytes / 1e3,
            )
            return ACTIVATIONS
        some = images[:MEASURED]
        dataset = ViewDataset(self._transforms)
        decoding, views = _timed(lambda: torch.stack([dataset[self._view(i)] for i in some]))
        self._run(views)  # a first pass is slower than any later one
        below, _ = _timed(lambda: self._run(views))
        try:
            rate = self._store.bytes_per_second()
        except OSError as error:  # no reason for training to end
            logger.warning("The store cannot be written (%s): nothing is kept", error)
            return NOTHING
        costs = {
            VIEWS: Cost(views[0].nbytes, views[0].nbytes / rate + below / len(some)),
            NOTHING: Cost(0, (decoding + below) / len(some)),
        }
        if self._bytes:
            costs[ACTIVATIONS] = Cost(self._bytes, self._bytes / rate)
        chosen = cheapest(costs, self._entries, self._store.max_bytes)
        rest = ", ".join(f"{name} {cost}" for name, cost in costs.items() if name != chosen)
        logger.info("The store keeps %s (%s; %s)", chosen, costs[chosen], rest)
        return chosen

    def _view(self, image: Image) -> View:
        """Return what to decode."""
        if image.view is None:
            return View(image.path)
        return View(image.path, view_seed(image, self._transforms))

    def _is_on_disk(self, image: Image) -> bool:
        return self._has(ACTIVATIONS, image) or self._has(VIEWS, image)

    def _is_ready(self, image: Image) -> bool:
        return self._has(VIEWS if self._below is None else ACTIVATIONS, image)

    def _has(self, holds: str, image: Image) -> bool:
        shelf = self._shelves.get((holds, image.view is not None))
        return shelf is not None and Entry(image.sha256, image.view) in shelf

    def _open_shelves(self, line: ThawLine) -> dict[tuple[str, bool], Shelf]:
        """Return a shelf of views and one of activations, for random views and for evaluation."""
        preprocessing, options, seed = self._transforms
        fingerprint = self._fingerprint()
        shelves = {}
        for random in (True, False):
            kind = "random views" if random else "evaluation views"
            description: dict[str, Any] = {
                "holds": kind,
                "preprocessing": preprocessing.model_dump(mode="json"),
                "packages": {name: version(name) for name in ("torch", "torchvision", "pillow")},
            }
            if random:
                description |= {"augmentation": options.model_dump(mode="json"), "seed": seed}
            shelves[VIEWS, random] = self._store.shelf(description)
            if self._below is not None:
                network = type(line.above_in_training).__name__
                description["holds"] = f"{network} up to {', '.join(line.crossing)}, {kind}"
                description["below"] = fingerprint
                shelves[ACTIVATIONS, random] = self._store.shelf(description)
        return shelves

    def _fingerprint(self) -> dict[str, str]:
        """Return what tells the part below the line from any other.

        What it answers to noise is in it, since even the code of its modules shows there.
        """
        if self._below is None:
            return {}
        size = self._transforms.preprocessing.size
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
        answer = {str(idx): tensor for idx, tensor in enumerate(self._run(noise))}
        self._bytes = sum(tensor[0].nbytes for tensor in answer.values())
        modules = {name: repr(module) for name, module in self._below.named_modules() if name}
        return {
            "weights": hash_tensors(self._below.state_dict()),
            "structure": hashlib.sha256(f"{self._below.code}{modules}".encode()).hexdigest(),
            "precision": str(self._dtype),
            "answer": hash_tensors(answer),
        }


def view_seed(image: Image, transforms: Transforms) -> int:
    """Return the seed of a random view; it depends on image, number and seed, and nothing else."""
    digest = hashlib.sha256(f"{transforms.seed} {image.sha256} {image.view}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor  # noqa: PLR2004


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a function takes, work that it leaves to a device included."""
    start = time.perf_counter()
    result = function()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start, result
