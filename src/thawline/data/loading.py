"""Name views of images, and decode them in parallel processes, in order."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import joblib
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thawline.data.decoding import ImageError, became_unreadable, hash_files
from thawline.data.transforms import Transforms, evaluation_view, training_view

MAX_WORKERS = 32


class ImageView(NamedTuple):
    """A view of an image file: the nth random one, or if `view` is None that for evaluation."""

    path: str
    sha256: str  # of the file, 64 hexadecimal digits
    view: int | None = None

    @property
    def key(self) -> bytes:
        """Key of its entries in the cache: 12 bytes of the hash, 4 of the view's number."""
        number = 0 if self.view is None else self.view + 1
        return bytes.fromhex(self.sha256[-24:]) + number.to_bytes(4, "little")

    def seed(self, transforms: Transforms) -> int:
        """Return the seed of a random view: a hash of image, number and `transforms.seed`."""
        digest = hashlib.sha256(f"{transforms.seed} {self.sha256} {self.view}".encode()).digest()
        return int.from_bytes(digest[:7], "big")


def evaluation_images(paths: Sequence[str]) -> list[ImageView]:
    """Return the evaluation view of each image file.

    Raises:
        DataError: if a file cannot be read.
    """
    return [ImageView(*pair) for pair in zip(paths, hash_files(paths), strict=True)]


@dataclass
class ViewDataset(Dataset[Tensor]):
    """Views (3, size, size) uint8, indexed by an `ImageView`."""

    transforms: Transforms

    def __getitem__(self, image: ImageView) -> Tensor:
        """Decode a view."""
        if image.view is None:
            return evaluation_view(image.path, self.transforms.preprocessing)
        return training_view(image.path, self.transforms, image.seed(self.transforms))


class ViewLoader:
    """Decodes batches of views ahead of time, in worker processes that live as long as it does."""

    def __init__(
        self, transforms: Transforms, workers: int | None, pin_memory: bool = False
    ) -> None:
        """Prepare loading; worker processes start with the first batch.

        `workers` 0 decodes in this process; None starts one per core that it may use, at most
        `MAX_WORKERS`. `pin_memory` locks batches in memory, for copies to a GPU.
        """
        self._requested: list[list[ImageView]] = []
        # joblib respects CPU affinity and a container's limits.
        workers = min(joblib.cpu_count(), MAX_WORKERS) if workers is None else workers
        self._loader = DataLoader(
            ViewDataset(transforms),
            batch_sampler=self._requested,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_lower_priority,
            generator=torch.Generator(),  # the default would draw from training's random numbers
            pin_memory=pin_memory,
        )

    def load(self, batches: Sequence[list[ImageView]]) -> Iterator[Tensor]:
        """Yield each batch as (N, 3, size, size) uint8, in order.

        Raises:
            DataError: if a file cannot be decoded.
        """
        self._requested[:] = batches
        views = iter(self._loader) if batches else iter(())  # starts decoding
        return _name_unreadable(views, batches, self._loader.dataset)


def decode(transforms: Transforms, images: list[ImageView]) -> Tensor:
    """Return views (N, 3, size, size) uint8, decoded in this process.

    Raises:
        DataError: if a file cannot be decoded.
    """
    return next(ViewLoader(transforms, workers=0).load([images]))


def _name_unreadable(
    views: Iterator[Tensor], batches: Sequence[list[ImageView]], dataset: Dataset[Tensor]
) -> Iterator[Tensor]:
    """Yield the views of each batch; an error of a worker names the file only in a traceback."""
    for batch in batches:
        try:
            yield next(views)
        except ImageError:
            for image in batch:
                try:
                    dataset[image]
                except ImageError as error:
                    raise became_unreadable(image.path, error.problem) from error
            raise


def _lower_priority(_: int) -> None:
    """Leave the processor to the network; on 2 cores this makes a first epoch 15 % faster.

    Beside two busy programs, decoding the digits takes 28 s. With 19 it takes 250 s.
    """
    if hasattr(os, "nice"):
        os.nice(5)
