"""Load what crosses a thaw line: read it from the cache, or decode images and compute it."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import accumulate, chain, islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from thawline.data.decoding import codec_versions
from thawline.data.loading import ViewLoader, ViewRequest, decode
from thawline.data.transforms import DECODING_VERSION, Transforms, normalize
from thawline.thaw.cache import ActivationCache, CachePartition, Tensors
from thawline.thaw.freezing import hash_tensors
from thawline.thaw.image_set import ImageView, view_seed
from thawline.thaw.line import ThawLine

logger = logging.getLogger(__name__)

# Images that a CPU computes at once. With 8 instead of 32 the activations stay in its caches (370
# instead of 230 images/s through EfficientNet-Lite0, 70 instead of 54 through ResNet-50); and with
# always as many, results do not depend on which images happen to be missing from the store.
CPU_CHUNK_SIZE = 8
MAX_READ_BYTES = 1_000_000  # of activations, per read that serves several batches
MEASURED = 8  # images that tell what an entry costs
ACTIVATIONS, VIEWS, NOTHING = "activations", "views", "nothing"


class Decoded(NamedTuple):
    """Views that were decoded ahead of the batch that needs them.

    Attributes:
        rows: of each view in `views`, by the image's key.
        views: (N, 3, size, size) uint8, in page-locked memory where a GPU computes.
    """

    rows: dict[bytes, int]
    views: Tensor


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


def fastest_that_fits(costs: dict[str, Cost], entries: int, max_bytes: float) -> str:
    """Return the name of what costs the least time among what fits on the disk for all entries."""
    fitting = [name for name, cost in costs.items() if cost.bytes * entries <= max_bytes]
    return min(fitting, key=lambda name: costs[name].seconds)


class FeatureLoader:
    """Yields what crosses a phase's thaw line, batch after batch: read, or computed and kept.

    Files are decoded by other processes, ahead of the batches that need them. What is kept on disk
    (activations, decoded views or nothing) is chosen by `cheapest` when the first entry is missing;
    that decides about speed, never about what is yielded.

    Attributes:
        read: images whose activations, or views where nothing lies below the line, were cached.
        computed: images for which they were computed.
    """

    def __init__(
        self,
        line: ThawLine,
        transforms: Transforms,
        loader: ViewLoader,
        store: ActivationCache,
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
        self._chunk = (
            CPU_CHUNK_SIZE if device.type == "cpu" else sys.maxsize
        )  # less where memory is short
        self._bytes = 0  # an image's activations
        self._partitions = self._open_partitions(line) if store.max_bytes else {}
        self._keeping = None if store.max_bytes else NOTHING
        self.read = self.computed = 0
        self._seconds_decoding = 0.0

    @property
    def seconds_saved(self) -> float:
        """How long it once took to compute all that was read."""
        return sum(partition.seconds_saved for partition in self._partitions.values())

    def load(self, batches: Sequence[Sequence[ImageView]], keep: bool = True) -> Iterator[Tensors]:
        """Yield for each batch the tensors (N, …) that cross the line, on the device.

        Args:
            batches: of images that are all for evaluation, or all random views.
            keep: whether to write what is new; not for views that are never seen again.

        Raises:
            DataError: when an image file cannot be read, or is no longer there.
        """
        partitions = [*self._partitions.values()]
        for partition in partitions:
            partition.refresh()
        keys = [[image.key for image in images] for images in batches]
        planned = self._plan(batches, keys, keep)
        ahead = self._loader.load(
            [[*map(self._view, some.values())] for some, _ in planned if some]
        )
        for first, last in self._read_at_once(batches, planned):
            start = time.perf_counter()
            some, _ = planned[first]
            rows = {key: row for row, key in enumerate(some)}
            decoded = Decoded(rows, next(ahead) if some else torch.empty(0))
            self._seconds_decoding = time.perf_counter() - start
            together = [*chain.from_iterable(batches[first:last])]
            their_keys = [*chain.from_iterable(keys[first:last])]
            tensors = self._tensors(together, their_keys, decoded, keep)
            if last - first == 1:
                yield tensors
                continue
            ends = [*accumulate(map(len, batches[first:last]), initial=0)]
            for begin, end in pairwise(ends):  # clones keep in-place writes within a batch
                yield tuple(tensor[begin:end].clone() for tensor in tensors)
        for partition in partitions:
            partition.close()

    def summary(self) -> str:
        """Return for the log how much was read from the store."""
        what = "views" if self._below is None else "activations"
        counts = f"{self.read} {what} were read, {self.computed} computed"
        return counts + f"; reading saved about {self.seconds_saved:.1f} s" * bool(self.read)

    def _plan(
        self, batches: Sequence[Sequence[ImageView]], keys: Sequence[Sequence[bytes]], keep: bool
    ) -> list[tuple[dict[bytes, ImageView], bool]]:
        """Return for each batch the images to decode ahead, by key, and whether all is stored.

        An image that is cached is decoded once, however often it comes. What to cache is chosen
        here, before the first is decoded.
        """
        flat, flat_keys = [*chain.from_iterable(batches)], [*chain.from_iterable(keys)]
        activations, views = (self._contains(h, flat, flat_keys) for h in (ACTIVATIONS, VIEWS))
        missing = np.flatnonzero(~(views if self._below is None else activations)).tolist()
        if keep and self._keeping is None and missing:
            self._keeping = self._choose([flat[idx] for idx in missing[:MEASURED]])
        is_kept = keep and self._keeping != NOTHING
        is_there, is_stored = (iter(a.tolist()) for a in (activations | views, activations))
        coming: set[bytes] = set()
        planned = []
        for images, batch_keys in zip(batches, keys, strict=True):
            some = {
                key: image
                for key, image in zip(batch_keys, images, strict=True)
                if not next(is_there) and key not in coming
            }
            if is_kept:
                coming.update(some)
            planned.append((some, all([*islice(is_stored, len(images))])))
        return planned

    def _read_at_once(
        self,
        batches: Sequence[Sequence[ImageView]],
        planned: Sequence[tuple[dict[bytes, ImageView], bool]],
    ) -> Iterator[tuple[int, int]]:
        """Yield ranges of batches to load together: several if all their activations are stored."""
        most = MAX_READ_BYTES // max(self._bytes, 1)  # images
        first = count = 0
        for number, (images, (_, is_stored)) in enumerate(zip(batches, planned, strict=True)):
            count += len(images)
            if number > first and not (is_stored and planned[first][1] and count <= most):
                yield first, number
                first, count = number, len(images)
        if batches:
            yield first, len(batches)

    def _tensors(
        self, images: Sequence[ImageView], keys: Sequence[bytes], decoded: Decoded, keep: bool
    ) -> Tensors:
        """Return what crosses the line (N, …) for N images, on the device."""
        unique = dict(zip(keys, images, strict=True))  # an image may be drawn twice
        tensors = self._load_unique([*unique.values()], [*unique], decoded, keep)
        if len(unique) < len(keys):
            self.read += len(keys) - len(unique)
            rows = {key: row for row, key in enumerate(unique)}
            order = torch.tensor([rows[key] for key in keys])
            tensors = tuple(tensor[order.to(tensor.device)] for tensor in tensors)
        return tuple(
            _channels_last(tensor.to(self._device, non_blocking=True)) for tensor in tensors
        )

    def _load_unique(
        self, images: Sequence[ImageView], keys: Sequence[bytes], decoded: Decoded, keep: bool
    ) -> Tensors:
        """Return what crosses the line (N, …) for N different images."""

        def take_decoded(images: Sequence[ImageView], keys: Sequence[bytes]) -> Tensors:
            rows = decoded.rows
            if [*keys] == [*rows]:
                return (decoded.views,)
            evicted = {k: self._view(i) for k, i in zip(keys, images, strict=True) if k not in rows}
            again = decode(self._transforms, [*evicted.values()]) if evicted else ()
            known = dict(zip(evicted, again, strict=True))
            return (torch.stack([decoded.views[rows[k]] if k in rows else known[k] for k in keys]),)

        def compute(images: Sequence[ImageView], keys: Sequence[bytes]) -> Tensors:
            return self._run(*self._recall(VIEWS, images, keys, take_decoded, keep))

        if self._below is None:
            return compute(images, keys)
        return self._recall(ACTIVATIONS, images, keys, compute, keep)

    def _recall(
        self,
        holds: str,
        images: Sequence[ImageView],
        keys: Sequence[bytes],
        compute: Callable[[Sequence[ImageView], Sequence[bytes]], Tensors],
        keep: bool,
    ) -> Tensors:
        """Return the entries of images, from the cache or else computed and put there."""
        partition = self.partition(holds, images)
        if partition is None:
            self._count(holds, 0, len(keys))
            return compute(images, keys)
        with suppress(KeyError):  # as nearly always after the first epoch
            tensors = partition.read(keys)
            self._count(holds, len(keys), 0)
            return tensors
        there = partition.contains(keys)
        known, absent = (np.flatnonzero(rows).tolist() for rows in (there, ~there))
        start = time.perf_counter()
        absent_keys = [keys[idx] for idx in absent]
        computed = compute([images[idx] for idx in absent], absent_keys)
        parts: list[tuple[list[int], Tensors]] = [(absent, computed)]
        if known:
            try:
                parts.append((known, partition.read([keys[idx] for idx in known])))
            except KeyError:  # evicted by another process between the lines
                return self._recall(holds, images, keys, compute, keep)
        self._count(holds, len(known), len(absent))
        if keep and self._keeping == holds:
            seconds = self._seconds_decoding + time.perf_counter() - start
            partition.add(absent_keys, computed, seconds)
        return merge(len(images), parts)

    def _count(self, holds: str, read: int, computed: int) -> None:
        """Count what crosses the line; where activations do, views are on the way to it."""
        if holds == (VIEWS if self._below is None else ACTIVATIONS):
            self.read += read
            self.computed += computed

    def _run(self, views: Tensor) -> Tensors:
        """Return what crosses the line (N, …) for views (N, 3, size, size) uint8."""
        if self._below is None:
            preprocessing = self._transforms.preprocessing
            return (normalize(views.to(self._device, non_blocking=True), preprocessing),)
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
                full = some
                if len(some) < chunk:  # not always: a copy would leave page-locked memory
                    full = torch.cat([some, some[:1].expand(chunk - len(some), -1, -1, -1)])
                images = normalize(full.to(self._device, non_blocking=True), preprocessing)
                tensors = self._below(images.to(self._dtype))
                parts.append([tensor[: len(some)] for tensor in tensors])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _choose(self, some: Sequence[ImageView]) -> str:
        """Return what to keep, as measured on some images, and say so in the log."""
        size = self._transforms.preprocessing.size
        if 0 < self._bytes <= 3 * size**2 and self._bytes * self._entries <= self._store.max_bytes:
            logger.info(
                "The store keeps activations (%.0f kB an image, no more than the view itself)",
                self._bytes / 1e3,
            )
            return ACTIVATIONS
        decoding, views = _timed(lambda: decode(self._transforms, [*map(self._view, some)]))
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
        chosen = fastest_that_fits(costs, self._entries, self._store.max_bytes)
        rest = ", ".join(f"{name} {cost}" for name, cost in costs.items() if name != chosen)
        logger.info("The store keeps %s (%s; %s)", chosen, costs[chosen], rest)
        return chosen

    def _view(self, image: ImageView) -> ViewRequest:
        """Return what to decode."""
        if image.view is None:
            return ViewRequest(image.path)
        return ViewRequest(image.path, view_seed(image, self._transforms))

    def _contains(
        self, holds: str, images: Sequence[ImageView], keys: Sequence[bytes]
    ) -> np.ndarray:
        partition = self.partition(holds, images)
        return np.zeros(len(keys), bool) if partition is None else partition.contains(keys)

    def partition(self, holds: str, images: Sequence[ImageView]) -> CachePartition | None:
        """Return the partition of views or activations that images belong to, if there is one."""
        return self._partitions.get((holds, images[0].view is not None)) if images else None

    def _open_partitions(self, line: ThawLine) -> dict[tuple[str, bool], CachePartition]:
        """Open one of views and one of activations, for random views and for evaluation."""
        preprocessing, options, seed = self._transforms
        fingerprint = self._fingerprint()
        pin_memory = self._device.type == "cuda"
        partitions = {}
        for random in (True, False):
            kind = "random views" if random else "evaluation views"
            description: dict[str, Any] = {
                "holds": kind,
                "preprocessing": preprocessing.model_dump(mode="json"),
                "packages": {name: version(name) for name in ("torch", "torchvision", "pillow")},
                "decoding": DECODING_VERSION,
                "codecs": codec_versions(),
            }
            if random:
                description |= {"augmentation": options.model_dump(mode="json"), "seed": seed}
            partitions[VIEWS, random] = self._store.partition(description, pin_memory)
            if self._below is not None:
                network = type(line.above_train).__name__
                description["holds"] = f"{network} up to {', '.join(line.boundary)}, {kind}"
                description["below"] = fingerprint
                partitions[ACTIVATIONS, random] = self._store.partition(description, pin_memory)
        return partitions

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


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor  # noqa: PLR2004


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a function takes, work that it leaves to a device included."""
    start = time.perf_counter()
    result = function()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start, result
