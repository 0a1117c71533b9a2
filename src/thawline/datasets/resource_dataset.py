"""Catalog entries that a node works with while it runs."""

from pathlib import Path
from typing import Any, TypeVar

from kedro.io import AbstractDataset, DatasetError

Resource = TypeVar("Resource")


class ResourceDataset(AbstractDataset[None, Resource]):
    """Loads an object through which a node reads and writes while it runs."""

    def __init__(self, metadata: dict[str, Any] | None = None) -> None:
        """Keep the metadata of the entry."""
        self.metadata = metadata

    def save(self, data: None) -> None:
        """Refuse: the catalog saves nothing here.

        Raises:
            DatasetError: always.
        """
        raise DatasetError(f"{type(self).__name__} is used by nodes as an input only.")

    def _describe(self) -> dict[str, Any]:
        return {}


class PathDataset(ResourceDataset[Path]):
    """Loads an absolute path, which need not exist.

    So the catalog decides where caches lie, and what a relative path of a parameter is relative to.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Take the path, which Kedro makes absolute."""
        super().__init__(metadata)
        self._filepath = Path(filepath)

    def load(self) -> Path:
        """Return the path."""
        return self._filepath

    def _exists(self) -> bool:
        return self._filepath.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
