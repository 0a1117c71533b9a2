"""Find images that are the same, or look the same, so that no split separates them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import imagehash
import joblib
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from rich.progress import track
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from thawline.images import SPLITS, image_size, read_image
from thawline.screening import SAME_IMAGE

SIDE = 32  # px, of the grey pictures that are compared; smaller ones stay as they are
MOST_BITS = 16  # of 64 that perceptual hashes may differ in; 8 px images recompressed reach 14
MIRRORED = (False, True)
# Pixels of a pair must correlate so much. Of 1.6 million pairs of different 8 px digits five do;
# no pair of 397 photographs does by more than 0.82, and copies of photographs do by 0.998.
ALIKE = 0.985
ROUGHLY_ALIKE = 0.97  # already at `SIDE`, where both have the same size
ENLARGED = 0.9  # where one of the two is an enlargement
FILTERS = (
    Image.Resampling.BICUBIC,
    Image.Resampling.BILINEAR,
    Image.Resampling.LANCZOS,
    Image.Resampling.NEAREST,
)
BLOCK = 256  # images that are compared with all others at once
PAIR = ["sha256", "other_sha256", "distance", "kind"]
FOUND = ["path", "split", "label", "other_path", "other_split", "other_label", "distance", "kind"]


def find_pairs(images: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of images that look alike: resized, recompressed or mirrored.

    Pairs of similar perceptual hash (DCT, 64 bits) are compared pixel by pixel, since tiny images
    of different things have similar hashes too. Some of these have similar pixels as well: a pair
    is `uncertain` where one of the two has less than 32 px a side, and else `near`. (Two pairs of
    scikit-learn's 8 px digits are alike, and no two of 397 different photographs.)

    Args:
        images: path and sha256, the hash of the file's content; contents count once.

    Returns:
        sha256, other_sha256, distance (1 - correlation of the pixels) and kind, a row a pair.

    Raises:
        OSError: when an image cannot be read.
    """
    contents = images.drop_duplicates("sha256", ignore_index=True)
    pictures, *codes = _small_pictures(contents["path"].tolist())
    sure = np.array([min(picture.size) == SIDE for picture in pictures], dtype=bool)
    distances: dict[tuple[int, int], float] = {}
    for first, second, mirrored in _candidates(pictures, codes):
        picture = ImageOps.mirror(pictures[first]) if mirrored else pictures[first]
        distance = max(0.0, 1 - _correlation(picture, pictures[second]))
        if distance <= 1 - ALIKE:
            pair = first, second
            distances[pair] = min(distance, distances.get(pair, distance))
    codes_of = contents["sha256"].tolist()
    rows = [
        (codes_of[one], codes_of[two], distance, "near" if sure[[one, two]].all() else "uncertain")
        for (one, two), distance in distances.items()
    ]
    return pd.DataFrame(rows, columns=PAIR)


def group_alike(images: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the manifest with one `group` for all images that are the same or look the same.

    Groups that are there are joined, not torn apart. Images in different splits that the data
    brings are left to the leakage gate. Without any two that belong together nothing is changed.

    The name of a group does not depend on where the images lie: it is the first, as text, of the
    data's own names of its images, or else of their sha256. If it stands in several splits, the
    split is added.

    Args:
        images: path, sha256 and, if the data brings them, split and group.
        pairs: as `find_pairs` returns them; only those that are `near` count.
    """
    near = pairs[pairs["kind"] == "near"]
    split = images["split"] if "split" in images else pd.Series("", index=images.index)
    group = images["group"] if "group" in images else images["path"]
    split, group = split.astype("str"), group.astype("str")  # from Parquet they are categories
    ends, other_ends = ["group " + group], [split + " " + images["sha256"]]
    for name in split.unique():
        ends.append(name + " " + near["sha256"])
        other_ends.append(name + " " + near["other_sha256"])
    nodes, _ = pd.factorize(pd.concat([*ends, *other_ends]))
    one, two = np.split(nodes, 2)
    component = _components(nodes.max() + 1, one, two)[one[: len(images)]]
    if "group" in images:
        joined = group.groupby(component).transform("min")
        return images if joined.equals(group) else images.assign(group=joined)
    if len(np.unique(component)) == len(images):
        return images
    joined = images["sha256"].astype("str").groupby(component).transform("min")
    in_two_splits = split.groupby(joined).transform("nunique") > 1
    return images.assign(group=joined.mask(in_two_splits, joined + " " + split))


def find_in_two_splits(splits: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the images of val and test that are, or look like, one in a split before their own.

    Args:
        splits: the table of splits, with sha256.
        pairs: as `find_pairs` returns them.

    Returns:
        path, split, label, the same of the other image, distance and kind: `exact` where the two
        files have the same bytes, else that of the pair. One row per image, with the one it is
        most like. Pairs that count as the same image come first, the most alike first.
    """
    splits = splits.astype({"split": "str", "label": "str"})  # from Parquet they are categories
    codes = splits["sha256"].unique()
    same = pd.DataFrame({"sha256": codes, "other_sha256": codes, "distance": 0.0, "kind": "exact"})
    swapped = pairs.rename(columns={"sha256": "other_sha256", "other_sha256": "sha256"})
    others = splits.drop_duplicates(["sha256", "split"]).add_prefix("other_")
    both = pd.concat([same, *(table for table in (pairs, swapped) if len(table))])
    found = splits.merge(both, on="sha256").merge(others, on="other_sha256")
    rank = {name: number for number, name in enumerate(SPLITS)}
    found = found[found["split"].map(rank) > found["other_split"].map(rank)]
    found = found.assign(reported=~found["kind"].isin(SAME_IMAGE))  # must not hide a leak
    found = found.sort_values(["reported", "distance", "kind", "path", "other_path"])
    return found.drop_duplicates("path", ignore_index=True)[FOUND]


def _components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number (count,) of the connected component of each node."""
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _small_pictures(paths: Sequence[str]) -> tuple[list[Image.Image], np.ndarray, np.ndarray]:
    """Return every image in grey and small, and (N,) uint64: its hash, and its mirror image's."""
    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as pool:
        found = pool.map(_small_picture, paths)
        tracked = track(found, "Looking for duplicates", total=len(paths), transient=True)
        pictures, plain, mirrored = zip(*tracked, strict=True)
    return list(pictures), np.array(plain, np.uint64), np.array(mirrored, np.uint64)


def _small_picture(path: str) -> tuple[Image.Image, int, int]:
    """Return an image in grey, at most `SIDE` px a side, its hash, and that of its mirror image."""
    image = read_image(path, min(1.0, 2 * SIDE / min(image_size(path)))).convert("L")
    small = image.resize((min(SIDE, image.width), min(SIDE, image.height)), FILTERS[0])
    return small, _hash_code(small), _hash_code(ImageOps.mirror(small))


def _hash_code(picture: Image.Image) -> int:
    """Return the perceptual hash as a number of 64 bits."""
    return int(str(imagehash.phash(picture)), 16)


def _candidates(
    pictures: Sequence[Image.Image], codes: Sequence[np.ndarray]
) -> Iterator[tuple[int, int, bool]]:
    """Yield pairs that are roughly alike, and whether they are with the first mirrored."""
    plain = codes[False]
    grey = np.stack([_standardised(picture) for picture in pictures])
    sizes = np.array([picture.size for picture in pictures])
    starts = range(0, len(pictures), BLOCK)
    for start in track(starts, "Comparing images", len(starts), transient=True):
        for mirrored in MIRRORED:
            block = codes[mirrored][start : start + BLOCK]
            rows, columns = np.nonzero(
                np.bitwise_count(block[:, None] ^ plain[None, start + 1 :]) <= MOST_BITS
            )
            rows, columns = rows + start, columns + start + 1
            pairs = np.stack([rows, columns])[:, rows < columns]
            for first, second in np.array_split(pairs, pairs.shape[1] // BLOCK + 1, axis=1):
                ours = grey[first, :, ::-1] if mirrored else grey[first]
                alike = np.einsum("nij,nij->n", ours, grey[second])
                same_size = (sizes[first] == sizes[second]).all(axis=1)
                enough = alike >= np.where(same_size, ROUGHLY_ALIKE, ENLARGED)
                for one, two in zip(first[enough], second[enough], strict=True):
                    yield int(one), int(two), mirrored


def _correlation(first: Image.Image, second: Image.Image) -> float:
    """Return how far the pixels of two pictures go together, -1 to 1.

    The smaller is enlarged by every filter it may have been enlarged by.
    """
    small, large = sorted((first, second), key=lambda picture: picture.size)
    target = _standardised(large, large.size)
    filters = FILTERS if small.size != large.size else FILTERS[:1]
    enlarged = (_standardised(small, large.size, resampling) for resampling in filters)
    return max(float((pixels * target).sum()) for pixels in enlarged)


def _standardised(
    picture: Image.Image,
    size: tuple[int, int] = (SIDE, SIDE),
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Return pixels (height, width) float32 of mean 0 and norm 1; all 0 of a blank picture."""
    pixels = np.asarray(picture.resize(size, resampling), np.float32)
    pixels = pixels - pixels.mean()
    return pixels / max(float(np.linalg.norm(pixels)), 1.0)
