"""The images that a run starts from, found when a node asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from thawline.data.sources import find_images
from thawline.datasets.tool_dataset import ResourceDataset


class RawImagesDataset(ResourceDataset[Callable[..., pd.DataFrame]]):
    """Loads a function from `dataset.root` to the manifest of the images there.

    Like a PartitionedDataset it loads something to call, so that the node decides by its parameters
    which images they are, and the catalog where downloaded ones are kept.
    """

    def __init__(self, filepath: str, path: str, metadata: dict[str, Any] | None = None) -> None:
        """Take the folder for packaged data sets, and what a relative root is relative to.

        Kedro makes values under these two names relative to the project.
        """
        self._filepath, self._path, self.metadata = Path(filepath), Path(path), metadata

    def load(self) -> Callable[..., pd.DataFrame]:
        """Return `find_images` with its folders filled in."""
        return partial(find_images, base=self._path, packaged_folder=self._filepath)

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "path": str(self._path)}
