"""Find images that look alike.

The coarse comparison finds pairs that look alike at 32 px, which is enough for photographs of
different places. Images of a fixed camera all look alike. Where many images are linked, a finer
comparison at 128 px therefore subtracts their common background: a copy has the same noise as its
original, and a different image does not.
"""

from collections.abc import Iterator, Sequence

import imagehash
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from rich.progress import track

from thawline.data.decoding import map_threads, open_image, to_rgb
from thawline.data.near_duplicates.fixed_cameras import (
    MAX_SMALL_GROUP,
    MAX_UNCHECKED_GROUP,
    compare_finely,
    read_fine,
)
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
    MIN_CORRELATION,
    SIDE,
    SMOOTH,
    standardize,
)

MAX_HASH_DISTANCE = 16  # of 64 bits; recompressed 8 px images reach 14
MIN_ROUGH_CORRELATION = 0.97  # at `SIDE`, of images of the same size
MIN_ENLARGED_CORRELATION = 0.9  # at `SIDE`, of an image and its enlargement
MAX_PENDING_PAIRS = 1_000_000  # in memory, before those that are not needed are dropped
PAIR = ["sha256", "other_sha256", "distance", "kind"]
FILTERS = (SMOOTH, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.NEAREST)


def find_pairs(images: pd.DataFrame) -> pd.DataFrame:
    """Find pairs of images that look alike: resized, recompressed or mirrored copies.

    Images with similar perceptual hashes (DCT, 64 bits) are compared pixel by pixel, because tiny
    images of different things also have similar hashes. A pair with similar pixels is `uncertain`
    if one image has less than 32 px per side. (Two pairs of scikit-learn's 8 px digits look alike,
    and no two of 397 different photographs do.)

    Other pairs are `near` if the images have a class in common, and `similar` if not. A finer
    comparison decides if `near` pairs link more than `MAX_UNCHECKED_GROUP` images, or if more than
    `MAX_SMALL_GROUP` images of any class look roughly alike. A pair then becomes `similar` unless:

    - the pixels, or those of the mirror image, are practically equal; or
    - the residuals without the common background correlate: equal noise and scratches; or
    - size or encoding of the files differ, the pixels differ no more than those of copies, and
      neither file is from a fixed camera, which writes all images of the group alike.

    A small part of the group that these pairs link keeps all of its pairs. 5,000 linked images take
    half a minute on two cores and 0.6 GB; time grows with the square of their number.

    Args:
        images: path, label and sha256. Each content counts once, in all of its classes.

    Returns:
        One row per pair: sha256, other_sha256, distance (1 - correlation of the pixels) and kind.
        Of `similar` pairs, only the `MAX_SIMILAR_PER_IMAGE` closest of each image are kept.

    Raises:
        DataError: if an image cannot be decoded.
    """
    contents = images.drop_duplicates("sha256", ignore_index=True)
    paths = contents["path"].tolist()
    found = map_threads(_small_picture, paths, "Looking for duplicates")
    pictures, plain, mirrored = zip(*found, strict=True)
    codes = np.array([plain, mirrored], np.uint64)
    gray = np.stack([standardize(picture) for picture in pictures])
    large = np.array([min(picture.size) == SIDE for picture in pictures])
    classes = Classes(images, contents["sha256"])
    kinds = dict.fromkeys(("near", "similar", "uncertain"), NO_PAIRS)
    linked = scene = np.arange(len(contents))
    for pairs in _coarse_pairs(pictures, gray, codes):
        sure = large[pairs.first] & large[pairs.second]
        shared = classes.shared(pairs)
        alike = pairs.distance <= 1 - MIN_CORRELATION
        scene = join_groups(scene, pairs.take(sure))
        linked = join_groups(linked, pairs.take(alike & sure & shared))
        masks = {"near": sure & shared, "similar": sure & ~shared, "uncertain": ~sure}
        for kind, mask in masks.items():
            kinds[kind] = concatenate([kinds[kind], pairs.take(alike & mask)])
        if len(kinds["near"].first) > MAX_PENDING_PAIRS:
            kinds["near"] = _unchecked(kinds["near"], _groups_to_check(linked, scene))
        if len(kinds["similar"].first) > MAX_PENDING_PAIRS:
            kinds["similar"] = closest(kinds["similar"])
    group = _groups_to_check(linked, scene)
    near, similar = [_unchecked(kinds["near"], group)], [kinds["similar"]]
    for members in iterate_groups(group):
        if len(members) > MAX_UNCHECKED_GROUP:
            images_of_group = read_fine([paths[idx] for idx in members], gray[members], members)
            kept, rejected = compare_finely(images_of_group, classes)
            near.append(kept)
            similar.append(rejected)
    kinds |= {"near": concatenate(near), "similar": closest(concatenate(similar))}
    return _as_table(kinds, contents["sha256"].to_numpy())


def _groups_to_check(linked: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """Return the group (N,) of each image: its scene if that is large, else what it is linked to.

    Pairs of one class that look alike are linked; pairs that look roughly alike form a scene.
    """
    is_large = np.bincount(scene)[scene] > MAX_SMALL_GROUP
    return np.where(is_large, scene, len(scene) + linked)


def _unchecked(pairs: Pairs, group: np.ndarray) -> Pairs:
    """Return the pairs whose group is too small for the finer comparison."""
    return pairs.take(np.bincount(group)[group[pairs.first]] <= MAX_UNCHECKED_GROUP)


def _as_table(kinds: dict[str, Pairs], codes: np.ndarray) -> pd.DataFrame:
    """Return pairs of all kinds as one table; a pair that is `near` has no other kind."""
    tables = [pd.DataFrame(pairs._asdict()).assign(kind=kind) for kind, pairs in kinds.items()]
    table = pd.concat(tables).sort_values(["first", "second", "kind", "distance"])
    table = table.drop_duplicates(["first", "second"], ignore_index=True)
    table.insert(0, "sha256", codes[table.pop("first")])
    table.insert(1, "other_sha256", codes[table.pop("second")])
    return table.astype({"distance": np.float64})


def _small_picture(path: str) -> tuple[Image.Image, int, int]:
    """Return a small gray image, its hash, and the hash of its mirror image."""
    with open_image(path) as file:
        image = to_rgb(file, min(1.0, 2 * SIDE / min(file.size)), bit_depth=None).convert("L")
    small = image.resize((min(SIDE, image.width), min(SIDE, image.height)), SMOOTH)
    return small, _hash_code(small), _hash_code(ImageOps.mirror(small))


def _hash_code(picture: Image.Image) -> int:
    """Return the perceptual hash as a number of 64 bits."""
    return int(str(imagehash.phash(picture)), 16)


def _coarse_pairs(
    pictures: Sequence[Image.Image], gray: np.ndarray, codes: np.ndarray
) -> Iterator[Pairs]:
    """Yield pairs that look roughly alike, with the distance of their small images."""
    full = np.array([picture.size == (SIDE, SIDE) for picture in pictures])
    for pairs, mirrored in _candidates(pictures, gray, codes):
        for place in np.flatnonzero(~(full[pairs.first] & full[pairs.second])):
            picture = pictures[pairs.first[place]]
            picture = ImageOps.mirror(picture) if mirrored else picture
            pairs.distance[place] = 1 - _correlation(picture, pictures[pairs.second[place]])
        np.maximum(pairs.distance, 0, out=pairs.distance)
        yield pairs.take(pairs.distance <= 1 - MIN_ROUGH_CORRELATION)


def _candidates(
    pictures: Sequence[Image.Image], gray: np.ndarray, codes: np.ndarray
) -> Iterator[tuple[Pairs, bool]]:
    """Yield pairs that may look alike, and whether the first image is mirrored.

    `gray` (N, SIDE, SIDE) is standardized; `codes` (2, N) are hashes of images and mirror images.
    """
    sizes = np.array([picture.size for picture in pictures])
    starts = range(0, len(pictures), BLOCK)
    for start in track(starts, "Comparing images", len(starts), transient=True):
        for mirrored in (False, True):
            block = codes[int(mirrored), start : start + BLOCK, None]
            distance = np.bitwise_count(block ^ codes[0, start + 1 :])
            rows, columns = np.nonzero(np.triu(distance <= MAX_HASH_DISTANCE))
            found = [NO_PAIRS]
            for part in range(0, len(rows), BLOCK):
                first = rows[part : part + BLOCK] + start
                second = columns[part : part + BLOCK] + start + 1
                ours = gray[first, :, ::-1] if mirrored else gray[first]
                alike = np.einsum("nij,nij->n", ours, gray[second])
                same_size = (sizes[first] == sizes[second]).all(axis=1)
                lowest = np.where(same_size, MIN_ROUGH_CORRELATION, MIN_ENLARGED_CORRELATION)
                found.append(Pairs(first, second, 1 - alike).take(alike >= lowest))
            yield concatenate(found), mirrored


def _correlation(first: Image.Image, second: Image.Image) -> float:
    """Return the best correlation, -1 to 1, with the smaller image enlarged by common filters."""
    small, large = sorted((first, second), key=lambda picture: picture.size)
    target = standardize(large, large.size)
    filters = FILTERS if small.size != large.size else FILTERS[:1]
    enlarged = (standardize(small, large.size, resampling) for resampling in filters)
    return max(float((pixels * target).sum()) for pixels in enlarged)
