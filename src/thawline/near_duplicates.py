"""Find images that are the same, or look the same, so that no split separates them.

The coarse comparison finds the pairs whose pictures of 32 px look alike. That is enough for
photographs of different places. The images of a fixed camera all look alike, so wherever many
images are linked, a finer comparison at 128 px subtracts the background that they share: a copy has
the same noise as its original, another image has not.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import imagehash
import joblib
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from rich.progress import track
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from thawline.images import FORMATS, SPLITS, image_size, read_bytes, read_image, to_rgb
from thawline.screening import SAME_IMAGE

SIDE = 32  # px, of the gray pictures that are compared; smaller ones stay as they are
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
MAX_PENDING_PAIRS = 1_000_000  # pairs that are held before those that are not needed are dropped
MAX_SIMILAR_PER_IMAGE = 5  # pairs of kind `similar` that are reported for an image

# The finer comparison. Simulated cameras have backgrounds from photographs to plain gray, 96 to
# 256 px, noise of 3 to 12 gray levels, light of +-15 %, shifts of +-2 px, and write PNG or JPEG.
# Among few images, the background cannot be told from what copies share, and real groups are small:
# most magnetic tiles were photographed in 6 exposures.
MAX_UNCHECKED_GROUP = 8  # images
MAX_SMALL_GROUP = 24  # images, such as a few tiles; MIN_RESIDUAL_CORRELATION is enough for these
FINE_SIDE = 128  # px; in float16, 33 kB per picture and 25 kB per residual
MARGIN = 8  # px that pictures may be shifted by against each other, and that are cut off for it
TAPER = 4  # px of the margin in which pictures fade out
MAX_FREQUENCY = 0.35  # cycles per px that residuals keep, of the 0.5 that pixels can show
KERNEL_RADIUS = 3  # px that the background of one image may be shifted or blurred by besides
PATCH = 8  # px; each patch of a residual has the same weight, however strong a defect is
# 1 - correlation, at `FINE_SIDE`, of the same pixels saved without loss. Different images of the
# least noisy of the simulated cameras have 1.2e-4.
SAME_PIXELS = 2e-5
# 1 - correlation, at `SIDE`, of copies saved with other settings. Of 100 photographs, other than
# those that this was chosen on, 20 copies each were made at quality 50 to 95, 60 to 100 % of the
# size and 90 to 110 % of the brightness: all copies of 99 are linked. With 1.5e-3 it would be 89.
SAME_PHOTOGRAPH = 3e-3
MIN_CAMERA_IMAGES = 3  # different images of one size and encoding that make a fixed camera
# Residuals of copies must correlate twice as much as 98 % of all pairs do, within bounds. This was
# chosen on other simulated cameras than these 108, of which 4 have a pair of different images that
# does. JPEG copies of quality 95, 85 and 70 do in 100, 96 and 82 % of them.
USUAL_SHARE = 0.98
TIMES_USUAL_CORRELATION = 2
MIN_RESIDUAL_CORRELATION, MAX_RESIDUAL_CORRELATION = 0.35, 0.85
PAIR = ["sha256", "other_sha256", "distance", "kind"]
FOUND = ["path", "split", "label", "other_path", "other_split", "other_label", "distance", "kind"]


class _Pairs(NamedTuple):
    """Pairs of images by their numbers, each (P,)."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray

    def take(self, chosen: np.ndarray) -> _Pairs:
        """Return the pairs at these places, or where the mask is true."""
        return _Pairs(*(column[chosen] for column in self))


NO_PAIRS = _Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


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
    gray = np.stack([_standardized(picture) for picture in pictures])
    classes = _Classes(images, contents["sha256"])
    sure = np.array([min(picture.size) == SIDE for picture in pictures], dtype=bool)
    uncertain: list[_Pairs] = []
    near, similar = NO_PAIRS, NO_PAIRS
    linked = scene = np.arange(len(contents))
    for pairs in _coarse_pairs(pictures, gray, codes):
        both = sure[pairs.first] & sure[pairs.second]
        alike = pairs.distance <= 1 - ALIKE
        shared = classes.shared(pairs.first, pairs.second)
        scene = _join(scene, pairs.take(both))
        linked = _join(linked, pairs.take(alike & both & shared))
        uncertain.append(pairs.take(alike & ~both))
        near = _concatenate([near, pairs.take(alike & both & shared)])
        similar = _concatenate([similar, pairs.take(alike & both & ~shared)])
        if len(near.first) > MAX_PENDING_PAIRS:
            near = near.take(~_is_large(_groups_to_check(linked, scene))[near.first])
        if len(similar.first) > MAX_PENDING_PAIRS:
            similar = _closest(similar)
    group = _groups_to_check(linked, scene)
    near = near.take(~_is_large(group)[near.first])
    found = {"near": [near], "similar": [similar], "uncertain": uncertain}
    for members in _groups(group):
        if len(members) > MAX_UNCHECKED_GROUP:
            images_of_group = _read_fine([paths[idx] for idx in members], gray[members], members)
            kept, rejected = _compare_finely(images_of_group, classes)
            found["near"].append(kept)
            found["similar"].append(rejected)
    found["similar"] = [_closest(_concatenate(found["similar"]))]
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


class _Classes:
    """Which contents share a class."""

    def __init__(self, images: pd.DataFrame, contents: pd.Series) -> None:
        """Collect the classes of each content; nearly all contents have one."""
        number = pd.Index(contents).get_indexer(images["sha256"])
        label, _ = pd.factorize(images["label"])
        places = pd.DataFrame({"number": number, "label": label}).drop_duplicates()
        several = places[places["number"].duplicated(keep=False)]
        self.label = np.zeros(len(contents), np.int64)
        self.label[places["number"]] = places["label"]
        self.in_several = np.zeros(len(contents), bool)
        self.in_several[several["number"]] = True
        self.labels: dict[int, set[int]] = {}
        for one, its_label in several.itertuples(index=False):
            self.labels.setdefault(one, set()).add(its_label)

    def shared(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return for pairs of contents, by their numbers, whether any class is the same (P,)."""
        same = self.label[first] == self.label[second]
        unclear = ~same & (self.in_several[first] | self.in_several[second])
        for place in np.flatnonzero(unclear):
            one, two = (self._labels_of(int(end[place])) for end in (first, second))
            same[place] = not one.isdisjoint(two)
        return same

    def _labels_of(self, number: int) -> set[int]:
        return self.labels.get(number, {int(self.label[number])})


def _components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number (count,) of the connected component of each node."""
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _concatenate(parts: Iterable[_Pairs]) -> _Pairs:
    return _Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _renumber(pairs: _Pairs, number: np.ndarray) -> _Pairs:
    """Return the pairs with other numbers of their images, in the same order."""
    return pairs._replace(first=number[pairs.first], second=number[pairs.second])


def _join(group: np.ndarray, pairs: _Pairs) -> np.ndarray:
    """Return the group (N,) of each image after those of the pairs are joined."""
    if not len(pairs.first):
        return group
    _, representative = np.unique(group, return_index=True)
    everyone = np.arange(len(group))
    first = np.concatenate([pairs.first, everyone])
    return _components(len(group), first, np.concatenate([pairs.second, representative[group]]))


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


def _groups(group: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the members of each group of two or more images."""
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.cumsum(np.bincount(group))[:-1]):
        if len(members) > 1:
            yield members


def _closest(pairs: _Pairs) -> _Pairs:
    """Return the pairs that are among the `MAX_SIMILAR_PER_IMAGE` closest of one of the two."""
    ends = np.concatenate([pairs.first, pairs.second])
    order = np.lexsort((np.tile(pairs.distance, 2), ends))
    starts = np.flatnonzero(np.diff(ends[order], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    rank = np.arange(len(order)) - np.repeat(starts, lengths)
    chosen = order[rank < MAX_SIMILAR_PER_IMAGE] % max(1, len(pairs.first))
    return pairs.take(np.unique(chosen))


def _as_table(found: dict[str, list[_Pairs]], codes: pd.Series) -> pd.DataFrame:
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
    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as pool:
        found = pool.map(_small_picture, paths)
        tracked = track(found, "Looking for duplicates", total=len(paths), transient=True)
        pictures, plain, mirrored = zip(*tracked, strict=True)
    return list(pictures), np.array(plain, np.uint64), np.array(mirrored, np.uint64)


def _small_picture(path: str) -> tuple[Image.Image, int, int]:
    """Return an image in gray, at most `SIDE` px a side, its hash, and that of its mirror image."""
    image = read_image(path, min(1.0, 2 * SIDE / min(image_size(path)))).convert("L")
    small = image.resize((min(SIDE, image.width), min(SIDE, image.height)), FILTERS[0])
    return small, _hash_code(small), _hash_code(ImageOps.mirror(small))


def _hash_code(picture: Image.Image) -> int:
    """Return the perceptual hash as a number of 64 bits."""
    return int(str(imagehash.phash(picture)), 16)


def _coarse_pairs(
    pictures: Sequence[Image.Image], gray: np.ndarray, codes: Sequence[np.ndarray]
) -> Iterator[_Pairs]:
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
) -> Iterator[tuple[_Pairs, bool]]:
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
                found.append(_Pairs(first, second, 1 - alike).take(enough))
            yield _concatenate(found), mirrored


def _correlation(first: Image.Image, second: Image.Image) -> float:
    """Return how far the pixels of two pictures go together, -1 to 1.

    The smaller is enlarged by every filter it may have been enlarged by.
    """
    small, large = sorted((first, second), key=lambda picture: picture.size)
    target = _standardized(large, large.size)
    filters = FILTERS if small.size != large.size else FILTERS[:1]
    enlarged = (_standardized(small, large.size, resampling) for resampling in filters)
    return max(float((pixels * target).sum()) for pixels in enlarged)


def _standardized(
    picture: Image.Image,
    size: tuple[int, int] = (SIDE, SIDE),
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Return pixels (height, width) float32 of mean 0 and norm 1; all 0 of a blank picture."""
    pixels = np.asarray(picture.resize(size, resampling), np.float32)
    pixels = pixels - pixels.mean()
    return pixels / max(float(np.linalg.norm(pixels)), 1.0)


class _Fine(NamedTuple):
    """The images of a large group, for the finer comparison."""

    pictures: np.ndarray  # (M, FINE_SIDE, FINE_SIDE) float16 of mean 0 and standard deviation 1
    gray: np.ndarray  # (M, SIDE, SIDE) float32 of mean 0 and norm 1
    settings: np.ndarray  # (M,) a number for the size and the encoding of the file
    number: np.ndarray  # (M,) among all images

    def take(self, members: np.ndarray) -> _Fine:
        """Return some of the images."""
        return _Fine(*(part[members] for part in self))


def _read_fine(paths: Sequence[str], gray: np.ndarray, number: np.ndarray) -> _Fine:
    """Decode the images of a large group once more."""
    pictures = np.empty((len(paths), FINE_SIDE, FINE_SIDE), np.float16)
    settings = []
    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as pool:
        found = pool.map(_fine_picture, paths)
        tracked = track(found, "Comparing finely", total=len(paths), transient=True)
        for place, (picture, setting) in enumerate(tracked):
            pictures[place] = picture
            settings.append(setting)
    return _Fine(pictures, gray, pd.factorize(pd.Series(settings))[0], number)


def _fine_picture(path: str) -> tuple[np.ndarray, str]:
    """Return an image, gray and standardized, and the size and the encoding of its file."""
    with Image.open(io.BytesIO(read_bytes(path)), formats=FORMATS) as file:
        settings = f"{file.format} {file.mode} {file.size} {getattr(file, 'quantization', None)}"
        image = to_rgb(file, min(1.0, FINE_SIDE / min(file.size))).convert("L")
    picture = _standardized(image, (FINE_SIDE, FINE_SIDE), FILTERS[0])
    return picture * FINE_SIDE, settings


def _compare_finely(images: _Fine, classes: _Classes) -> tuple[_Pairs, _Pairs]:
    """Return the pairs of one class that are the same image, and the closest of the others.

    The group falls apart into smaller ones. Those that are small enough are not checked any more:
    all their pairs that look alike are the same image. Those that are still too large, such as
    the images of two cameras, are compared again, each with a background of its own.
    """
    near, similar = [NO_PAIRS], [NO_PAIRS]
    pending = [np.arange(len(images.number))]
    while pending:
        members = pending.pop()
        some = images.take(members)
        kept, rejected = _decide(some, classes)
        similar.append(_renumber(rejected, some.number))
        for part in _groups(_join(np.arange(len(members)), kept)):
            if len(part) == len(members):
                near.append(_renumber(kept, some.number))
            elif len(part) > MAX_UNCHECKED_GROUP:
                pending.append(members[part])
            else:
                everyone = slice(0, len(part))
                pairs = _alike(some.take(part), classes, everyone, everyone, 1 - ALIKE)
                near.append(_renumber(pairs, some.number[part]))
    return _concatenate(near), _concatenate(similar)


def _decide(images: _Fine, classes: _Classes) -> tuple[_Pairs, _Pairs]:
    """Return as `_compare_finely` does, by places in `images`, with one background for all."""
    residuals = _residuals(images.pictures)
    threshold = _residual_threshold(residuals)
    near, similar = [NO_PAIRS], [NO_PAIRS]
    for rows, columns in _tiles(len(residuals)):
        pairs = _alike(images, classes, rows, columns, 1 - ALIKE)
        if not len(pairs.first):
            continue
        same = _product(residuals, residuals, rows, columns) >= threshold
        for other in (images.pictures, images.pictures[:, :, ::-1]):
            products = _product(images.pictures, other, rows, columns)
            same |= 1 - products / FINE_SIDE**2 <= SAME_PIXELS
        chosen = same[pairs.first - rows.start, pairs.second - columns.start]
        near.append(pairs.take(chosen))
        similar.append(_closest(pairs.take(~chosen)))
    near.append(_copies_of_other_settings(images, classes, _concatenate(near)))
    return _concatenate(near), _closest(_concatenate(similar))


def _copies_of_other_settings(images: _Fine, classes: _Classes, near: _Pairs) -> _Pairs:
    """Return pairs that differ as copies do, without the images of a fixed camera.

    Whether two pictures differ by noise or by their compression cannot be seen. But a camera
    writes images of one size and encoding, and copies mostly differ in these.

    Args:
        images: of the group.
        classes: of all images.
        near: the pairs that are the same image for other reasons.
    """
    cluster = _join(np.arange(len(images.number)), near)
    shots = pd.Series(cluster).groupby(images.settings).transform("nunique")
    others = np.flatnonzero(shots < MIN_CAMERA_IMAGES)
    some = images.take(others)
    found = [NO_PAIRS]
    for rows, columns in _tiles(len(others)):
        pairs = _alike(some, classes, rows, columns, SAME_PHOTOGRAPH)
        found.append(pairs.take(some.settings[pairs.first] != some.settings[pairs.second]))
    return _renumber(_concatenate(found), others)


def _alike(images: _Fine, classes: _Classes, rows: slice, columns: slice, limit: float) -> _Pairs:
    """Return the pairs of one class, of a block of all, whose small pictures are this close."""
    gray = images.gray
    products = [_product(gray, other, rows, columns) for other in (gray, gray[:, :, ::-1])]
    distance = (1 - np.maximum(*products)).clip(min=0)
    first, second = np.nonzero(distance <= limit)
    pairs = _Pairs(first + rows.start, second + columns.start, distance[first, second])
    pairs = pairs.take(pairs.first < pairs.second)
    number = images.number
    return pairs.take(classes.shared(number[pairs.first], number[pairs.second]))


def _tiles(count: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of the blocks of the upper triangle of a square matrix."""
    starts = range(0, count, BLOCK)
    for row in starts:
        for column in starts[row // BLOCK :]:
            yield slice(row, row + BLOCK), slice(column, column + BLOCK)


def _product(one: np.ndarray, two: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Return the scalar products of rows of one array with rows of another, in float32."""
    ours, theirs = (part.astype(np.float32) for part in (one[rows], two[columns]))
    return ours.reshape(len(ours), -1) @ theirs.reshape(len(theirs), -1).T


def _residual_threshold(residuals: np.ndarray) -> float:
    """Return how far residuals of copies must correlate, by how far those of the group do.

    In a large group at most one or two of a hundred pairs are copies. If more than these correlate,
    it is because not all of the background was found.
    """
    if len(residuals) <= MAX_SMALL_GROUP:
        return MIN_RESIDUAL_CORRELATION
    some = residuals[:: -(-len(residuals) // BLOCK)]
    everyone = slice(0, len(some))
    products = _product(some, some, everyone, everyone)
    usual = float(np.quantile(products[np.triu_indices(len(some), 1)], USUAL_SHARE))
    lowest, highest = MIN_RESIDUAL_CORRELATION, MAX_RESIDUAL_CORRELATION
    return min(max(TIMES_USUAL_CORRELATION * usual, lowest), highest)


def _residuals(pictures: np.ndarray) -> np.ndarray:
    """Return what each picture has besides the common background: (M, P) float16 of norm 1.

    The background is the mean of the pictures after registration. What a kernel of
    `KERNEL_RADIUS`, a gradient of light or a curve of brightness makes of it is projected out.
    """
    shifts = np.zeros((len(pictures), 2), np.float32)
    background = pictures[0].astype(np.float32)
    for _ in range(2):  # the second time against a mean with little noise
        parts = []
        total = np.zeros((FINE_SIDE, FINE_SIDE), np.float64)
        for start in range(0, len(pictures), BLOCK):
            block = pictures[start : start + BLOCK].astype(np.float32)
            parts.append(_shifts(block, background))
            total += _shifted(block, parts[-1]).sum(axis=0)
        shifts, background = np.concatenate(parts), (total / len(pictures)).astype(np.float32)
    basis = _background_basis(background)
    residuals = np.empty((len(pictures), basis.shape[1]), np.float16)
    for start in range(0, len(pictures), BLOCK):
        block = pictures[start : start + BLOCK].astype(np.float32)
        block = _without_margin(_shifted(block, shifts[start : start + BLOCK]))
        block -= (block @ basis.T) @ basis
        residuals[start : start + BLOCK] = _equalize_patches(block)
    return residuals


def _shifts(pictures: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return by how many px (M, 2), at most `MARGIN`, pictures are shifted from the background.

    It is the peak of the cross-correlation, and between pixels that of a parabola.
    """
    spectrum = np.fft.rfft2(pictures) * np.fft.rfft2(background).conj()
    window = np.arange(-MARGIN, MARGIN + 1)
    values = np.fft.irfft2(spectrum, s=background.shape)[:, window][:, :, window]
    peak = values.reshape(len(values), -1).argmax(axis=1)
    row, column = (place.clip(1, 2 * MARGIN - 1) for place in np.divmod(peak, len(window)))
    everyone = np.arange(len(values))
    rows = [values[everyone, row + step, column] for step in (-1, 0, 1)]
    columns = [values[everyone, row, column + step] for step in (-1, 0, 1)]
    found = [row + _vertex(*rows), column + _vertex(*columns)]
    return (np.stack(found, axis=1) - MARGIN).astype(np.float32)


def _vertex(before: np.ndarray, here: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return where the parabola through three neighboring values has its vertex, -0.5 to 0.5."""
    bend = np.minimum(before - 2 * here + after, -1e-6)
    return ((before - after) / (2 * bend)).clip(-0.5, 0.5)


def _shifted(pictures: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return pictures moved back by their shifts and without their highest frequencies.

    Moving them in Fourier space blurs no noise. Close to the Nyquist frequency, pictures of one
    scene differ by aliasing with their shift, and JPEG keeps the least.
    """
    rows = np.fft.fftfreq(FINE_SIDE)[:, None]
    columns = np.fft.rfftfreq(FINE_SIDE)
    low_pass = 1 / (1 + (np.hypot(rows, columns) / MAX_FREQUENCY) ** 8)
    ramp = np.ones(FINE_SIDE)  # to zero at the borders, where the spectrum wraps around
    ramp[:TAPER] = np.sin(np.pi / 2 * (np.arange(TAPER) + 0.5) / TAPER) ** 2
    ramp[-TAPER:] = ramp[:TAPER][::-1]
    turn_rows = np.exp(2j * np.pi * rows * shifts[:, 0, None, None])
    turn_columns = np.exp(2j * np.pi * columns * shifts[:, 1, None, None])
    spectrum = np.fft.rfft2(pictures * np.outer(ramp, ramp).astype(np.float32))
    spectrum *= low_pass.astype(np.float32)
    spectrum *= turn_rows.astype(np.complex64)
    spectrum *= turn_columns.astype(np.complex64)
    moved = np.fft.irfft2(spectrum, s=pictures.shape[1:])
    return moved.astype(np.float32)


def _background_basis(background: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis (B, P) of all that the background may look like in one image."""
    steps = range(-KERNEL_RADIUS, KERNEL_RADIUS + 1)
    moved = np.stack([np.roll(background, (y, x), (0, 1)) for y in steps for x in steps])
    center = _without_margin(background[None])[0]
    side = FINE_SIDE - 2 * MARGIN
    y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j])
    light = np.stack([np.ones(side**2), x, y, center * x, center * y, center**2, center**3])
    vectors = np.concatenate([_without_margin(moved), light.astype(np.float32)])
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    weights, combinations = np.linalg.eigh((vectors @ vectors.T).astype(np.float64))
    large = weights > 1e-6 * weights[-1]
    return ((combinations[:, large] / np.sqrt(weights[large])).T @ vectors).astype(np.float32)


def _without_margin(pictures: np.ndarray) -> np.ndarray:
    """Return the pixels (M, P) of pictures but for their margins."""
    return pictures[:, MARGIN:-MARGIN, MARGIN:-MARGIN].reshape(len(pictures), -1)


def _equalize_patches(residuals: np.ndarray) -> np.ndarray:
    """Return residuals (M, P) of norm 1, each patch of mean 0 and of equal norm."""
    count = (FINE_SIDE - 2 * MARGIN) // PATCH
    patches = residuals.reshape(-1, count, PATCH, count, PATCH)
    patches = patches - patches.mean(axis=(2, 4), keepdims=True)
    norm = np.sqrt((patches**2).sum(axis=(2, 4), keepdims=True))
    equal = (patches / np.maximum(norm, 1e-3)).reshape(len(residuals), -1)
    return equal / np.maximum(np.linalg.norm(equal, axis=1, keepdims=True), 1e-3)
