"""Find images that look alike.

The coarse comparison finds pairs that look alike at 32 px, which is enough for photographs of
different places. Images of a fixed camera all look alike. Where many images are linked, a finer
comparison at 128 px therefore subtracts their common background: a copy has the same noise as its
original, and a different image does not.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import imagehash
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from scipy.sparse import coo_array

from thawline.data.decoding import map_threads, open_image, to_rgb
from thawline.data.near_duplicates.fixed_cameras import (
    MAX_SMALL_GROUP,
    MAX_UNCHECKED_GROUP,
    compare_finely,
    read_fine,
)
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
    MIN_CORRELATION,
    SIDE,
    SMOOTH,
    standardize,
)

MAX_HASH_DISTANCE = 16  # of 64 bits; recompressed 8 px images reach 14
MIN_ROUGH_CORRELATION = 0.97  # at `SIDE`, of images of the same size
MIN_ENLARGED_CORRELATION = 0.9  # at `SIDE`, of an image and its enlargement
PAIR = ["sha256", "other_sha256", "distance", "kind"]
FILTERS = (SMOOTH, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.NEAREST)


def find_pairs(images: pd.DataFrame) -> pd.DataFrame:
    """Find pairs of images that look alike: resized, recompressed or mirrored copies.

    Images with similar perceptual hashes (DCT, 64 bits) are compared pixel by pixel, because tiny
    images of different things also have similar hashes. A pair with similar pixels is `uncertain`
    if one image has less than 32 px per side. Other pairs are `near` if the images have a class in
    common, and `similar` if not.

    A finer comparison decides if `near` pairs link more than `MAX_UNCHECKED_GROUP` images, or if
    more than `MAX_SMALL_GROUP` images of any class look roughly alike. A pair then becomes
    `similar` unless `fixed_cameras` finds it to be the same image. 5,000 linked images take half a
    minute on two cores and 0.6 GB; time grows with the square of their number.

    `images` has path, label and sha256. Each content counts once, in all of its classes.

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
    gray = np.stack([standardize(picture) for picture in pictures])
    content, label = (pd.factorize(images[name])[0] for name in ("sha256", "label"))
    has_class = coo_array((np.ones(len(images), np.int32), (content, label))).tocsr()
    near = similar = uncertain = NO_PAIRS
    linked = scene = np.arange(len(contents))
    for rough in _rough_pairs(pictures, gray, np.array([plain, mirrored], np.uint64)):
        scene = join_groups(scene, rough[rough["sure"]])
        pairs = rough[rough["distance"] <= 1 - MIN_CORRELATION]
        sure, shared = pairs.pop("sure"), share_class(pairs, has_class)
        linked = join_groups(linked, pairs[sure & shared])
        group = _groups(linked, scene)
        near = pd.concat([near, pairs[sure & shared]])
        near = near[np.bincount(group)[group[near["first"]]] <= MAX_UNCHECKED_GROUP]
        similar = closest(pd.concat([similar, pairs[sure & ~shared]]))
        uncertain = pd.concat([uncertain, pairs[~sure]])
    for members in iterate_groups(_groups(linked, scene), MAX_UNCHECKED_GROUP + 1):
        some = read_fine([paths[idx] for idx in members], gray[members], has_class[members])
        kept, rejected = (renumber(pairs, members) for pairs in compare_finely(some))
        near, similar = pd.concat([near, kept]), pd.concat([similar, rejected])
    kinds = {"near": near, "similar": closest(similar), "uncertain": uncertain}
    table = pd.concat([pairs.assign(kind=kind) for kind, pairs in kinds.items()])
    table = table.sort_values(["first", "second", "kind", "distance"])  # near hides other kinds
    table = table.drop_duplicates(["first", "second"], ignore_index=True)
    codes = contents["sha256"].to_numpy()
    ends = {"sha256": codes[table["first"]], "other_sha256": codes[table["second"]]}
    return table.assign(**ends).astype({"distance": np.float64})[PAIR]


def _groups(linked: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """Return the group (N,) of each image: its scene if that is large, else what it is linked to.

    Pairs of one class that look alike are linked; pairs that look roughly alike form a scene.
    """
    is_large = np.bincount(scene)[scene] > MAX_SMALL_GROUP
    return np.where(is_large, scene, len(scene) + linked)


def _small_picture(path: str) -> tuple[Image.Image, int, int]:
    """Return a small gray image, its hash, and the hash of its mirror image."""
    with open_image(path) as file:
        image = to_rgb(file, min(1.0, 2 * SIDE / min(file.size)), bit_depth=None).convert("L")
    small = image.resize((min(SIDE, image.width), min(SIDE, image.height)), SMOOTH)
    return small, _hash_code(small), _hash_code(ImageOps.mirror(small))


def _hash_code(picture: Image.Image) -> int:
    """Return the perceptual hash as a number of 64 bits."""
    return int(str(imagehash.phash(picture)), 16)


def _rough_pairs(
    pictures: Sequence[Image.Image], gray: np.ndarray, codes: np.ndarray
) -> Iterator[pd.DataFrame]:
    """Yield tables of pairs that look roughly alike; `sure` are those of two large images.

    `gray` (N, SIDE, SIDE) is standardized; `codes` (2, N) are hashes of images and mirror images.
    """
    sizes = np.array([picture.size for picture in pictures])
    is_large = (sizes == SIDE).all(axis=1)

    def compare(block_of: tuple[int, bool]) -> pd.DataFrame:
        """Return the pairs of a block of images, or of their mirror images, with later ones."""
        start, mirrored = block_of
        block = codes[int(mirrored), start : start + BLOCK]
        rows, columns = _close_hashes(block, codes[0, start + 1 :])
        is_later = columns >= rows
        first, second = rows[is_later] + start, columns[is_later] + start + 1
        alike = np.empty(len(first), np.float32)
        for part in (slice(begin, begin + BLOCK) for begin in range(0, len(first), BLOCK)):
            ours = gray[first[part], :, ::-1] if mirrored else gray[first[part]]
            alike[part] = np.einsum("nij,nij->n", ours, gray[second[part]])
        same_size = (sizes[first] == sizes[second]).all(axis=1)
        found = alike >= np.where(same_size, MIN_ROUGH_CORRELATION, MIN_ENLARGED_CORRELATION)
        sure, distance = is_large[first] & is_large[second], 1 - alike
        for idx in np.flatnonzero(found & ~sure):
            picture = pictures[first[idx]]
            picture = ImageOps.mirror(picture) if mirrored else picture
            distance[idx] = 1 - _correlation(picture, pictures[second[idx]])
        found &= distance <= 1 - MIN_ROUGH_CORRELATION
        pairs = {"first": first, "second": second, "distance": distance.clip(min=0)}
        return pd.DataFrame({**pairs, "sure": sure})[found]

    blocks = list(product(range(0, len(pictures), BLOCK), (False, True)))
    for pairs in map_threads(compare, blocks, "Comparing images", batch_size=1):
        if len(pairs):
            yield pairs


def _close_hashes(codes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the pairs whose hashes are close, ordered by both.

    They are compared in squares that fit into a processor's cache, which is four times as fast.
    """
    found = [np.zeros((2, 0), np.int64)]
    for start in range(0, len(others), BLOCK):
        square = np.bitwise_count(codes[:, None] ^ others[start : start + BLOCK])
        close = np.flatnonzero(square <= MAX_HASH_DISTANCE)
        rows, columns = np.divmod(close, square.shape[1])
        found.append(np.stack([rows, columns + start]))
    rows, columns = np.concatenate(found, axis=1)
    order = np.lexsort((columns, rows))
    return rows[order], columns[order]


def _correlation(first: Image.Image, second: Image.Image) -> float:
    """Return the best correlation, -1 to 1, with the smaller image enlarged by common filters."""
    small, large = sorted((first, second), key=lambda picture: picture.size)
    target = standardize(large, large.size)
    filters = FILTERS if small.size != large.size else FILTERS[:1]
    enlarged = (standardize(small, large.size, resampling) for resampling in filters)
    return max(float((pixels * target).sum()) for pixels in enlarged)
