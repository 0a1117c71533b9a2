"""Decode images in parallel processes, in the order in which they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import joblib
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thawline.data.sources import describe_problem, read_image
from thawline.data.transforms import Transforms, evaluation_view, training_view
from thawline.errors import DataError

MAX_WORKERS = 32


class View(NamedTuple):
    """Which view of which file: a random one where there is a seed."""

    path: str
    seed: int | None = None


class ViewDataset(Dataset[Tensor]):
    """Views (3, size, size) uint8, indexed by a `View`."""

    def __init__(self, transforms: Transforms) -> None:
        """Keep how a file becomes a view."""
        self.transforms = transforms

    def __getitem__(self, view: View) -> Tensor:
        """Return a view, freshly decoded."""
        if view.seed is None:
            return evaluation_view(view.path, self.transforms.preprocessing)
        return training_view(view.path, self.transforms, view.seed)


class ViewLoader:
    """Batches of views, decoded ahead of time by worker processes that live as long as it does."""

    def __init__(
        self, transforms: Transforms, workers: int | None, pin_memory: bool = False
    ) -> None:
        """Start no process yet.

        Args:
            transforms: how files become views.
            workers: processes; 0 decodes in this one, None takes one per core that this process
                may use, at most `MAX_WORKERS`.
            pin_memory: whether batches lie in page-locked memory, to be copied to a GPU.
        """
        self._asked: list[list[View]] = []
        # joblib's count knows of affinity and of a container's limits.
        workers = min(joblib.cpu_count(), MAX_WORKERS) if workers is None else workers
        self._loader = DataLoader(
            ViewDataset(transforms),
            batch_sampler=self._asked,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_give_way,
            generator=torch.Generator(),  # else each start draws from the randomness of training
            pin_memory=pin_memory,
        )

    def load(self, batches: Sequence[list[View]]) -> Iterator[Tensor]:
        """Yield each batch as (N, 3, size, size) uint8, in order.

        Raises:
            DataError: when a file cannot be read, or is no longer there.
        """
        self._asked[:] = batches
        return _explained(iter(self._loader), batches) if batches else iter(())


def decode(transforms: Transforms, views: list[View]) -> Tensor:
    """Return views (N, 3, size, size) uint8, decoded in this process.

    Raises:
        DataError: as `ViewLoader.load` does.
    """
    return next(ViewLoader(transforms, workers=0).load([views]))


def unreadable(path: str, problem: object) -> DataError:
    """Return the error of an image file that was there when the run began."""
    return DataError(
        f"{path}: this image was there when the run began, and can no longer be read ({problem})."
        " Put it back and repeat the command with training.resume=true to go on, or start without"
        " it from the beginning."
    )


def _explained(views: Iterator[Tensor], batches: Sequence[list[View]]) -> Iterator[Tensor]:
    """Yield what there is for each batch; name the file where one cannot be read.

    An error of another process comes as a text with its traceback, so the file is tried again.
    """
    for batch in batches:
        try:
            yield next(views)
        except Exception:  # a damaged file can make a decoder raise anything
            for view in batch:
                _check_readable(view.path)
            raise


def _check_readable(path: str) -> None:
    try:
        read_image(path)
    except Exception as error:
        raise unreadable(path, describe_problem(error, path)) from error


def _give_way(_: int) -> None:
    """Leave the processor to the network, whose threads wait for the slowest among them.

    On two cores a first epoch takes 15 % less time so.
    """
    if hasattr(os, "nice"):
        os.nice(19)
