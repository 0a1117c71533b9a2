"""Draw images in a grid, each with a caption."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from thawline.data.decoding import Source, read_image

TILE = 1.7  # inches, side of an image
GAP = 0.15  # inches, between images
TEXT_LINE = 0.16  # inches, height of a line of a caption
TITLE_LINE = 0.2  # inches, height of a line of the title
TITLE_LETTERS_PER_INCH = 11
MIN_WIDTH = 5.0  # inches, so that a title has room
EMPTY_HEIGHT = 1.5  # inches, of a picture without images
MAX_CAPTION_LETTERS = 26  # that fit under an image
DPI = 130
INK = "#1d2430"


def image_grid(
    title: str,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int = 5,
    empty: str = "There is nothing to show.",
) -> Image.Image:
    """Return images in rows, each in a square with its caption below, as one RGB picture.

    Small images are enlarged without smoothing, so that their pixels are visible. Long lines are
    wrapped. `empty` is the text of a picture without images.
    """
    texts = [_fold(caption) for caption in captions]
    caption_height = 0.12 + TEXT_LINE * max((text.count("\n") + 1 for text in texts), default=0)
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    width = max(columns * (TILE + GAP), MIN_WIDTH)
    title = textwrap.fill(title, int(width * TITLE_LETTERS_PER_INCH))
    header = 0.3 + TITLE_LINE * (title.count("\n") + 1)
    height = header + rows * (TILE + caption_height) if images else EMPTY_HEIGHT
    figure = Figure(figsize=(width, height), facecolor="white")
    style: dict[str, Any] = {"color": INK, "ha": "center", "va": "top", "parse_math": False}
    figure.text(0.5, 1 - 0.15 / height, title, fontsize=11, **style)
    if not images:
        figure.text(0.5, 0.5, empty, wrap=True, fontsize=9, **style)
    for idx, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(idx, columns)
        x = width / 2 + (column - columns / 2) * (TILE + GAP) + GAP / 2
        y = height - header - row * (TILE + caption_height) - TILE
        axes = figure.add_axes((x / width, y / height, TILE / width, TILE / height), anchor="S")
        axes.set_axis_off()
        is_small = max(image.size) < TILE * DPI / 2
        axes.imshow(image.convert("RGB"), interpolation="nearest" if is_small else "antialiased")
        x, y = x + TILE / 2, y - 0.05
        figure.text(x / width, y / height, text, fontsize=7.5, linespacing=1.15, **style)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return Image.open(buffer).convert("RGB")


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
