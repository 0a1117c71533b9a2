"""Distinguish copies of an image from other images of the same fixed camera."""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from thawline.data.decoding import map_threads, open_image, to_rgb
from thawline.data.near_duplicates.pairs import (
    NO_PAIRS,
    closest,
    iterate_groups,
    join_groups,
    renumber,
    share_class,
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


class FineImages(NamedTuple):
    """The images of a large group."""

    pictures: np.ndarray  # (M, FINE_SIDE, FINE_SIDE) float16 of mean 0 and standard deviation 1
    settings: np.ndarray  # (M,) a number for the size and the encoding of the file
    gray: np.ndarray  # (M, SIDE, SIDE) float32 of mean 0 and norm 1
    has_class: csr_array  # (M, classes)

    def take(self, members: np.ndarray) -> Self:
        """Return the images at these indices."""
        return type(self)(*(part[members] for part in self))


def read_fine(paths: Sequence[str], gray: np.ndarray, has_class: csr_array) -> FineImages:
    """Decode the images of a large group at `FINE_SIDE`."""
    pictures, settings = zip(*map_threads(_fine_picture, paths, "Comparing finely"), strict=True)
    return FineImages(np.stack(pictures), pd.factorize(np.array(settings))[0], gray, has_class)


def _fine_picture(path: str) -> tuple[np.ndarray, str]:
    """Return a standardized gray image in float16, and the size and encoding of its file."""
    with open_image(path) as file:
        settings = f"{file.format} {file.mode} {file.size} {getattr(file, 'quantization', None)}"
        image = to_rgb(file, min(1.0, FINE_SIDE / min(file.size)), bit_depth=None).convert("L")
    picture = standardize(image, (FINE_SIDE, FINE_SIDE), SMOOTH)
    return (picture * FINE_SIDE).astype(np.float16), settings


def compare_finely(images: FineImages) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the pairs of one class that are the same image, and the closest of the others.

    Two images are the same if their pixels, or those of the mirror image, are practically equal; or
    if their residuals without the common background correlate: equal noise and scratches; or if
    size or encoding of the files differ, the pixels differ no more than those of copies, and
    neither file is from a fixed camera, which writes all images of the group alike.

    The comparison divides the group. In parts of at most `MAX_UNCHECKED_GROUP` images, all pairs
    that look alike are the same image. Larger parts, such as the images of two cameras, are
    compared again, each with its own background.
    """
    near, similar = [NO_PAIRS], [NO_PAIRS]
    pending = [np.arange(len(images.settings))]
    while pending:
        members = pending.pop()
        some = images.take(members)
        kept, rejected = _decide(some)
        similar.append(renumber(rejected, members))
        for part in iterate_groups(join_groups(np.arange(len(members)), kept), min_size=2):
            if len(part) == len(members):
                near.append(renumber(kept, members))
            elif len(part) > MAX_UNCHECKED_GROUP:
                pending.append(members[part])
            else:
                everyone = slice(0, len(part))
                pairs = _find_alike(some.take(part), everyone, everyone)
                near.append(renumber(pairs, members[part]))
    return pd.concat(near), pd.concat(similar)


def _decide(images: FineImages) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what `compare_finely` does, for one common background."""
    residuals = find_residuals(images.pictures)
    threshold = _residual_threshold(residuals)
    near, copies, similar = [NO_PAIRS], [NO_PAIRS], [NO_PAIRS]
    blocks = [slice(start, start + BLOCK) for start in range(0, len(residuals), BLOCK)]
    for rows, columns in combinations_with_replacement(blocks, 2):  # the upper triangle
        pairs = _find_alike(images, rows, columns)
        if pairs.empty:
            continue
        same = _product(residuals[rows], residuals[columns]) >= threshold
        for other in (images.pictures, images.pictures[:, :, ::-1]):
            products = _product(images.pictures[rows], other[columns])
            same |= 1 - products / FINE_SIDE**2 <= MAX_LOSSLESS_DISTANCE
        chosen = same[pairs["first"] - rows.start, pairs["second"] - columns.start]
        differ = images.settings[pairs["first"]] != images.settings[pairs["second"]]
        near.append(pairs[chosen])
        copies.append(pairs[differ & (pairs["distance"] <= MAX_COPY_DISTANCE)])
        similar.append(closest(pairs[~chosen]))
    different = pd.Series(join_groups(np.arange(len(residuals)), pd.concat(near)))
    shots = different.groupby(images.settings).transform("nunique").to_numpy()
    copy = pd.concat(copies)
    shots_of_pair = np.maximum(shots[copy["first"]], shots[copy["second"]])
    near.append(copy[shots_of_pair < MIN_CAMERA_IMAGES])
    return pd.concat(near), closest(pd.concat(similar))


def _find_alike(images: FineImages, rows: slice, columns: slice) -> pd.DataFrame:
    """Return the pairs of one class in a block of the matrix of all pairs that look alike."""
    gray = images.gray
    products = [_product(gray[rows], other[columns]) for other in (gray, gray[:, :, ::-1])]
    distance = (1 - np.maximum(*products)).clip(min=0)
    first, second = np.nonzero(distance <= 1 - MIN_CORRELATION)
    ends = {"first": first + rows.start, "second": second + columns.start}
    pairs = pd.DataFrame({**ends, "distance": distance[first, second]})
    pairs = pairs[pairs["first"] < pairs["second"]]
    return pairs[share_class(pairs, images.has_class)]


def _product(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the scalar products of the rows of two arrays, in float32."""
    ours, theirs = (part.astype(np.float32) for part in (ours, theirs))
    return ours.reshape(len(ours), -1) @ theirs.reshape(len(theirs), -1).T


def _residual_threshold(residuals: np.ndarray) -> float:
    """Return the correlation above which residuals are those of copies.

    In a large group, at most 1 or 2 % of the pairs are copies. If more residuals correlate, they
    still contain some background.
    """
    if len(residuals) <= MAX_SMALL_GROUP:
        return MIN_RESIDUAL_CORRELATION
    some = residuals[:: -(-len(residuals) // BLOCK)]
    products = _product(some, some)
    usual = np.quantile(products[np.triu_indices(len(some), 1)], USUAL_SHARE)
    bounds = MIN_RESIDUAL_CORRELATION, MAX_RESIDUAL_CORRELATION
    return float(np.clip(TIMES_USUAL_CORRELATION * usual, *bounds))
