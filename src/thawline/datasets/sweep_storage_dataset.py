"""The database in which a sweep keeps its trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from thawline.datasets.resource_dataset import ResourceDataset
from thawline.sweep.storage import open_storage


class SweepStorageDataset(ResourceDataset[Callable[[str | None], BaseStorage]]):
    """Loads a function from `sweep.storage`, a URL or None, to Optuna's storage.

    Without a URL it is an SQLite file, which several processes of one machine may share.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Take the SQLite file."""
        self._filepath, self.metadata = Path(filepath), metadata

    def load(self) -> Callable[[str | None], BaseStorage]:
        """Return `open_storage` with its default filled in."""
        return self._open

    def _open(self, url: str | None) -> BaseStorage:
        if url is None:
            url = f"sqlite:///{self._filepath}"
        return open_storage(url)

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
