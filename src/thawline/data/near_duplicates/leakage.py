"""Keep images that are the same in one split, and report those that are in two."""

import logging

import numpy as np
import pandas as pd

from thawline.data.near_duplicates.pairs import find_components
from thawline.data.splitting import SPLITS
from thawline.errors import DataError, first_lines
from thawline.options import ScreeningOptions

logger = logging.getLogger(__name__)

SAME_IMAGE = ("exact", "near")  # kinds of pairs that count as one image
FOUND = ["path", "split", "label", "other_path", "other_split", "other_label", "distance", "kind"]


def group_alike(images: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Give all images that are the same or look the same one `group`.

    Existing groups are joined and never split. Splits that the data brings are respected:
    `check_leakage` handles pairs across these. If no two images belong together, the manifest is
    returned unchanged.

    Group names do not depend on file locations: a name is the first, in text order, of the existing
    names of the group's images, or else of their sha256. If the group is in several splits, the
    split is appended. Of the pairs of `find_pairs`, only `near` ones are used.
    """
    near = pairs[pairs["kind"] == "near"]
    split = images["split"] if "split" in images else pd.Series("", index=images.index)
    group = images["group"] if "group" in images else images["path"]
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
    joined = images["sha256"].groupby(component).transform("min")
    in_two_splits = split.groupby(joined).transform("nunique") > 1
    return images.assign(group=joined.mask(in_two_splits, joined + " " + split))


def find_cross_split_duplicates(splits: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Find validation and test images that duplicate an image of an earlier split.

    `splits` has sha256, and `pairs` are those of `find_pairs`.

    Returns:
        One row per image, with its closest duplicate: path, split, label, the same of the other
        image, distance, and kind: `exact` for equal bytes, else the kind of the pair. Pairs that
        count as one image come first, closest first.
    """
    codes = splits["sha256"].unique()
    same = pd.DataFrame({"sha256": codes, "other_sha256": codes, "distance": 0.0, "kind": "exact"})
    swapped = pairs.rename(columns={"sha256": "other_sha256", "other_sha256": "sha256"})
    others = splits.drop_duplicates(["sha256", "split"]).add_prefix("other_")
    both = pd.concat([same, *(table for table in (pairs, swapped) if len(table))])
    found = splits.merge(both, on="sha256").merge(others, on="other_sha256")
    rank = {name: number for number, name in enumerate(SPLITS)}
    found = found[found["split"].map(rank) > found["other_split"].map(rank)]
    found = found.assign(only_similar=~found["kind"].isin(SAME_IMAGE))  # must not hide a leak
    found = found.sort_values(["only_similar", "distance", "kind", "path", "other_path"])
    return found.drop_duplicates("path", ignore_index=True)[FOUND]


def check_leakage(duplicates: pd.DataFrame, options: ScreeningOptions) -> None:
    """Warn, or stop the run, if a test image is also in another split.

    Only `exact` and `near` pairs count; others may be different images.

    Raises:
        DataError: if `on_leak` is "error"; it names the pairs.
    """
    leaks = duplicates[duplicates["kind"].isin(SAME_IMAGE) & (duplicates["split"] == "test")]
    if leaks.empty:
        return
    lines = [
        f"{row.path} ({row.label}) is in {row.other_split} as {row.other_path} ({row.other_label}),"
        f" {row.kind}"
        for row in leaks.itertuples()
    ]
    message = f"{len(leaks)} test image(s) are also in another split:\n{first_lines(lines)}"
    if options.on_leak == "error":
        raise DataError(
            f"{message}\nThe test accuracy would be too high. Remove one image of each pair;"
            " screening.on_leak=warn continues with a warning."
        )
    logger.warning("%s", message)
