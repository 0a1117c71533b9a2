"""Find images that are the same, or look the same, so that no split separates them.

The coarse comparison finds the pairs whose pictures of 32 px look alike. That is enough for
photographs of different places. The images of a fixed camera all look alike, so wherever many
images are linked, a finer comparison at 128 px subtracts the background that they share: a copy has
the same noise as its original, another image has not.
"""

from __future__ import annotations

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
    find_components,
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
from thawline.data.screening import SAME_IMAGE
from thawline.data.splitting import SPLITS

MOST_BITS = 16  # of 64 that perceptual hashes may differ in; 8 px images recompressed reach 14
MIRRORED = (False, True)
ROUGHLY_ALIKE = 0.97  # already at `SIDE`, where both have the same size
ENLARGED = 0.9  # where one of the two is an enlargement
MAX_PENDING_PAIRS = 1_000_000  # pairs that are held before those that are not needed are dropped

FILTERS = (SMOOTH, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.NEAREST)
PAIR = ["sha256", "other_sha256", "distance", "kind"]
FOUND = ["path", "split", "label", "other_path", "other_split", "other_label", "distance", "kind"]


def find_pairs(images: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of images that look alike: resized, recompressed or mirrored.

    Pairs of similar perceptual hash (DCT, 64 bits) are compared pixel by pixel, since tiny images
    of different things have similar hashes too. Some of these have similar pixels as well: a pair
    is `uncertain` if one of the two has less than 32 px a side. (Two pairs of scikit-learn's 8 px
    digits are alike, and no two of 397 different photographs.)

    Other pairs are `similar` if the two have no class in common, and else `near`. But a finer
    comparison decides where `near` pairs link more than `MAX_UNCHECKED_GROUP` images, or where
    more than `MAX_SMALL_GROUP` images of any classes are linked by looking roughly alike. A pair
    then becomes `similar` unless one of these holds:

    - The pixels are practically equal, or those of the mirror image.
    - The residuals correlate, that is, what is left without the common background: the same noise
      and the same scratches.
    - The files differ in size or encoding, the pictures differ no more than copies do, and neither
      file is from a fixed camera. It is if other images of the group have its size and encoding.

    A part of the group that these pairs link, and that is small enough, keeps all its pairs.

    Time grows with the square of the number of linked images, memory in proportion to it: 5,000
    images take half a minute on two cores and 0.6 GB.

    Args:
        images: path, label and sha256, the hash of the file's content; contents count once, in all
            the classes that they are in.

    Returns:
        sha256, other_sha256, distance (1 - correlation of the pixels) and kind, one row per pair.
        Of `similar` pairs, which can be many, only those that are among the
        `MAX_SIMILAR_PER_IMAGE` closest of one of their images.

    Raises:
        OSError: when an image cannot be read.
    """
    contents = images.drop_duplicates("sha256", ignore_index=True)
    paths = contents["path"].tolist()
    pictures, *codes = _small_pictures(paths)
    gray = np.stack([standardize(picture) for picture in pictures])
    classes = Classes(images, contents["sha256"])
    sure = np.array([min(picture.size) == SIDE for picture in pictures], dtype=bool)
    uncertain: list[Pairs] = []
    near, similar = NO_PAIRS, NO_PAIRS
    linked = scene = np.arange(len(contents))
    for pairs in _coarse_pairs(pictures, gray, codes):
        both = sure[pairs.first] & sure[pairs.second]
        alike = pairs.distance <= 1 - MIN_CORRELATION
        shared = classes.shared(pairs.first, pairs.second)
        scene = join_groups(scene, pairs.take(both))
        linked = join_groups(linked, pairs.take(alike & both & shared))
        uncertain.append(pairs.take(alike & ~both))
        near = concatenate([near, pairs.take(alike & both & shared)])
        similar = concatenate([similar, pairs.take(alike & both & ~shared)])
        if len(near.first) > MAX_PENDING_PAIRS:
            near = near.take(~_is_large(_groups_to_check(linked, scene))[near.first])
        if len(similar.first) > MAX_PENDING_PAIRS:
            similar = closest(similar)
    group = _groups_to_check(linked, scene)
    near = near.take(~_is_large(group)[near.first])
    found = {"near": [near], "similar": [similar], "uncertain": uncertain}
    for members in iterate_groups(group):
        if len(members) > MAX_UNCHECKED_GROUP:
            images_of_group = read_fine([paths[idx] for idx in members], gray[members], members)
            kept, rejected = compare_finely(images_of_group, classes)
            found["near"].append(kept)
            found["similar"].append(rejected)
    found["similar"] = [closest(concatenate(found["similar"]))]
    return _as_table(found, contents["sha256"])


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
    component = find_components(nodes.max() + 1, one, two)[one[: len(images)]]
    if "group" in images:
        joined = group.groupby(component).transform("min")
        return images if joined.equals(group) else images.assign(group=joined)
    if len(np.unique(component)) == len(images):
        return images
    joined = images["sha256"].astype("str").groupby(component).transform("min")
    in_two_splits = split.groupby(joined).transform("nunique") > 1
    return images.assign(group=joined.mask(in_two_splits, joined + " " + split))


def find_cross_split_duplicates(splits: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
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


def _groups_to_check(linked: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """Return the group (N,) of each image: its scene if that has many images, else what it links.

    Args:
        linked: the group by pairs of one class that look alike.
        scene: the larger one by pairs of any classes that look roughly alike.
    """
    large = np.bincount(scene)[scene] > MAX_SMALL_GROUP
    return np.where(large, scene, len(scene) + linked)


def _is_large(group: np.ndarray) -> np.ndarray:
    """Return for each image (N,) whether its group is to be compared finely."""
    return np.bincount(group)[group] > MAX_UNCHECKED_GROUP


def _as_table(found: dict[str, list[Pairs]], codes: pd.Series) -> pd.DataFrame:
    """Return pairs of each kind as one table; those that are `near` are nothing else."""
    tables = [
        pd.DataFrame(pairs._asdict()).assign(kind=kind)
        for kind, parts in found.items()
        for pairs in parts
        if len(pairs.first)
    ]
    if not tables:
        return pd.DataFrame([], columns=PAIR)
    table = pd.concat(tables, ignore_index=True).sort_values(
        ["first", "second", "kind", "distance"]
    )
    table = table.drop_duplicates(["first", "second"], ignore_index=True)
    hashes = codes.to_numpy()
    return pd.DataFrame(
        {
            "sha256": hashes[table["first"]],
            "other_sha256": hashes[table["second"]],
            "distance": table["distance"].astype(np.float64),
            "kind": table["kind"],
        }
    )


def _small_pictures(paths: Sequence[str]) -> tuple[list[Image.Image], np.ndarray, np.ndarray]:
    """Return every image in gray and small, and (N,) uint64: its hash, and its mirror image's."""
    found = map_threads(_small_picture, paths, "Looking for duplicates")
    pictures, plain, mirrored = zip(*found, strict=True)
    return list(pictures), np.array(plain, np.uint64), np.array(mirrored, np.uint64)


def _small_picture(path: str) -> tuple[Image.Image, int, int]:
    """Return an image in gray, at most `SIDE` px a side, its hash, and that of its mirror image."""
    with open_image(path) as file:
        image = to_rgb(file, min(1.0, 2 * SIDE / min(file.size)), bit_depth=None).convert("L")
    small = image.resize((min(SIDE, image.width), min(SIDE, image.height)), SMOOTH)
    return small, _hash_code(small), _hash_code(ImageOps.mirror(small))


def _hash_code(picture: Image.Image) -> int:
    """Return the perceptual hash as a number of 64 bits."""
    return int(str(imagehash.phash(picture)), 16)


def _coarse_pairs(
    pictures: Sequence[Image.Image], gray: np.ndarray, codes: Sequence[np.ndarray]
) -> Iterator[Pairs]:
    """Yield pairs that may look alike, with the distance of their small pictures.

    Args:
        pictures: gray, at most `SIDE` px a side.
        gray: (N, SIDE, SIDE), the same standardized.
        codes: (N,) hashes of the pictures, and of their mirror images.
    """
    full = np.array([picture.size == (SIDE, SIDE) for picture in pictures], dtype=bool)
    for pairs, mirrored in _candidates(pictures, gray, codes):
        both = full[pairs.first] & full[pairs.second]
        distance = pairs.distance.copy()  # that of full pictures is exact
        for place in np.flatnonzero(~both):
            picture = pictures[pairs.first[place]]
            picture = ImageOps.mirror(picture) if mirrored else picture
            distance[place] = 1 - _correlation(picture, pictures[pairs.second[place]])
        enough = distance <= 1 - ROUGHLY_ALIKE
        if enough.any():
            yield pairs._replace(distance=distance.clip(min=0)).take(enough)


def _candidates(
    pictures: Sequence[Image.Image], gray: np.ndarray, codes: Sequence[np.ndarray]
) -> Iterator[tuple[Pairs, bool]]:
    """Yield pairs that are roughly alike, and whether they are with the first mirrored."""
    plain = codes[False]
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
            found = [NO_PAIRS]
            for first, second in np.array_split(pairs, pairs.shape[1] // BLOCK + 1, axis=1):
                ours = gray[first, :, ::-1] if mirrored else gray[first]
                alike = np.einsum("nij,nij->n", ours, gray[second])
                same_size = (sizes[first] == sizes[second]).all(axis=1)
                enough = alike >= np.where(same_size, ROUGHLY_ALIKE, ENLARGED)
                found.append(Pairs(first, second, 1 - alike).take(enough))
            yield concatenate(found), mirrored


def _correlation(first: Image.Image, second: Image.Image) -> float:
    """Return how far the pixels of two pictures go together, -1 to 1.

    The smaller is enlarged by every filter it may have been enlarged by.
    """
    small, large = sorted((first, second), key=lambda picture: picture.size)
    target = standardize(large, large.size)
    filters = FILTERS if small.size != large.size else FILTERS[:1]
    enlarged = (standardize(small, large.size, resampling) for resampling in filters)
    return max(float((pixels * target).sum()) for pixels in enlarged)
