"""The store of what the frozen part of a network yields, opened when a node asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from thawline.datasets.tool_dataset import ResourceDataset
from thawline.thaw.cache import ActivationCache


class ActivationCacheDataset(ResourceDataset[Callable[[float], ActivationCache]]):
    """Loads a function from `activations.max_gb` to the store in a folder.

    The store grows while a node trains, so it is not saved when the node has ended.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Take the folder."""
        self._filepath, self.metadata = Path(filepath), metadata

    def load(self) -> Callable[[float], ActivationCache]:
        """Return `ActivationCache` with its folder filled in."""
        return partial(ActivationCache, self._filepath)

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
