"""Catalog entries that a node works with while it runs."""

from __future__ import annotations

from typing import TypeVar

from kedro.io import AbstractDataset, DatasetError

Tool = TypeVar("Tool")


class ResourceDataset(AbstractDataset[None, Tool]):
    """Loads something to call or to ask; whatever is written, is written through that."""

    def save(self, data: None) -> None:
        """Refuse: what a node returns is never saved here.

        Raises:
            DatasetError: always.
        """
        raise DatasetError(f"{type(self).__name__} is used by nodes as an input only.")
