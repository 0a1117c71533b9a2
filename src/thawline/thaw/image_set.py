"""Hold the images of a split as columns."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from thawline.data.decoding import hash_files
from thawline.data.loading import ImageView

Positions = Sequence[int] | np.ndarray  # of the images of a batch in their split


class ImageSet(NamedTuple):
    """The images of a split as columns, so that millions fit into memory."""

    paths: pa.Array | pa.ChunkedArray  # of the images of all splits
    # SHA-256 of their files, as 64 hexadecimal digits or 32 bytes; of this split at least.
    hashes: pa.Array | pa.ChunkedArray
    rows: np.ndarray  # where in these the images of this split are, (N,) int32
    labels: Tensor  # their class indices, (N,) int64 on the training device

    def shuffle(
        self, orders: torch.Generator, batch_size: int, balanced: bool, fewest: int
    ) -> list[np.ndarray]:
        """Return positions in a new order, in batches (B,) int64.

        A last batch of less than `fewest` images is dropped, because batch norm cannot train on one
        image. If `balanced`, images are drawn with replacement, classes with equal probability.
        """
        if balanced:
            labels = self.labels.cpu()
            weights = 1 / labels.bincount()[labels].double()
            order = torch.multinomial(weights, len(labels), replacement=True, generator=orders)
        else:
            order = torch.randperm(len(self.labels), generator=orders)
        positions = order.numpy()
        batches = [positions[at : at + batch_size] for at in range(0, len(order), batch_size)]
        return batches[:-1] if len(batches) > 1 and len(batches[-1]) < fewest else batches

    def take(self, batches: Sequence[Positions], view: int | None = None) -> list[list[ImageView]]:
        """Return batches of views: the nth random one, or that for evaluation."""
        return [[self._image(self.rows[idx], view) for idx in batch] for batch in batches]

    def labels_of(self, positions: np.ndarray) -> Tensor:
        """Return class indices (B,) without waiting for what the device still computes."""
        idx = torch.from_numpy(positions).to(self.labels.device, non_blocking=True)
        return self.labels[idx]

    def digest(self) -> str:
        """Return a hash of these images and labels in this order."""
        digest = hashlib.sha256(self.labels.cpu().numpy().tobytes())
        for row in self.rows:
            digest.update(self._image(row, None).sha256.encode())
        return digest.hexdigest()

    def _image(self, row: int, view: int | None) -> ImageView:
        sha256 = self.hashes[row].as_py()
        sha256 = sha256 if isinstance(sha256, str) else sha256.hex()
        return ImageView(self.paths[row].as_py(), sha256, view)


def image_set(splits: pd.DataFrame, split: str, device: torch.device) -> ImageSet:
    """Return the images of a split, hashed unless the table has a column `sha256`.

    Raises:
        DataError: when a file cannot be read.
    """
    rows = np.flatnonzero((splits["split"] == split).to_numpy()).astype(np.int32)
    labels = splits["class_index"].to_numpy()[rows].astype(np.int64)
    if "sha256" in splits:
        hashes = pa.array(splits["sha256"])
    else:
        found = pd.Series(hash_files(splits["path"].iloc[rows].tolist()), index=rows)
        hashes = pa.array(found.reindex(range(len(splits))))
    return ImageSet(pa.array(splits["path"]), hashes, rows, torch.from_numpy(labels).to(device))
