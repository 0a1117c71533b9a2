"""Draw the images of a data set: classes, sizes, samples, views and problems."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from PIL import Image

from thawline.data.decoding import image_size
from thawline.data.splitting import SPLITS
from thawline.reports.figures.grids import image_grid, thumbnail
from thawline.reports.figures.style import COLORS, LINE, class_axis, finish

SYMBOLS = ("circle-open", "diamond-open", "square-open")
SAMPLES_PER_SPLIT = 12
MAX_PROBLEMS = 20  # rows of a table that are drawn
LEGEND = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "entrywidth": 45}


def class_balance(splits: pd.DataFrame) -> go.Figure:
    """Return the number of images per class and split, as stacked bars."""
    counts = splits.value_counts(["label", "split"]).rename("images").reset_index()
    labels = sorted(counts["label"].unique())
    figure = px.bar(
        counts, "images", "label", color="split", orientation="h",
        labels={"images": "Images", "label": "Class", "split": "Split"},
        category_orders={"split": SPLITS, "label": labels}, color_discrete_sequence=COLORS,
    )  # fmt: skip
    figure.update_yaxes(class_axis(labels), dtick=1)
    height = max(320, 180 + LINE * len(labels))
    return finish(figure, "Images per class and split", height=height, legend=LEGEND)


def image_sizes(splits: pd.DataFrame) -> go.Figure:
    """Return width against height of the images, in px; larger dots are more images.

    Raises:
        ImageError: if a file cannot be decoded.
    """
    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as pool:
        sizes = pd.DataFrame(pool.map(image_size, splits["path"]), columns=["width", "height"])
    sizes["split"] = splits["split"].to_numpy()
    counts = sizes.value_counts().rename("images").reset_index()
    figure = px.scatter(
        counts, "width", "height", size="images", color="split", symbol="split",
        labels={"width": "Width, px", "height": "Height, px", "split": "Split"},
        range_x=[0, 1.1 * counts["width"].max()], range_y=[0, 1.1 * counts["height"].max()],
        category_orders={"split": SPLITS}, color_discrete_sequence=COLORS, symbol_sequence=SYMBOLS,
    )  # fmt: skip
    figure.update_traces(marker={"sizemin": 4, "line": {"width": 2}})
    title = "Image sizes"
    if len(counts[["width", "height"]].drop_duplicates()) == 1:
        title += f": all are {counts['width'][0]} × {counts['height'][0]} px"
    return finish(figure, title, legend=LEGEND)


def sample_images(splits: pd.DataFrame, seed: int) -> Image.Image:
    """Return sample images of each split, from as many classes as possible.

    Raises:
        DataError: if an image file cannot be read.
    """
    parts = (splits[splits["split"] == name] for name in SPLITS)
    some = pd.concat([sample_evenly(part, SAMPLES_PER_SPLIT, seed) for part in parts])
    return image_grid(
        "Samples of each split",
        [thumbnail(path) for path in some["path"]],
        [f"{label}\n{split}" for label, split in zip(some["label"], some["split"], strict=True)],
        columns=6,
    )


def problem_grid(title: str, table: pd.DataFrame) -> Image.Image:
    """Return the first images of a table of label problems; near-duplicates are side by side."""
    images = []
    for row in table.head(MAX_PROBLEMS).to_dict("records"):
        note = f"suggested: {row['suggested']}" if "suggested" in row else row.get("kind", "")
        images.append((row["path"], f"{row['label']}, {row['split']}\n{note}"))
        if "other_path" in row:
            images.append((row["other_path"], f"{row['other_label']}, {row['other_split']}"))
    count = f": the first {MAX_PROBLEMS} of {len(table)}" if len(table) > MAX_PROBLEMS else ""
    return image_grid(
        title + count,
        [thumbnail(path) for path, _ in images],
        [f"{Path(path).name}\n{text}".strip() for path, text in images],
        columns=4 if "other_path" in table else 5,
        empty=f"No {title.lower()}.",
    )


def sample_evenly(table: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Return rows from as many classes as possible, about equally many of each, by class."""
    shuffled = table.sample(frac=1, random_state=seed)
    turn = shuffled.groupby("class_index").cumcount()
    chosen = shuffled.assign(turn=turn).sort_values("turn", kind="stable").head(count)
    return chosen.sort_values(["class_index", "path"])
