"""What is known of image files that were opened before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thawline.data.screening import ScreeningCache
from thawline.datasets.tool_dataset import ResourceDataset


class ScreeningCacheDataset(ResourceDataset[ScreeningCache]):
    """Loads a `ScreeningCache` that keeps its table in a Parquet file."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Take the Parquet file."""
        self._filepath, self.metadata = Path(filepath), metadata

    def load(self) -> ScreeningCache:
        """Return the cache, whose file need not exist."""
        return ScreeningCache(self._filepath)

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
