"""Draw what in an image speaks for the class that a network sees in it."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image
from torch import Tensor

from thawline.evaluation.explanations import Explanations
from thawline.options import AttributionMethod
from thawline.reports.figures.grids import image_grid

COLOURS = "viridis"  # dark violet, green, yellow: in order for color-blind readers and in gray too
TOP = 0.995  # quantile of a map that is drawn in full yellow; single pixels above it do not count
STRENGTH = 0.55  # of the colors over the gray image
NAMES = {
    "grad_cam": "Grad-CAM",
    "guided_grad_cam": "Guided Grad-CAM",
    "integrated_gradients": "Integrated gradients",
}


def attribution_grid(
    explained: Explanations | None, method: AttributionMethod, problem: str = ""
) -> Image.Image:
    """Return each image as the network sees it, beside the same with its evidence in colors.

    Args:
        explained: what `explanations.explain` returns, or None.
        method: that it was made by.
        problem: what the picture says where there is nothing.
    """
    title = f"{NAMES[method]}: evidence for the prediction, violet = none, yellow = most"
    pictures, captions = [], []
    rows = explained.table.to_dict("records") if explained else []
    for idx, row in enumerate(rows):
        assert explained
        picture = Image.fromarray(explained.views[idx].permute(1, 2, 0).numpy())
        pictures += [picture, overlay(picture, explained.maps[idx])]
        truth = f"true {row['label']}" if row["label"] else "true class unknown"
        captions += [
            f"{Path(row['path']).stem}\n{truth}",
            f"predicted {row['prediction']}\nprobability {row['probability']:.3f}",
        ]
    return image_grid(title, pictures, captions, columns=4, empty=problem)


def overlay(picture: Image.Image, evidence: Tensor) -> Image.Image:
    """Return a picture in gray, colored by a map (H, W) of the same size, from 0."""
    highest = float(evidence.double().quantile(TOP)) or float(evidence.max()) or 1.0
    shades = (evidence / highest).clamp(0, 1).numpy()
    colors = mpl.colormaps[COLOURS](shades)[..., :3] * 255
    gray = np.asarray(picture.convert("L"), dtype=float)[..., None]
    return Image.fromarray(((1 - STRENGTH) * gray + STRENGTH * colors).astype(np.uint8))
