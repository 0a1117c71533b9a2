"""Draw training images as the network sees them."""

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from thawline.data.decoding import hash_files
from thawline.data.loading import ImageView, decode
from thawline.data.transforms import BatchMixer, Transforms, make_mix
from thawline.options import AugmentationOptions
from thawline.reports.figures.data import sample_evenly
from thawline.reports.figures.grids import image_grid

VIEWED_IMAGES = 6  # training images whose views are drawn
MAX_VIEWS = 5  # random views of each


def training_views(
    splits: pd.DataFrame, transforms: Transforms, augmentation: AugmentationOptions, seed: int
) -> Image.Image:
    """Return one row per sample training image: its evaluation view, then its random views.

    They are the views that training uses, mixed with other images if mixup or CutMix is on.

    Raises:
        DataError: if an image file cannot be read.
    """
    some = sample_evenly(splits[splits["split"] == "train"], VIEWED_IMAGES, seed)
    paths = some["path"].tolist()
    images = [ImageView(*pair) for pair in zip(paths, hash_files(paths), strict=True)]
    columns = {"evaluation": decode(transforms, images)}
    mix = make_mix(augmentation, splits["class_index"].nunique())
    for number in range(min(augmentation.views_per_image or MAX_VIEWS, MAX_VIEWS)):
        views = decode(transforms, [image._replace(view=number) for image in images])
        columns[f"view {number + 1}"] = _mix(views, mix, seed + number)
    mixed = ", mixed" if mix else ""
    return image_grid(
        f"Training images as the network sees them{mixed}, {transforms.preprocessing.size} px",
        [
            functional.to_pil_image(views[idx])
            for idx in range(len(some))
            for views in columns.values()
        ],
        [f"{label}\n{name}" for label in some["label"] for name in columns],
        columns=len(columns),
    )


def _mix(views: Tensor, mix: BatchMixer | None, seed: int) -> Tensor:
    """Return views (N, 3, size, size) uint8 mixed as training mixes a batch, if it does."""
    if mix is None:
        return views
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        images = functional.to_dtype(views, torch.float32, scale=True)
        mixed, _ = mix(images, torch.zeros(len(views), dtype=torch.int64))
    return functional.to_dtype(mixed.clamp(0, 1), torch.uint8, scale=True)
