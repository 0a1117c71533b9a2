"""Draw the images of a data set: classes, sizes, samples, views and problems."""

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

from thawline.data.decoding import hash_files, image_size
from thawline.data.splitting import SPLITS
from thawline.data.transforms import Transforms, evaluation_view, make_mix, training_view
from thawline.options import AugmentationOptions
from thawline.reports.figures.grids import image_grid, thumbnail
from thawline.reports.figures.style import COLORS, LINE, MAX_TICK_LETTERS, finish, shorten
from thawline.thaw.image_set import ImageView, view_seed

SYMBOLS = ("circle", "diamond", "square")
SAMPLES_PER_SPLIT = 12
VIEWED_IMAGES = 6  # training images whose views are drawn
MAX_VIEWS = 5  # random views of each
MAX_PROBLEMS = 20  # rows of a table that are drawn
MAX_FILE_LETTERS = 20  # of a file name
LEGEND = {
    "orientation": "h",
    "x": 0,
    "y": 1,
    "yanchor": "bottom",
    "traceorder": "normal",
    "entrywidth": 45,
}


def class_balance(splits: pd.DataFrame) -> go.Figure:
    """Return the number of images per class and split, as stacked bars."""
    counts = splits.groupby(["label", "split"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=[name for name in SPLITS if name in counts])
    figure = go.Figure()
    for split, color in zip(counts, COLORS, strict=False):
        figure.add_bar(
            y=counts.index,
            x=counts[split],
            name=str(split),
            orientation="h",
            marker_color=color,
            hovertemplate=f"%{{y}}, {split}: %{{x}} images<extra></extra>",
        )
    short = {name: shorten(str(name), MAX_TICK_LETTERS) for name in counts.index}
    figure.update_yaxes(
        title_text="Class", type="category", autorange="reversed", labelalias=short, dtick=1
    )
    figure.update_xaxes(title_text="Images")
    return finish(
        figure,
        "Images per class and split",
        barmode="stack",
        bargap=0.25,
        height=max(320, 180 + LINE * len(counts)),
        legend=LEGEND,
    )


def image_sizes(splits: pd.DataFrame) -> go.Figure:
    """Return width against height of the images, in px; larger dots are more images.

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
    for split, color, symbol in zip(SPLITS, COLORS, SYMBOLS, strict=False):
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
    title = "Image sizes"
    if len(counts[["width", "height"]].drop_duplicates()) == 1:
        title += f": all are {counts['width'][0]} × {counts['height'][0]} px"
    for axis, name in ((figure.update_xaxes, "width"), (figure.update_yaxes, "height")):
        axis(title_text=f"{name.capitalize()}, px", range=[0, 1.1 * counts[name].max()])
    return finish(figure, title, legend=LEGEND)


def sample_images(splits: pd.DataFrame, seed: int) -> Image.Image:
    """Return sample images of each split, from as many classes as possible.

    Raises:
        DataError: if an image file cannot be read.
    """
    some = pd.concat(
        [_mixed(splits[splits["split"] == split], SAMPLES_PER_SPLIT, seed) for split in SPLITS]
    )
    return image_grid(
        "Samples of each split",
        [thumbnail(path) for path in some["path"]],
        [f"{label}\n{split}" for label, split in zip(some["label"], some["split"], strict=True)],
        columns=6,
    )


def training_views(
    splits: pd.DataFrame, transforms: Transforms, augmentation: AugmentationOptions, seed: int
) -> Image.Image:
    """Return one row per sample training image: its evaluation view, then its random views.

    They are the views that training uses, mixed with other images if mixup or CutMix is on.

    Raises:
        DataError: if an image file cannot be read.
    """
    some = _mixed(splits[splits["split"] == "train"], VIEWED_IMAGES, seed)
    count = min(augmentation.views_per_image or MAX_VIEWS, MAX_VIEWS)
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
    """Return the images with probable label errors, the most probable first."""
    some = label_errors.head(MAX_PROBLEMS)
    return image_grid(
        _title("Probable label errors", label_errors),
        [thumbnail(path) for path in some["path"]],
        [
            f"{_brief(path)}\n{label}; suggested: {suggested}\n{split}"
            for path, split, label, suggested, _ in some.to_numpy()
        ],
        empty="No probable label errors.",
    )


def near_duplicates_grid(near_duplicates: pd.DataFrame) -> Image.Image:
    """Return pairs of near-duplicates in two splits, side by side."""
    some = near_duplicates.head(MAX_PROBLEMS)
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
        empty="No near-duplicates across splits.",
    )


def outliers_grid(outliers: pd.DataFrame) -> Image.Image:
    """Return the outliers, the most distant first."""
    some = outliers.head(MAX_PROBLEMS)
    return image_grid(
        _title("Outliers", outliers),
        [thumbnail(path) for path in some["path"]],
        [f"{_brief(path)}\n{label}, {split}" for path, split, label, _ in some.to_numpy()],
        empty="No outliers.",
    )


def _title(text: str, table: pd.DataFrame) -> str:
    return (
        f"{text}: the first {MAX_PROBLEMS} of {len(table)}" if len(table) > MAX_PROBLEMS else text
    )


def _brief(path: str) -> str:
    """Return a file name, shortened in the middle if it is long."""
    name = Path(path).name
    return name if len(name) <= MAX_FILE_LETTERS else f"{name[:9]}…{name[-10:]}"


def _mixed(table: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Return rows from as many classes as possible, about equally many of each, by class."""
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
    """Return views mixed as training mixes a batch, if mixup or CutMix is on."""
    mix = make_mix(augmentation, splits["class_index"].nunique())
    if mix is None:
        return views
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        images = functional.to_dtype(views, torch.float32, scale=True)
        mixed, _ = mix(images, torch.zeros(len(views), dtype=torch.int64))
    return functional.to_dtype(mixed.clamp(0, 1), torch.uint8, scale=True)
