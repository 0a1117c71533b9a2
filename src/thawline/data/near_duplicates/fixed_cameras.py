"""Distinguish copies of an image from other images of the same fixed camera."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import pandas as pd

from thawline.data.decoding import map_threads, open_image, to_rgb
from thawline.data.near_duplicates.pairs import (
    NO_PAIRS,
    Classes,
    Pairs,
    closest,
    concatenate,
    iterate_groups,
    join_groups,
)
from thawline.data.near_duplicates.thumbnails import (
    BLOCK,
    FINE_SIDE,
    MIN_CORRELATION,
    SMOOTH,
    find_residuals,
    standardize,
)

# The thresholds were chosen on simulated cameras: backgrounds from photographs to plain gray, 96 to
# 256 px, noise of 3 to 12 gray levels, light of +-15 %, shifts of +-2 px, PNG or JPEG files.
# In small groups, the background is indistinguishable from what copies share, and real groups are
# small: most magnetic tiles were photographed in 6 exposures.
MAX_UNCHECKED_GROUP = 8  # images
MAX_SMALL_GROUP = 24  # images, for which MIN_RESIDUAL_CORRELATION is enough
# 1 - correlation, at `FINE_SIDE`, of equal pixels saved without loss. Different images of the least
# noisy simulated camera have 1.2e-4.
MAX_LOSSLESS_DISTANCE = 2e-5
# 1 - correlation, at `SIDE`, of copies saved with other settings. On 100 held-out photographs with
# 20 copies each (quality 50 to 95, 60 to 100 % of the size, 90 to 110 % of the brightness), all
# copies of 99 are linked. With 1.5e-3, it would be 89.
MAX_COPY_DISTANCE = 3e-3
MIN_CAMERA_IMAGES = 3  # different images of one size and encoding that make a fixed camera
# Residuals of copies must correlate twice as much as those of 98 % of all pairs, within bounds. On
# 108 held-out simulated cameras, 4 have a pair of different images that exceeds this, and JPEG
# copies of quality 95, 85 and 70 exceed it in 100, 96 and 82 %.
USUAL_SHARE = 0.98
TIMES_USUAL_CORRELATION = 2
MIN_RESIDUAL_CORRELATION, MAX_RESIDUAL_CORRELATION = 0.35, 0.85


class _Fine(NamedTuple):
    """The images of a large group."""

    pictures: np.ndarray  # (M, FINE_SIDE, FINE_SIDE) float16 of mean 0 and standard deviation 1
    gray: np.ndarray  # (M, SIDE, SIDE) float32 of mean 0 and norm 1
    settings: np.ndarray  # (M,) a number for the size and the encoding of the file
    number: np.ndarray  # (M,) index among all images

    def take(self, members: np.ndarray) -> Self:
        """Return the images at these indices."""
        return type(self)(*(part[members] for part in self))


def read_fine(paths: Sequence[str], gray: np.ndarray, number: np.ndarray) -> _Fine:
    """Decode the images of a large group at `FINE_SIDE`."""
    found = map_threads(_fine_picture, paths, "Comparing finely")
    pictures, settings = zip(*found, strict=True)
    return _Fine(np.stack(pictures), gray, pd.factorize(pd.Series(settings))[0], number)


def _fine_picture(path: str) -> tuple[np.ndarray, str]:
    """Return a standardized gray image in float16, and the size and encoding of its file."""
    with open_image(path) as file:
        settings = f"{file.format} {file.mode} {file.size} {getattr(file, 'quantization', None)}"
        image = to_rgb(file, min(1.0, FINE_SIDE / min(file.size)), bit_depth=None).convert("L")
    picture = standardize(image, (FINE_SIDE, FINE_SIDE), SMOOTH)
    return (picture * FINE_SIDE).astype(np.float16), settings


def compare_finely(images: _Fine, classes: Classes) -> tuple[Pairs, Pairs]:
    """Return the pairs of one class that are the same image, and the closest of the others.

    The comparison divides the group. In parts of at most `MAX_UNCHECKED_GROUP` images, all pairs
    that look alike are the same image. Larger parts, such as the images of two cameras, are
    compared again, each with its own background.
    """
    near, similar = [NO_PAIRS], [NO_PAIRS]
    pending = [np.arange(len(images.number))]
    while pending:
        members = pending.pop()
        some = images.take(members)
        kept, rejected = _decide(some, classes)
        similar.append(rejected.renumber(some.number))
        for part in iterate_groups(join_groups(np.arange(len(members)), kept)):
            if len(part) == len(members):
                near.append(kept.renumber(some.number))
            elif len(part) > MAX_UNCHECKED_GROUP:
                pending.append(members[part])
            else:
                everyone = slice(0, len(part))
                pairs = _alike(some.take(part), classes, everyone, everyone, 1 - MIN_CORRELATION)
                near.append(pairs.renumber(some.number[part]))
    return concatenate(near), concatenate(similar)


def _decide(images: _Fine, classes: Classes) -> tuple[Pairs, Pairs]:
    """Return what `compare_finely` does, as indices into `images`, for one common background."""
    residuals = find_residuals(images.pictures)
    threshold = _residual_threshold(residuals)
    near, similar = [NO_PAIRS], [NO_PAIRS]
    for rows, columns in _tiles(len(residuals)):
        pairs = _alike(images, classes, rows, columns, 1 - MIN_CORRELATION)
        if not len(pairs.first):
            continue
        same = _product(residuals, residuals, rows, columns) >= threshold
        for other in (images.pictures, images.pictures[:, :, ::-1]):
            products = _product(images.pictures, other, rows, columns)
            same |= 1 - products / FINE_SIDE**2 <= MAX_LOSSLESS_DISTANCE
        chosen = same[pairs.first - rows.start, pairs.second - columns.start]
        near.append(pairs.take(chosen))
        similar.append(closest(pairs.take(~chosen)))
    near.append(_copies_of_other_settings(images, classes, concatenate(near)))
    return concatenate(near), closest(concatenate(similar))


def _copies_of_other_settings(images: _Fine, classes: Classes, near: Pairs) -> Pairs:
    """Return pairs that differ as copies do, except those of a fixed camera.

    Noise and compression look alike. But a camera writes images of one size and encoding, and
    copies mostly differ in these. `near` pairs are known to be the same image.
    """
    cluster = join_groups(np.arange(len(images.number)), near)
    shots = pd.Series(cluster).groupby(images.settings).transform("nunique")
    others = np.flatnonzero(shots < MIN_CAMERA_IMAGES)
    some = images.take(others)
    found = [NO_PAIRS]
    for rows, columns in _tiles(len(others)):
        pairs = _alike(some, classes, rows, columns, MAX_COPY_DISTANCE)
        found.append(pairs.take(some.settings[pairs.first] != some.settings[pairs.second]))
    return concatenate(found).renumber(others)


def _alike(images: _Fine, classes: Classes, rows: slice, columns: slice, limit: float) -> Pairs:
    """Return the pairs of one class in a block of the matrix of all pairs that are this close."""
    gray = images.gray
    products = [_product(gray, other, rows, columns) for other in (gray, gray[:, :, ::-1])]
    distance = (1 - np.maximum(*products)).clip(min=0)
    first, second = np.nonzero(distance <= limit)
    pairs = Pairs(first + rows.start, second + columns.start, distance[first, second])
    pairs = pairs.take(pairs.first < pairs.second)
    return pairs.take(classes.shared(pairs.renumber(images.number)))


def _tiles(count: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of the blocks of the upper triangle of a square matrix."""
    starts = range(0, count, BLOCK)
    for row in starts:
        for column in starts[row // BLOCK :]:
            yield slice(row, row + BLOCK), slice(column, column + BLOCK)


def _product(one: np.ndarray, two: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Return the scalar products of rows of two arrays, in float32."""
    ours, theirs = (part.astype(np.float32) for part in (one[rows], two[columns]))
    return ours.reshape(len(ours), -1) @ theirs.reshape(len(theirs), -1).T


def _residual_threshold(residuals: np.ndarray) -> float:
    """Return the correlation above which residuals are those of copies.

    In a large group, at most 1 or 2 % of the pairs are copies. If more residuals correlate, they
    still contain some background.
    """
    if len(residuals) <= MAX_SMALL_GROUP:
        return MIN_RESIDUAL_CORRELATION
    some = residuals[:: -(-len(residuals) // BLOCK)]
    everyone = slice(0, len(some))
    products = _product(some, some, everyone, everyone)
    usual = float(np.quantile(products[np.triu_indices(len(some), 1)], USUAL_SHARE))
    lowest, highest = MIN_RESIDUAL_CORRELATION, MAX_RESIDUAL_CORRELATION
    return min(max(TIMES_USUAL_CORRELATION * usual, lowest), highest)
