"""Decode images in parallel processes, in the order in which they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thawline.images import describe_problem
from thawline.transforms import Transforms, evaluation_view, training_view

MOST_WORKERS = 8


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


class CheckedViewDataset(Dataset[tuple[Tensor, str]]):
    """Views, each with what is wrong with its file; where something is, the view is black."""

    def __init__(self, transforms: Transforms) -> None:
        """Keep how a file becomes a view."""
        self._views = ViewDataset(transforms)
        self._side = transforms.preprocessing.size

    def __getitem__(self, view: View) -> tuple[Tensor, str]:
        """Return a view and an empty text, or a black view and the problem."""
        try:
            return self._views[view], ""
        except Exception as error:  # a damaged file can make a decoder raise anything
            black = torch.zeros(3, self._side, self._side, dtype=torch.uint8)
            return black, describe_problem(error, view.path)


class ViewLoader:
    """Batches of views, decoded ahead of time by worker processes that live as long as it does."""

    def __init__(self, transforms: Transforms, workers: int | None, checked: bool = False) -> None:
        """Take the number of processes: 0 decodes in this one, None takes one a core.

        Where `checked`, a file that cannot be read is told of beside its batch (views, problems),
        and raises nothing.
        """
        self._asked: list[list[View]] = []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(cores or 1, MOST_WORKERS) if workers is None else workers
        dataset: Dataset[Any] = (CheckedViewDataset if checked else ViewDataset)(transforms)
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._asked,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_give_way,
            generator=torch.Generator(),  # else each start draws from the randomness of training
            pin_memory=torch.cuda.is_available(),
        )

    def load(self, batches: Sequence[list[View]]) -> Iterator[Any]:
        """Yield each batch as (N, 3, size, size) uint8, in order; with its problems if checked.

        Raises:
            OSError: when a file cannot be read.
        """
        self._asked[:] = batches
        return iter(self._loader) if batches else iter(())


def _give_way(_: int) -> None:
    """Leave the processor to the network, whose threads wait for the slowest among them.

    On two cores a first epoch takes 15 % less time so.
    """
    if hasattr(os, "nice"):
        os.nice(19)
