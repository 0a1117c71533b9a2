"""Load what crosses a thaw line: read it from the cache, or decode and run the frozen part."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, compress, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thawline.data.loading import ImageView, ViewLoader, decode
from thawline.data.transforms import Transforms
from thawline.thaw.cache import ActivationCache, Cost, describe_entries, fastest_that_fits
from thawline.thaw.device import Accelerator
from thawline.thaw.frozen_part import FrozenPart
from thawline.thaw.line import ThawLine
from thawline.thaw.partition import CachePartition, Tensors

logger = logging.getLogger(__name__)

MAX_READ_BYTES = 1_000_000  # of activations, per read that serves several batches
NUM_TIMED_IMAGES = 8  # that the choice of what to cache is based on
ACTIVATIONS, VIEWS, NOTHING = "activations", "views", "nothing"  # what may be cached


@dataclass
class Request:
    """Batches of images that are loaded together."""

    images: list[ImageView]
    keys: list[bytes]
    sizes: list[int]  # of the batches
    to_decode: dict[bytes, ImageView]  # ahead, by key
    is_cached: bool  # the activations of all images
    keep: bool  # what is new
    decoded: Tensor = field(default_factory=lambda: torch.empty(0))  # views of `to_decode`, uint8


class FeatureLoader:
    """Loads what crosses a phase's thaw line, batch after batch.

    Other processes decode files, ahead of the batches that need them. On the first cache miss, the
    loader times what could be cached (activations, decoded views or nothing), and chooses the
    fastest that fits. The choice affects speed only.

    Attributes:
        read: number of images whose activations (views, if nothing lies below the line) were read.
        computed: number of images for which they were computed.
    """

    def __init__(
        self,
        line: ThawLine,
        transforms: Transforms,
        loader: ViewLoader,
        store: ActivationCache,
        accelerator: Accelerator,
        entries: int,
    ) -> None:
        """Open the partitions of the cache that belong to a line, if the cache has any room.

        `entries` is how many there will be, to choose what fits.
        """
        self._transforms, self._loader, self._store = transforms, loader, store
        self._frozen = FrozenPart(line, transforms.preprocessing, accelerator)
        self._device, self._entries = accelerator.device, entries
        self._bytes = 0  # of activations per image
        self._choice = None if store.max_bytes else NOTHING  # what is cached
        self._partitions: dict[tuple[str, bool], CachePartition] = {}
        # What may be cached, each of which follows from the next one, the last from a file.
        self._levels = (VIEWS,) if self._frozen.is_empty else (ACTIVATIONS, VIEWS)
        self.read = self.computed = 0
        computed_with: dict[str, tuple[Any, ...]] = {ACTIVATIONS: ("not cached",)}
        if store.max_bytes and not self._frozen.is_empty:
            network = f"{type(line.above_train).__name__} up to {', '.join(line.boundary)}"
            fingerprint, self._bytes = self._frozen.fingerprint()
            computed_with[ACTIVATIONS] = network, fingerprint
        for holds, random in product(self._levels, (True, False)):
            description = describe_entries(transforms, random, *computed_with.get(holds, ()))
            partition = store.partition(description, self._device.type == "cuda")
            self._partitions[holds, random] = partition

    def load(self, batches: Sequence[Sequence[ImageView]], keep: bool = True) -> Iterator[Tensors]:
        """Yield for each batch the tensors (N, …) that cross the line, on the device.

        Args:
            batches: of images that are all for evaluation, or all random views.
            keep: cache what is new; not for views that will not be seen again.

        Raises:
            DataError: when an image file cannot be read.
        """
        for partition in self._partitions.values():
            partition.refresh()
        requests = self._plan(batches, keep) if batches else []
        views = self._loader.load([[*r.to_decode.values()] for r in requests if r.to_decode])
        for request in requests:
            # The views of a copy are freed with it; `requests` would keep those of all.
            current = replace(request, decoded=next(views)) if request.to_decode else request
            tensors = self._load_request(current)
            if len(request.sizes) == 1:
                yield tensors
                continue
            for batch in zip(*(tensor.split(request.sizes) for tensor in tensors), strict=True):
                yield tuple(tensor.clone() for tensor in batch)  # which may be modified in place
        for partition in self._partitions.values():
            partition.flush()

    def summary(self) -> str:
        """Return for the log how much was read from the cache."""
        return f"{self.read} {self._levels[0]} were read, {self.computed} computed"

    def partition(self, holds: str, images: Sequence[ImageView]) -> CachePartition:
        """Return the partition for the activations or views of images."""
        return self._partitions[holds, images[0].view is not None]

    def _plan(self, batches: Sequence[Sequence[ImageView]], keep: bool) -> list[Request]:
        """Group batches into requests; choose what to cache before anything is decoded.

        Successive batches whose activations are all cached are read together. An image that will be
        cached is decoded once, however often it comes.
        """
        images = [*chain.from_iterable(batches)]
        keys = [image.key for image in images]
        is_there = [self.partition(holds, images).contains(keys) for holds in self._levels]
        if keep and self._choice is None and not is_there[0].all():
            self._choice = self._choose([*compress(images, ~is_there[0])][:NUM_TIMED_IMAGES])
        undecoded = ~np.any(is_there, axis=0)
        max_images = MAX_READ_BYTES // self._bytes if self._bytes else 0
        requests: list[Request] = []
        coming: set[bytes] = set()
        end = 0
        for batch in batches:
            start, end = end, end + len(batch)
            absent = (start + np.flatnonzero(undecoded[start:end])).tolist()
            to_decode = {keys[idx]: images[idx] for idx in absent if keys[idx] not in coming}
            if keep and self._choice != NOTHING:
                coming.update(to_decode)
            is_cached = bool(is_there[0][start:end].all())
            last = requests[-1] if requests and requests[-1].is_cached and is_cached else None
            if last and len(last.images) + len(batch) <= max_images:
                last.images += batch
                last.keys += keys[start:end]
                last.sizes.append(len(batch))
            else:
                columns = [*batch], keys[start:end], [len(batch)]
                requests.append(Request(*columns, to_decode, is_cached, keep))
        return requests

    def _load_request(self, request: Request) -> Tensors:
        """Return the tensors (N, …) that cross the line for the N images of a request."""
        images = dict(zip(request.keys, request.images, strict=True))  # one may be drawn twice
        tensors = self._recall(self._levels, images, request)
        if self._frozen.is_empty:
            tensors = self._frozen(*tensors)
        if len(images) < len(request.keys):
            self.read += len(request.keys) - len(images)
            rows = {key: row for row, key in enumerate(images)}
            order = torch.tensor([rows[key] for key in request.keys])
            tensors = tuple(tensor[order.to(tensor.device)] for tensor in tensors)
        return tuple(_channels_last(t.to(self._device, non_blocking=True)) for t in tensors)

    def _recall(
        self, levels: Sequence[str], images: dict[bytes, ImageView], request: Request
    ) -> Tensors:
        """Return the entries of the first level: read from the cache, or computed from the next."""
        if not levels:
            return self._decode(images, request)
        partition = self.partition(levels[0], request.images)
        is_known, known = partition.read([*images])
        absent = dict(compress(images.items(), (~is_known).tolist()))
        if levels == self._levels:
            self.read += len(images) - len(absent)
            self.computed += len(absent)
        if not absent:
            return known
        computed = self._recall(levels[1:], absent, request)
        if levels[0] == ACTIVATIONS:
            computed = self._frozen(*computed)
        if request.keep and self._choice == levels[0]:
            partition.add([*absent], computed)
        return merge(is_known, known, computed)

    def _decode(self, images: dict[bytes, ImageView], request: Request) -> Tensors:
        """Return views (N, 3, size, size), nearly always those that were decoded ahead."""
        if [*images] == [*request.to_decode]:
            return (request.decoded,)
        views = dict(zip(request.to_decode, request.decoded, strict=True))
        for key in images.keys() - views.keys():  # evicted since
            (views[key],) = decode(self._transforms, [images[key]])
        return (torch.stack([views[key] for key in images]),)

    def _choose(self, some: list[ImageView]) -> str:
        """Return what to cache, as timed on some images, and log it."""
        size, limit = self._transforms.preprocessing.size, self._store.max_bytes
        if 0 < self._bytes <= 3 * size**2 and self._bytes * self._entries <= limit:
            said = "Caching activations (%.0f kB per image, no more than its decoded view)"
            logger.debug(said, self._bytes / 1e3)
            return ACTIVATIONS
        start = time.perf_counter()
        views = decode(self._transforms, some)
        decoding = (time.perf_counter() - start) / len(some)
        below = self._frozen.seconds(views) / len(some)
        try:
            rate = self._store.bytes_per_second()
        except OSError as error:  # training continues without a cache
            logger.warning("Cannot write the activation cache (%s): caching is off", error)
            return NOTHING
        costs = {
            VIEWS: Cost(views[0].nbytes, views[0].nbytes / rate + below),
            NOTHING: Cost(0, decoding + below),
        }
        if self._bytes:
            costs[ACTIVATIONS] = Cost(self._bytes, self._bytes / rate)
        chosen = fastest_that_fits(costs, self._entries, limit)
        rest = ", ".join(f"{name} {cost}" for name, cost in costs.items() if name != chosen)
        logger.debug("Caching %s (%s; %s)", chosen, costs[chosen], rest)
        return chosen


def merge(is_known: np.ndarray, known: Tensors, computed: Tensors) -> Tensors:
    """Return tensors (N, …) from those of the known rows, bool (N,), and of the others."""
    if is_known.all() or not is_known.any():
        return known if is_known.any() else computed
    mask, merged = torch.from_numpy(is_known), []
    for old, new in zip(known, computed, strict=True):
        whole = new.new_empty((len(mask), *new.shape[1:]))
        whole[mask.to(new.device)] = old.to(new.device)
        whole[~mask.to(new.device)] = new
        merged.append(whole)
    return tuple(merged)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor  # noqa: PLR2004
