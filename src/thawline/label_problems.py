"""Find images that are probably labelled wrongly, in two splits at once, or out of place."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import imagehash
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from thawline.images import SPLITS, image_size, read_image

FOLDS = 5
REPEATS = 3  # of the cross-validation: their mean suspects half as many right labels as one
NEIGHBOURS = 10
FENCE = 3.0  # interquartile ranges beyond the upper quartile: Tukey's "far out"
SIDE = 32  # px, of the grey pictures that are compared; smaller ones stay as they are
MOST_BITS = 16  # of 64 that perceptual hashes may differ in; 8 px images recompressed reach 14
MIRRORED = (False, True)
# Pixels of a pair must correlate so much. Of 1.6 million pairs of different 8 px digits five do;
# no pair of 397 photographs does by more than 0.82, and copies of photographs do by 0.998.
ALIKE = 0.985
ROUGHLY_ALIKE = 0.9  # already where one of the two is an enlargement
FILTERS = (
    Image.Resampling.BICUBIC,
    Image.Resampling.BILINEAR,
    Image.Resampling.LANCZOS,
    Image.Resampling.NEAREST,
)
BLOCK = 1024  # images that are compared with all others at once
PAIR = ["path", "split", "label", "other_path", "other_split", "other_label", "distance", "kind"]


def find_label_errors(splits: pd.DataFrame, features: np.ndarray, seed: int) -> pd.DataFrame:
    """Return the images whose label is probably wrong, the likeliest error first.

    Each image's class is predicted by a logistic regression on the features of other images, and
    confident learning (Northcutt et al. 2021, arXiv:1911.00068) says which labels contradict it too
    clearly to be chance. With a column `group` in the splits, no image is predicted from others of
    its group.

    Args:
        splits: the table of splits.
        features: (N, features) of its rows, of a pretrained network.
        seed: of the folds.

    Returns:
        path, split, label, suggested (the likelier class) and probability (0 to 1, of the label).
    """
    from cleanlab.filter import find_label_issues

    labels = splits["class_index"].to_numpy()
    probabilities = out_of_sample_probabilities(features, labels, splits.get("group"), seed)
    found = find_label_issues(
        labels,
        probabilities,
        filter_by="prune_by_class",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    names = splits.drop_duplicates("class_index").set_index("class_index")["label"]
    table = splits.iloc[found][["path", "split", "label"]].assign(
        suggested=names[probabilities[found].argmax(axis=1)].to_numpy(),
        probability=probabilities[found, labels[found]],
    )
    return table.reset_index(drop=True)


def out_of_sample_probabilities(
    features: np.ndarray, labels: np.ndarray, groups: pd.Series | None, seed: int
) -> np.ndarray:
    """Return each image's class probabilities (N, C), from models fitted to other images.

    Args:
        features: (N, features).
        labels: (N,) from 0 to C - 1, at least two of each.
        groups: which images belong together; None where none do.
        seed: of the folds.
    """
    together = np.arange(len(labels)) if groups is None else groups.to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer groups than folds
        parts = [
            part
            for repeat in range(REPEATS)
            for part in _folds(labels, repeat, seed).split(features, labels, together)
        ]
    probabilities = np.zeros((len(labels), labels.max() + 1))
    for rest, fold in track(parts, "Cross-validating labels", len(parts), transient=True):
        # So weak that a wrong label among the rest is not learnt by heart; a finer tolerance takes
        # twice as long and finds the same.
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, tol=0.01, max_iter=1000))
        with threadpool_limits(1):  # threads of a busy machine wait for each other: 0.8 s, not 9
            model.fit(features[rest], labels[rest])
        probabilities[np.ix_(fold, model.classes_)] += model.predict_proba(features[fold])
    return probabilities / REPEATS


def _folds(labels: np.ndarray, repeat: int, seed: int) -> StratifiedGroupKFold:
    count = max(2, min(FOLDS, int(np.bincount(labels).min())))
    return StratifiedGroupKFold(count, shuffle=True, random_state=seed + repeat)


def find_outliers(splits: pd.DataFrame, features: np.ndarray) -> pd.DataFrame:
    """Return the images that are like no others, the oddest first.

    Odd is an image whose cosine distance to its ten nearest neighbours is far out of what is usual:
    more than three interquartile ranges above the upper quartile.

    Returns:
        path, split, label and distance, the mean to the neighbours (0: the same, 1: unrelated).
    """
    neighbours = min(NEIGHBOURS, len(splits) - 1)
    index = NearestNeighbors(n_neighbors=neighbours, metric="cosine").fit(features)
    distances = index.kneighbors()[0].mean(axis=1)
    lower, upper = np.percentile(distances, [25, 75])
    table = splits[["path", "split", "label"]].assign(distance=distances)
    table = table[distances > upper + FENCE * (upper - lower)]
    return table.sort_values("distance", ascending=False, ignore_index=True)


def find_near_duplicates(splits: pd.DataFrame, hashes: Sequence[str]) -> pd.DataFrame:
    """Return the images of val and test that are, or look like, one in a split before their own.

    Files with the same bytes are `exact`. The others are `near`: resized, recompressed or mirrored.
    Pairs of similar perceptual hash (DCT, 64 bits) are compared pixel by pixel, since tiny images
    of different things have similar hashes too. A row an image, with the one it is most like.

    Args:
        splits: the table of splits.
        hashes: SHA-256 of each row's file.

    Raises:
        OSError: when an image cannot be read.

    Returns:
        path, split, label, the same of the other image, distance (1 - correlation of the pixels)
        and kind; the most alike first.
    """
    table = splits.reset_index(drop=True).assign(sha256=list(hashes))
    pictures, *codes = _small_pictures(table["path"].tolist())
    grey = np.stack([_standardised(picture) for picture in pictures])
    rows = []
    for split in SPLITS[1:]:
        own = table.index[table["split"] == split].to_numpy()
        earlier = table.index[table["split"].isin(SPLITS[: SPLITS.index(split)])].to_numpy()
        first = table.loc[earlier[::-1]].reset_index().set_index("sha256")["index"].to_dict()
        exact = {idx: (first[code], 0.0) for idx in own if (code := table["sha256"][idx]) in first}
        near = _closest([i for i in own if i not in exact], earlier, pictures, codes, grey)
        for kind, pairs in (("exact", exact), ("near", near)):
            for idx, (other, distance) in pairs.items():
                named = (table.loc[i, ["path", "split", "label"]] for i in (idx, other))
                rows.append([value for image in named for value in image] + [distance, kind])
    found = pd.DataFrame(rows, columns=PAIR)
    return found.sort_values(["distance", "kind", "path"], ignore_index=True)


def _small_pictures(paths: Sequence[str]) -> tuple[list[Image.Image], np.ndarray, np.ndarray]:
    """Return every image in grey and small, and (N,) uint64: its hash, and its mirror image's."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
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


def _closest(
    own: Sequence[int],
    earlier: np.ndarray,
    pictures: Sequence[Image.Image],
    codes: Sequence[np.ndarray],
    grey: np.ndarray,
) -> dict[int, tuple[int, float]]:
    """Return for each image with a near-duplicate among the earlier ones it and its distance."""
    best: dict[int, tuple[int, float]] = {}
    for idx, other, mirrored in _candidates(own, earlier, codes, grey):
        picture = ImageOps.mirror(pictures[idx]) if mirrored else pictures[idx]
        distance = 1 - _correlation(picture, pictures[other])
        if distance <= 1 - ALIKE and distance < best.get(idx, (0, np.inf))[1]:
            best[idx] = (other, float(max(distance, 0)))
    return best


def _candidates(
    own: Sequence[int], earlier: np.ndarray, codes: Sequence[np.ndarray], grey: np.ndarray
) -> Iterator[tuple[int, int, bool]]:
    """Yield pairs that are roughly alike, and whether they are with the first mirrored."""
    plain = codes[False]
    for start in range(0, len(own), BLOCK):
        block = np.asarray(own[start : start + BLOCK])
        for mirrored in MIRRORED:
            bits = np.bitwise_count(codes[mirrored][block, None] ^ plain[None, earlier])
            rows, columns = np.nonzero(bits <= MOST_BITS)
            for some in np.array_split(np.arange(len(rows)), len(rows) // BLOCK + 1):
                first, second = block[rows[some]], earlier[columns[some]]
                ours = grey[first, :, ::-1] if mirrored else grey[first]
                alike = np.einsum("nij,nij->n", ours, grey[second]) >= ROUGHLY_ALIKE
                for pair in zip(first[alike], second[alike], strict=True):
                    yield int(pair[0]), int(pair[1]), mirrored


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
