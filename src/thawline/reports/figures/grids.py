"""Draw images in a grid, each with a caption."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from thawline.data.decoding import Source, read_image

TILE = 1.7  # inches, side of an image
TEXT_LINE = 0.16  # inches, height of a line of a caption
TITLE_LINE = 0.2  # inches, height of a line of the title
TITLE_LETTERS_PER_INCH = 11
MIN_WIDTH = 5.0  # inches, so that a title has room
MAX_CAPTION_LETTERS = 26  # that fit under an image
DPI = 130
BACKGROUND, INK = "white", "#1d2430"


def image_grid(
    title: str,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int = 5,
    empty: str = "There is nothing to show.",
) -> Image.Image:
    """Return images in rows, each in a square with its caption below, as one RGB picture.

    Small images are enlarged without smoothing, so that their pixels are visible.

    Args:
        title: above the grid.
        images: of any size and mode.
        captions: one per image; long lines are wrapped.
        columns: images per row.
        empty: text of a picture without images.
    """
    if not images:
        return _message(title, empty)
    texts = [_fold(caption) for caption in captions]
    lines = max(text.count("\n") + 1 for text in texts)
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    row_height = TILE + TEXT_LINE * lines + 0.12
    width = max(columns * (TILE + 0.15), MIN_WIDTH)
    title = textwrap.fill(title, int(width * TITLE_LETTERS_PER_INCH))
    header = 0.3 + TITLE_LINE * (title.count("\n") + 1)
    height = rows * row_height + header
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    left = (width - columns * (TILE + 0.15)) / 2
    for idx, (image, text) in enumerate(zip(images, texts, strict=True)):
        x = left + (idx % columns) * (TILE + 0.15) + 0.075
        top = height - header - (idx // columns) * row_height
        axes = figure.add_axes((x / width, (top - TILE) / height, TILE / width, TILE / height))
        axes.imshow(np.asarray(image.convert("RGB")), interpolation=_interpolation(image))
        axes.set_anchor("S")
        axes.set_axis_off()
        figure.text(
            (x + TILE / 2) / width, (top - TILE - 0.05) / height, text,
            ha="center", va="top", fontsize=7.5, color=INK, parse_math=False, linespacing=1.15,
        )  # fmt: skip
    return _render(figure, title)


def thumbnail(source: Source, side: int = 256) -> Image.Image:
    """Return an image file as RGB with at most `side` px a side.

    Raises:
        ImageError: if the file cannot be decoded.
    """
    image = read_image(source, bit_depth=None)
    image.thumbnail((side, side))
    return image


def _fold(caption: str) -> str:
    lines = [textwrap.wrap(line, MAX_CAPTION_LETTERS) or [""] for line in caption.split("\n")]
    return "\n".join(part for line in lines for part in line)


def _interpolation(image: Image.Image) -> str:
    return "nearest" if max(image.size) < TILE * DPI / 2 else "antialiased"


def _message(title: str, text: str) -> Image.Image:
    figure = Figure(figsize=(MIN_WIDTH, 1.5), facecolor=BACKGROUND)
    figure.text(0.5, 0.35, text, ha="center", wrap=True, fontsize=9, color=INK, parse_math=False)
    return _render(figure, textwrap.fill(title, int(MIN_WIDTH * TITLE_LETTERS_PER_INCH)))


def _render(figure: Figure, title: str) -> Image.Image:
    figure.text(
        0.5, 1 - 0.15 / figure.get_figheight(), title,
        ha="center", va="top", fontsize=11, color=INK, parse_math=False,
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return Image.open(buffer).convert("RGB")
