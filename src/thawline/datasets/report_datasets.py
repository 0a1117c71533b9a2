"""A picture and a page that kedro viz shows."""

import base64
from pathlib import Path

from kedro_datasets._typing import HTMLPreview, ImagePreview
from kedro_datasets.pillow import ImageDataset
from kedro_datasets.text import TextDataset


class PictureDataset(ImageDataset):
    """Pillow's images, with the preview that `ImageDataset` lacks.

    MatplotlibDataset has one, but cannot load what it saved.
    """

    def preview(self) -> ImagePreview:
        """Return the file in base64."""
        content = Path(self._get_load_path()).read_bytes()
        return ImagePreview(base64.b64encode(content).decode("ascii"))


class ReportDataset(TextDataset):
    """A page of `reports.html.html_report`."""

    def preview(self) -> HTMLPreview:
        """Return the head of the page: kedro viz would run no script, so figures are left out."""
        return HTMLPreview(self.load().partition("<header>")[2].partition("<nav")[0])
