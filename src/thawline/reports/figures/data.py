"""Draw what the images are, before anything is learnt from them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from thawline.data.decoding import image_size
from thawline.data.hashing import hash_files
from thawline.data.sources import SPLITS
from thawline.data.transforms import Transforms, evaluation_view, make_mix, training_view
from thawline.options import AugmentationOptions
from thawline.reports.figures.grids import image_grid, thumbnail
from thawline.reports.figures.style import COLOURS, LINE, MOST_TICK_LETTERS, shorten
from thawline.thaw.image_set import ImageView, view_seed

SYMBOLS = ("circle", "diamond", "square")
SAMPLES = 12  # of each split
ROWS = 6  # training images of which views are drawn
MOST_VIEWS = 5  # random ones of each
PROBLEMS = 20  # rows of a table that are drawn
LETTERS = 20  # of a file's name
LEGEND = {
    "orientation": "h",
    "x": 0,
    "y": 1,
    "yanchor": "bottom",
    "traceorder": "normal",
    "entrywidth": 45,
}


def class_balance(splits: pd.DataFrame) -> go.Figure:
    """Return how many images each class has in each split, as stacked bars."""
    counts = splits.groupby(["label", "split"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=[name for name in SPLITS if name in counts])
    figure = go.Figure()
    for split, color in zip(counts, COLOURS, strict=False):
        figure.add_bar(
            y=list(counts.index),
            x=counts[split],
            name=str(split),
            orientation="h",
            marker_color=color,
            hovertemplate=f"%{{y}}, {split}: %{{x}} images<extra></extra>",
        )
    short = {name: shorten(str(name), MOST_TICK_LETTERS) for name in counts.index}
    figure.update_yaxes(
        title_text="Class", type="category", autorange="reversed", labelalias=short, dtick=1
    )
    figure.update_xaxes(title_text="Images")
    return figure.update_layout(
        title={"text": "Images by class and split"},
        template="plotly_white",
        barmode="stack",
        bargap=0.25,
        height=max(320, 180 + LINE * len(counts)),
        legend=LEGEND,
    )


def image_sizes(splits: pd.DataFrame) -> go.Figure:
    """Return width against height of the files, in px; the larger a dot, the more have that size.

    Raises:
        ImageError: if a file cannot be decoded.
    """
    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as pool:
        sizes = pd.DataFrame(
            list(pool.map(image_size, splits["path"])), columns=["width", "height"]
        )
    sizes["split"] = splits["split"].to_numpy()
    counts = sizes.value_counts().rename("images").reset_index()
    figure = go.Figure()
    for split, color, symbol in zip(SPLITS, COLOURS, SYMBOLS, strict=False):
        some = counts[counts["split"] == split]
        if some.empty:
            continue
        figure.add_scatter(
            x=some["width"],
            y=some["height"],
            customdata=some["images"],
            mode="markers",
            name=split,
            marker={
                "color": color,
                "symbol": f"{symbol}-open",
                "size": 8 + 12 * np.sqrt(some["images"] / counts["images"].max()),
                "line": {"width": 2},
            },
            hovertemplate=f"%{{x}} × %{{y}} px, {split}: %{{customdata}} images<extra></extra>",
        )
    title = "Size of the images"
    if len(counts[["width", "height"]].drop_duplicates()) == 1:
        title += f": all have {counts['width'][0]} × {counts['height'][0]} px"
    for axis, name in ((figure.update_xaxes, "width"), (figure.update_yaxes, "height")):
        axis(title_text=f"{name.capitalize()}, px", range=[0, 1.1 * counts[name].max()])
    return figure.update_layout(title={"text": title}, template="plotly_white", legend=LEGEND)


def sample_images(splits: pd.DataFrame, seed: int) -> Image.Image:
    """Return some images of each split, of as many classes as possible.

    Raises:
        OSError: when a file cannot be read.
    """
    some = pd.concat([_mixed(splits[splits["split"] == split], SAMPLES, seed) for split in SPLITS])
    return image_grid(
        "Samples of each split",
        [thumbnail(path) for path in some["path"]],
        [f"{label}\n{split}" for label, split in zip(some["label"], some["split"], strict=True)],
        columns=6,
    )


def training_views(
    splits: pd.DataFrame, transforms: Transforms, augmentation: AugmentationOptions, seed: int
) -> Image.Image:
    """Return for some training images a row each: the evaluation view, then the random views.

    They are those that training takes, mixed with another image's where mixing is on.

    Raises:
        OSError: when a file cannot be read.
    """
    some = _mixed(splits[splits["split"] == "train"], ROWS, seed)
    count = min(augmentation.views_per_image or MOST_VIEWS, MOST_VIEWS)
    rows = _random_views(some["path"].tolist(), transforms, count)
    views = [_mix(column, splits, augmentation, seed + idx) for idx, column in enumerate(rows)]
    pictures, captions = [], []
    for idx, (path, label) in enumerate(zip(some["path"], some["label"], strict=True)):
        evaluation = evaluation_view(path, transforms.preprocessing)
        pictures += [evaluation, *(column[idx] for column in views)]
        captions += [f"{label}\nevaluation", *(f"view {n + 1}" for n in range(count))]
    mixed = ", mixed" if augmentation.mixup or augmentation.cutmix else ""
    size = transforms.preprocessing.size
    return image_grid(
        f"Training images as the network sees them{mixed}, {size} px",
        [functional.to_pil_image(picture) for picture in pictures],
        captions,
        columns=count + 1,
    )


def label_errors_grid(label_errors: pd.DataFrame) -> Image.Image:
    """Return the images whose labels are probably wrong, the likeliest errors first."""
    some = label_errors.head(PROBLEMS)
    return image_grid(
        _title("Probable label errors", label_errors),
        [thumbnail(path) for path in some["path"]],
        [
            f"{_brief(path)}\n{label}, rather {suggested}?\n{split}"
            for path, split, label, suggested, _ in some.to_numpy()
        ],
        empty="No label contradicts its image clearly.",
    )


def near_duplicates_grid(near_duplicates: pd.DataFrame) -> Image.Image:
    """Return pairs of images that are in two splits and look alike, side by side."""
    some = near_duplicates.head(PROBLEMS)
    pictures, captions = [], []
    for path, split, label, other_path, other_split, other_label, _, kind in some.to_numpy():
        pictures += [thumbnail(path), thumbnail(other_path)]
        captions += [
            f"{_brief(path)}\n{label}, {split}\n{kind}",
            f"{_brief(other_path)}\n{other_label}, {other_split}",
        ]
    return image_grid(
        _title("Near-duplicates across splits, in pairs", near_duplicates),
        pictures,
        captions,
        columns=4,
        empty="No image of one split looks like one of another.",
    )


def outliers_grid(outliers: pd.DataFrame) -> Image.Image:
    """Return the images that are unlike all others, the oddest first."""
    some = outliers.head(PROBLEMS)
    return image_grid(
        _title("Outliers", outliers),
        [thumbnail(path) for path in some["path"]],
        [f"{_brief(path)}\n{label}, {split}" for path, split, label, _ in some.to_numpy()],
        empty="No image is unlike all others.",
    )


def _title(text: str, table: pd.DataFrame) -> str:
    return f"{text}: the first {PROBLEMS} of {len(table)}" if len(table) > PROBLEMS else text


def _brief(path: str) -> str:
    """Return a file's name, its beginning and end where it is long."""
    name = Path(path).name
    return name if len(name) <= LETTERS else f"{name[:9]}…{name[-10:]}"


def _mixed(table: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Return rows of as many classes as possible, of each about equally many, sorted by class."""
    shuffled = table.sample(frac=1, random_state=seed)
    turn = shuffled.groupby("class_index").cumcount()
    chosen = shuffled.assign(turn=turn).sort_values("turn", kind="stable").head(count)
    return chosen.sort_values(["class_index", "path"])


def _random_views(paths: Sequence[str], transforms: Transforms, count: int) -> list[Tensor]:
    """Return the nth random view of all images, (N, 3, size, size) uint8, for every n."""
    images = list(zip(paths, hash_files(paths), strict=True))
    return [
        torch.stack(
            [
                training_view(path, transforms, view_seed(ImageView(path, sha256, n), transforms))
                for path, sha256 in images
            ]
        )
        for n in range(count)
    ]


def _mix(
    views: Tensor, splits: pd.DataFrame, augmentation: AugmentationOptions, seed: int
) -> Tensor:
    """Return views mixed among themselves as a batch of training is, where that is on."""
    mix = make_mix(augmentation, splits["class_index"].nunique())
    if mix is None:
        return views
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        images = functional.to_dtype(views, torch.float32, scale=True)
        mixed, _ = mix(images, torch.zeros(len(views), dtype=torch.int64))
    return functional.to_dtype(mixed.clamp(0, 1), torch.uint8, scale=True)
