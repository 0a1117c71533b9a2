"""Write the page on which a person looks through images and corrects their labels."""

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image, ImageOps

from thawline.data.corrections import COLUMNS, OUTCOMES
from thawline.data.decoding import hash_files, map_threads
from thawline.data.manifests import ROOT
from thawline.reports.figures.grids import thumbnail
from thawline.reports.figures.style import COLORS
from thawline.reports.html import encode_webp, render

SIDES = ((5_000, 96), (50_000, 64))  # px of a thumbnail, for up to so many images
MIN_SIDE = 32
TILES = 32  # thumbnails along a side of a sheet
WEBP = {"quality": 60, "method": 2}  # of pictures, of which there may be thousands
MAX_LISTED = 500  # images in a list
WRITTEN = [*COLUMNS, "note", "who", "when"]


class ReviewList(NamedTuple):
    """Images to look at, in this order."""

    title: str
    about: str
    images: pd.DataFrame  # path; perhaps suggested, a label, and other_path
    why: str  # an image is listed, with columns of `images` in braces


def list_images(
    images: pd.DataFrame,
    label_errors: pd.DataFrame,
    near_duplicates: pd.DataFrame,
    outliers: pd.DataFrame,
) -> list[ReviewList]:
    """Return the lists of the page; those without images too.

    Args:
        images: the table of `evaluation.image_map.describe_images`, with `rank` among those to
            label next, or 0.
        label_errors: path, label, suggested, probability.
        near_duplicates: path, other_path, split, other_split.
        outliers: path, distance.
    """
    labeled = images[images["split"] != "unlabeled"]
    wrong = labeled[labeled["prediction"] != labeled["label"]]
    wrong = wrong.sort_values("confidence", ascending=False)
    wrong = wrong.assign(suggested=wrong["prediction"])
    unsure = labeled.sort_values("margin")
    next_ones = images[images["rank"] > 0].sort_values("rank")
    next_ones = next_ones.assign(suggested=next_ones["prediction"])
    return [
        ReviewList(
            "Probable label errors",
            "A classifier that has not seen the image contradicts its label.",
            label_errors,
            "probability of the label {probability:.0%}",
        ),
        ReviewList(
            "Confident mistakes",
            "The classifier is surest of these, and contradicts the label.",
            wrong,
            "confidence {confidence:.0%}",
        ),
        ReviewList(
            "Least certain",
            "The two most probable classes are about as probable.",
            unsure,
            "margin {margin:.0%}",
        ),
        ReviewList(
            "Near-duplicates",
            "Pairs that look alike, in two splits.",
            near_duplicates,
            "{split} and {other_split}",
        ),
        ReviewList(
            "Outliers",
            "These resemble no other image.",
            outliers,
            "distance {distance:.2f}",
        ),
        ReviewList(
            "Label these next (experimental)",
            "Unlabeled images of which the classifier is unsure, none like another.",
            next_ones,
            "unlabeled",
        ),
    ]


def review_page(
    images: pd.DataFrame,
    lists: Sequence[ReviewList],
    attributions: Mapping[str, Image.Image],
    corrections: pd.DataFrame,
    project: Path,
    names: Sequence[str],
) -> str:
    """Return the page, which opens from the file system without a network.

    It holds thumbnails; the images themselves are read from their files, if these are there.

    Args:
        images: the table of `evaluation.image_map.describe_images`; `attrs` names its folder.
        lists: what is to be looked at.
        attributions: pictures by path.
        corrections: what has been corrected before, see `data.corrections.apply_corrections`.
        project: what that folder is relative to.
        names: of the classes.
    """
    root = (project / images.attrs[ROOT]).resolve()
    side = next((px for most, px in SIDES if len(images) <= most), MIN_SIDE)
    rows = dict(zip(images["path"], range(len(images)), strict=True))
    page = {
        "data": images.attrs[ROOT],
        "root": root.as_uri(),
        "classes": list(names),
        "images": _columns(images, root),
        "lists": [_as_dict(each, rows) for each in lists],
        "attributions": {
            rows[path]: encode_webp(picture, **WEBP) for path, picture in attributions.items()
        },
        "corrections": _written(corrections, root),
        "written": WRITTEN,
        "made": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}",
        "colors": COLORS,
        "side": side,
        "tiles": TILES,
    }
    sheets = thumbnail_sheets(images["path"].tolist(), side)
    return render("review.html", data=page, sheets=[encode_webp(sheet, **WEBP) for sheet in sheets])


def thumbnail_sheets(paths: Sequence[str], side: int) -> Iterator[Image.Image]:
    """Yield sheets of 32 × 32 square thumbnails with `side` px, row by row."""

    def draw(path: str) -> Image.Image:
        return ImageOps.pad(thumbnail(path, side), (side, side), color="gray")

    for idx, tile in enumerate(map_threads(draw, paths, "Drawing thumbnails")):
        place = idx % TILES**2
        if place == 0:
            sheet = Image.new("RGB", (TILES * side, TILES * side), "gray")
        sheet.paste(tile, (place % TILES * side, place // TILES * side))
        if place == TILES**2 - 1 or idx == len(paths) - 1:
            yield sheet


def _columns(images: pd.DataFrame, root: Path) -> dict[str, Any]:
    """Return the columns that the page reads, each as a list."""
    columns = images.copy()
    columns["sha256"] = hash_files(images["path"].tolist())
    columns["path"] = [os.path.relpath(path, root) for path in images["path"]]
    columns["nearest"] = [[int(row) for row in rows.split()] for rows in images["nearest"]]
    rounded = columns.round({"x": 4, "y": 4, "confidence": 3, "margin": 3})
    return {str(name): rounded[name].tolist() for name in rounded}


def _written(corrections: pd.DataFrame, root: Path) -> list[dict[Hashable, Any]]:
    """Return earlier corrections as the page writes them again."""
    names = [*WRITTEN, *corrections.columns.difference([*WRITTEN, *OUTCOMES])]
    rows = corrections.reindex(columns=names, fill_value="")
    rows["path"] = [os.path.relpath(path, root) for path in rows["path"]]
    return rows.to_dict("records")


def _as_dict(own: ReviewList, rows: Mapping[str, int]) -> dict[str, Any]:
    images = own.images.head(MAX_LISTED)
    return {
        "title": own.title,
        "about": own.about,
        "total": len(own.images),
        "images": images["path"].map(rows).tolist(),
        "why": [own.why.format_map(row) for row in images.to_dict("records")],
        "suggested": images["suggested"].tolist() if "suggested" in images else [],
        "other": images["other_path"].map(rows).tolist() if "other_path" in images else [],
    }
