"""Draw attributions over the images that a network classified."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from thawline.evaluation.explanations import Explanations
from thawline.options import AttributionMethod
from thawline.reports.figures.grids import image_grid

COLORMAP = "viridis"  # ordered for color-blind readers and in gray too
MAX_QUANTILE = 0.995  # of a map, drawn in full yellow: single pixels above it do not count
OPACITY = 0.55  # of the colors over the gray image
NAMES = {
    "grad_cam": "Grad-CAM",
    "guided_grad_cam": "Guided Grad-CAM",
    "integrated_gradients": "Integrated gradients",
}


def attribution_grid(
    explained: Explanations | None, method: AttributionMethod, problem: str = ""
) -> Image.Image:
    """Return each image as the network sees it, beside the same with its attribution in colors.

    `problem` is the text of a picture without images.
    """
    title = f"{NAMES[method]}: attribution to the predicted class (violet: none, yellow: highest)"
    if explained is None:
        return image_grid(title, [], [], empty=problem)
    pictures, captions = [], []
    rows = explained.table.to_dict("records")
    for row, view, evidence in zip(rows, explained.views, explained.maps, strict=True):
        picture = functional.to_pil_image(view)
        pictures += [picture, overlay(picture, evidence)]
        truth = f"true {row['label']}" if row["label"] else "true class unknown"
        captions += [
            f"{Path(row['path']).stem}\n{truth}",
            f"predicted {row['prediction']}\nprobability {row['probability']:.3f}",
        ]
    return image_grid(title, pictures, captions, columns=4)


def overlay_views(explained: Explanations) -> list[Image.Image]:
    """Return each image as the network sees it, with its attribution in colors."""
    pairs = zip(explained.views, explained.maps, strict=True)
    return [overlay(functional.to_pil_image(view), evidence) for view, evidence in pairs]


def overlay(picture: Image.Image, evidence: Tensor) -> Image.Image:
    """Return a picture in gray, colored by a map (H, W) of the same size, from 0."""
    highest = float(evidence.double().quantile(MAX_QUANTILE)) or float(evidence.max()) or 1.0
    shades = (evidence / highest).clamp(0, 1).numpy()
    colors = mpl.colormaps[COLORMAP](shades)[..., :3] * 255
    gray = np.asarray(picture.convert("L"), dtype=float)[..., None]
    return Image.fromarray(((1 - OPACITY) * gray + OPACITY * colors).astype(np.uint8))
