"""Draw images in a grid, each with a caption."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from thawline.data.decoding import Source, read_image

TILE, GAP = 220, 20  # px, side of an image and what separates two
TITLE_SIZE, TEXT_SIZE = 20, 13  # px
SPACING = 6  # px, between lines
LINE = TEXT_SIZE + SPACING
MIN_COLUMNS = 3  # of width, so that a title has room
LETTER = 0.55  # times the size of the text: its mean width
MAX_CAPTION_LETTERS = 28  # that fit under an image
INK = "#737d8a"  # on a white page and on a dark one
FONT = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def image_grid(
    title: str,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int = 5,
    empty: str = "There is nothing to show.",
) -> Image.Image:
    """Return images in rows, each in a square with its caption below, on a transparent ground.

    Small images are enlarged without smoothing, so that their pixels are visible. Long lines are
    wrapped. `empty` is the text of a picture without images.
    """
    texts = [_fold(caption) for caption in captions]
    row_height = TILE + LINE * (2 + max((text.count("\n") for text in texts), default=0))
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    width = max(columns, MIN_COLUMNS) * (TILE + GAP)
    title = _wrap(title, TITLE_SIZE, width)
    header = GAP + (TITLE_SIZE + SPACING) * (title.count("\n") + 1) + GAP
    empty = "" if images else _wrap(empty, TEXT_SIZE, width)
    height = header + rows * row_height + LINE * (2 + empty.count("\n")) * (not images)
    picture = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(picture)
    _write(draw, width / 2, GAP, title, TITLE_SIZE)
    _write(draw, width / 2, header, empty, TEXT_SIZE)
    for idx, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(idx, columns)
        x = width / 2 + (column + 0.5 - columns / 2) * (TILE + GAP)
        y = header + row * row_height
        is_small = max(image.size) < TILE / 2
        scale = TILE / max(image.size)
        size = [max(1, round(side * scale)) for side in image.size]
        method = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
        tile = image.convert("RGB").resize((size[0], size[1]), method)
        picture.paste(tile, (round(x - size[0] / 2), y + TILE - size[1]))
        _write(draw, x, y + TILE + SPACING, text, TEXT_SIZE)
    return picture


def thumbnail(source: Source, side: int = 256) -> Image.Image:
    """Return an image file as RGB with at most `side` px a side.

    Raises:
        ImageError: if the file cannot be decoded.
    """
    image = read_image(source, bit_depth=None)
    image.thumbnail((side, side))
    return image


def _write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int) -> None:
    """Write lines below y, centered at x."""
    font = ImageFont.truetype(FONT, size)
    draw.multiline_text((x, y), text, INK, font, anchor="ma", align="center", spacing=SPACING)


def _wrap(text: str, size: int, width: int) -> str:
    """Return a text in lines that are at most `width` px long."""
    return textwrap.fill(text, int((width - 2 * GAP) / (LETTER * size)))


def _fold(caption: str) -> str:
    return "\n".join(textwrap.fill(line, MAX_CAPTION_LETTERS) for line in caption.split("\n"))
