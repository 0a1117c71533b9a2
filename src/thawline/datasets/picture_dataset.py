"""A picture that kedro viz shows."""

import base64
from pathlib import Path

from kedro_datasets._typing import ImagePreview
from kedro_datasets.pillow import ImageDataset


class PictureDataset(ImageDataset):
    """Pillow's images, with the preview that `ImageDataset` lacks.

    MatplotlibDataset has one, but cannot load what it saved.
    """

    def preview(self) -> ImagePreview:
        """Return the file in base64."""
        content = Path(self._get_load_path()).read_bytes()
        return ImagePreview(base64.b64encode(content).decode("ascii"))
