"""The files of a folder, found when a node asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from thawline.data.sources import find_files
from thawline.datasets.tool_dataset import ResourceDataset


class ImageFolderDataset(ResourceDataset[Callable[[str], list[str]]]):
    """Loads a function from `predict.root` to the files there."""

    def __init__(self, path: str, metadata: dict[str, Any] | None = None) -> None:
        """Take what a relative root is relative to."""
        self._path, self.metadata = Path(path), metadata

    def load(self) -> Callable[[str], list[str]]:
        """Return `find_files` with its base filled in."""
        return partial(find_files, base=self._path)

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}
