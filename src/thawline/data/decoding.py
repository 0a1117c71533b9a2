"""Read image files: their hashes, and their pixels as upright 8-bit RGB images."""

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import joblib
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features
from rich import get_console
from rich.progress import track

from thawline.data.shards import find_member, read_bytes, stat_file
from thawline.errors import DataError
from thawline.options import BitDepth

# Pillow starts another program for some formats, such as PostScript, so only these are decoded.
Image.init()  # registers the formats in Image.OPEN
FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000")
    if name in Image.OPEN
]
CODECS = ("jpg", "libjpeg_turbo", "jpg_2000", "libtiff", "webp", "avif")
CODEC_VERSIONS = {name: found for name in CODECS if (found := features.version(name))}
ORIENTATIONS_ON_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap width and height
# Pillow's default for `Image.thumbnail`. On photographs, the resized image then differs from that
# of a full decoding by 1/255 on average; with a gap of 1 it differs by 2.6/255.
REDUCING_GAP = 2.0
BATCH_SIZE = 16  # files per task of a thread
MAX_HASHED_FILES = 200_000  # whose hashes a process remembers; about 60 MB

Source = str | os.PathLike[str] | bytes
S = TypeVar("S")
T = TypeVar("T")


class ImageError(DataError):
    """An image file that cannot be decoded."""

    def __init__(self, problem: str, path: str | os.PathLike[str] | None = None) -> None:
        """State the problem in a few words, and the path of the file if it has one."""
        name = "The image" if path is None else f"'{os.fspath(path)}'"
        super().__init__(f"{name} cannot be read: {problem}.")
        self.problem = problem


def hash_files(paths: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each file's content, as 64 hexadecimal digits.

    A process reads a file again only if its size or its time of change differ.

    Raises:
        DataError: if a file cannot be read.
    """
    return list(map_threads(hash_file, paths, "Hashing images"))


@contextmanager
def open_image(source: Source) -> Iterator[Image.Image]:
    """Open an image file, or the bytes of one, without decoding its pixels.

    Raises:
        ImageError: if opening the file, or decoding it in the `with` block, fails.
    """
    path = None if isinstance(source, bytes) else source
    try:
        file: Any = source
        if isinstance(source, bytes):
            file = io.BytesIO(source)
        elif find_member(source):
            file = io.BytesIO(read_bytes(source))
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise any exception for a damaged file
        raise ImageError(_describe_problem(error, source), path) from error


def read_image(
    source: Source, scale: float = 1.0, bit_depth: BitDepth | None = "auto"
) -> Image.Image:
    """Decode an image file, or the bytes of one, as `to_rgb` does.

    Raises:
        ImageError: if the file cannot be decoded.
    """
    with open_image(source) as file:
        return to_rgb(file, scale, bit_depth)


def to_rgb(
    file: Image.Image, scale: float = 1.0, bit_depth: BitDepth | None = "auto"
) -> Image.Image:
    """Decode an opened image to an upright 8-bit RGB image.

    Grayscale, palette and CMYK images are converted, transparent images are laid over white, and
    EXIF rotations are applied. Grayscale images with more than 8 bits per pixel are scaled by
    `bit_depth` and never by their content, so equal values give equal grays in all files. Of
    16-bit colors, Pillow reads the upper 8 bits.

    Args:
        file: of `open_image`.
        scale: by how much the image will be resized. A JPEG is decoded at 1/2, 1/4 or 1/8 of its
            size if that keeps at least `REDUCING_GAP` times as many pixels per side as needed.
        bit_depth: white is 2^bit_depth - 1 and above. "auto": 65,535 in integer files, 1 in float
            files. None: the depth that the image's own values need, for display.
    """
    if scale * REDUCING_GAP < 1:
        width, height = (math.ceil(side * scale * REDUCING_GAP) for side in file.size)
        file.draft(None, (width, height))
    image = ImageOps.exif_transpose(file)
    if is_deep(image):
        image = _to_8_bit(image, find_bit_depth(image) if bit_depth is None else bit_depth)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def image_size(source: Source) -> tuple[int, int]:
    """Return width and height in px of the upright image, from its header alone.

    Raises:
        ImageError: if the header cannot be decoded.
    """
    with open_image(source) as file:
        return upright_size(file)


def upright_size(file: Image.Image) -> tuple[int, int]:
    """Return width and height in px that an opened image has after `to_rgb`."""
    width, height = file.size
    on_side = file.getexif().get(ExifTags.Base.Orientation, 1) in ORIENTATIONS_ON_SIDE
    # Pillow has already swapped the size of a TIFF.
    return (height, width) if on_side and file.format != "TIFF" else (width, height)


def is_deep(file: Image.Image) -> bool:
    """Return whether an image is grayscale with more than 8 bits per pixel."""
    return file.mode.startswith("I") or file.mode == "F"


def find_bit_depth(file: Image.Image) -> BitDepth:
    """Return the smallest depth, 8, 12 or 16, for a deep image; "auto" for floats from 0 to 1."""
    top = np.nanmax(np.asarray(file))  # `getextrema` fails on files in the other byte order
    if file.mode == "F" and top <= 1:
        return "auto"
    return 8 if top < 2**8 else 12 if top < 2**12 else 16


def became_unreadable(path: str, problem: object) -> DataError:
    """Return the error for an image file that could be read when the run began."""
    return DataError(
        f"{path}: this image was there when the run began and can no longer be read ({problem})."
        " Restore it and repeat the command with training.resume=true, or start a run without it."
    )


def map_threads(
    function: Callable[[S], T], items: Sequence[S], description: str, batch_size: int = BATCH_SIZE
) -> Iterable[T]:
    """Yield `function(item)` for each item in order, computed by one thread per core."""
    threads = joblib.Parallel(-1, prefer="threads", return_as="generator", batch_size=batch_size)
    found = threads(map(joblib.delayed(function), items))
    return show_progress(found, description, len(items))


def show_progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Yield items with a bar on a terminal or in a notebook; a file would get an empty line."""
    return track(items, description, total, transient=True, disable=not shows_bars())


def shows_bars() -> bool:
    """Return whether the console is a terminal or a notebook."""
    console = get_console()
    return console.is_terminal or console.is_jupyter


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's content, as `hash_files` does."""
    try:
        return _hash_file(path, *stat_file(path)[:2])
    except OSError as error:
        raise became_unreadable(path, error) from error


@lru_cache(maxsize=MAX_HASHED_FILES)
def _hash_file(path: str, size: int, mtime_ns: int) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


def _describe_problem(error: Exception, source: Source) -> str:
    """Return in a few words why decoding failed."""
    if isinstance(error, UnidentifiedImageError):
        size = len(source) if isinstance(source, bytes) else stat_file(os.fspath(source))[0]
        return "not an image" if size else "an empty file"
    if isinstance(error, OSError) and error.strerror:  # without the path, which is known
        return f"{type(error).__name__}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


def _to_8_bit(image: Image.Image, bit_depth: BitDepth) -> Image.Image:
    """Scale a deep image to 8 bits per pixel; Pillow would clip it."""
    by_mode = 1.0 if image.mode == "F" else 65535.0
    top = by_mode if bit_depth == "auto" else 2.0**bit_depth - 1
    values = np.nan_to_num(np.asarray(image, dtype=np.float32)) * np.float32(255 / top)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
