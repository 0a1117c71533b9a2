"""Files that a user names, found when a node asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from thawline.data.sources import name_files
from thawline.datasets.tool_dataset import ResourceDataset


class ImageFilesDataset(ResourceDataset[Callable[..., list[str]]]):
    """Loads a function from `explain.images` to absolute paths."""

    def __init__(self, path: str, metadata: dict[str, Any] | None = None) -> None:
        """Take what relative paths are relative to."""
        self._path, self.metadata = Path(path), metadata

    def load(self) -> Callable[..., list[str]]:
        """Return `name_files` with its base filled in."""
        return partial(name_files, base=self._path)

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}
