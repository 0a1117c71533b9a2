"""Find where a classifier is wrong more often: in which classes, groups and kinds of files."""

from itertools import pairwise

import numpy as np
import pandas as pd
from PIL import ExifTags

from thawline.data.decoding import map_threads, open_image, to_rgb, upright_size
from thawline.evaluation.significance import (
    SIGNIFICANT,
    Groups,
    accuracy_interval,
    effective_images,
    holm_correction,
)

MIN_IMAGES = 20  # of a class or another part, for a claim about it
MAX_READ = 2000  # test images
PARTS = 3  # of a number, such as the brightness, with about as many images each
SIDE = 32  # px, at which the brightness is measured
COLUMNS = ["of", "value", "images", "accuracy", "low", "high", "p_value"]


def find_weak_spots(predictions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return `compare_parts` of test images by class, group, and what their files tell.

    That is size, brightness, file type and camera, of up to 2,000 images. A classifier whose
    accuracy depends on them has learned a cue that may be absent elsewhere.

    Raises:
        ImageError: if a file cannot be decoded.
    """
    some = predictions.sample(min(MAX_READ, len(predictions)), random_state=seed).sort_index()
    found = [*map_threads(_describe, some["path"].tolist(), "Looking for weak spots")]
    cues = pd.DataFrame(found, index=some.index).reindex(predictions.index)
    cues["class"] = predictions["label"]
    if "group" in predictions:
        cues["group"] = predictions["group"].astype(str)
    correct = (predictions["label"] == predictions["prediction"]).to_numpy()
    return compare_parts(correct, cues, predictions.get("group"))


def compare_parts(correct: np.ndarray, cues: pd.DataFrame, groups: Groups = None) -> pd.DataFrame:
    """Return the accuracy of parts of the images, the least accurate beyond chance first.

    `correct` is (N,), `cues` have N rows, without a value where it is unknown; numbers are cut into
    three parts. Images of a group count as `effective_images` do.

    Returns:
        of (a cue), value, images, accuracy (0 to 1), low and high (its 95 % interval) and p_value
        of the hypothesis that the other images are as accurate, by Fisher's exact test, corrected
        for the number of parts by Holm; 1 for parts that are no less accurate.
    """
    from scipy.stats import fisher_exact  # takes half a second

    names = None if groups is None else np.asarray(groups)
    share = effective_images(correct, names) / len(correct)
    rows = []
    for cue, column in cues.items():
        known = column.dropna()
        parts = _cut(known) if pd.api.types.is_numeric_dtype(known) else known
        codes, values = parts.reindex(cues.index).factorize(sort=True)  # -1 where it is unknown
        for code, value in enumerate(values):
            inside = codes == code
            if inside.sum() == len(parts) or (inside.sum() < MIN_IMAGES and cue != "class"):
                continue
            own, rest = correct[inside], correct[(codes >= 0) & ~inside]
            interval = accuracy_interval(own, None if names is None else names[inside])
            counts = [[(~part).sum(), part.sum()] for part in (own, rest)]
            table = np.rint(share * np.array(counts)).astype(int)
            p_value = fisher_exact(table)[1] if own.mean() < rest.mean() else 1.0
            rows.append((cue, value, len(own), own.mean(), *interval, p_value))
    found = pd.DataFrame(rows, columns=COLUMNS)
    found["p_value"] = holm_correction(found["p_value"].to_numpy())
    return found.sort_values(["p_value", "accuracy"], kind="stable", ignore_index=True)


def describe_weakest(spots: pd.DataFrame) -> str:
    """Return in words the weakest part of a table of `compare_parts`, if any is; a class at least.

    It also names how many classes have too few images to tell.
    """
    is_class = spots["of"] == "class"
    few = spots.loc[is_class & (spots["images"] < MIN_IMAGES), "value"]
    enough = spots[(spots["images"] >= MIN_IMAGES) & (is_class | (spots["p_value"] < SIGNIFICANT))]
    said = []
    if len(enough) and (row := enough.iloc[0])["accuracy"] < 1:
        is_weak = row["p_value"] < SIGNIFICANT
        verdict = "others are better beyond chance" if is_weak else "others may differ by chance"
        said.append(
            f"{row['of']} {row['value']}: {row['accuracy']:.1%} of {row['images']} test images are"
            f" right (95 % interval {row['low']:.1%} to {row['high']:.1%}); {verdict}"
        )
    if len(few):
        said.append(
            f"too few test images to judge {len(few)} of the classes (fewer than {MIN_IMAGES})"
        )
    return "; ".join(said)


def _describe(path: str) -> dict[str, float | str]:
    """Return what may tell an image's class apart from what it shows."""
    with open_image(path) as file:
        camera = file.getexif().get(ExifTags.Base.Model)
        side = min(upright_size(file))
        gray = to_rgb(file, min(1.0, SIDE / side), bit_depth=None).convert("L").resize((SIDE, SIDE))
        return {
            "shorter side, px": side,
            "brightness, 0 to 255": float(np.asarray(gray).mean()),
            "file type": str(file.format),
            "camera": str(camera).strip("\0 ") if camera else "unknown",
        }


def _cut(values: pd.Series) -> pd.Series:
    """Return for each number the part that it lies in, as text; few numbers are parts."""
    edges = values.quantile([idx / PARTS for idx in range(PARTS + 1)]).unique()
    if values.nunique() <= PARTS or len(edges) < PARTS:
        return values.map("{:.0f}".format)
    names = [f"{low:.0f} to {high:.0f}" for low, high in pairwise(edges)]
    idx = np.searchsorted(edges[1:-1], values, side="left")
    return pd.Series(np.array(names)[idx], index=values.index)
