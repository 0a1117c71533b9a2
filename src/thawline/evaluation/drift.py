"""Test whether images are like others, and which classes have become rarer or more frequent."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from thawline.evaluation.significance import Groups, effective_images, holm_correction

PERMUTATIONS = 1000
MAX_COMPARED = 500  # images of each side


def compare_features(
    before: np.ndarray, now: np.ndarray, groups: Sequence[Any], seed: int
) -> float:
    """Return the p-value of the hypothesis that two sets of images are alike.

    It is that of a permutation test of the maximum mean discrepancy (Gretton et al. 2012) with a
    Gaussian kernel, whose width is the median distance. Features are (N, D) and (M, D) of length 1;
    `groups` (N + M,) name images that belong together, of which one counts, drawn by the seed. Up
    to 500 of each side are compared.
    """
    rng = np.random.default_rng(seed)
    drawn = pd.Series([*groups]).sample(frac=1, random_state=rng).drop_duplicates().index
    some, others = drawn[drawn < len(before)], drawn[drawn >= len(before)]
    rows = [*some[:MAX_COMPARED], *others[:MAX_COMPARED]]
    everything = np.concatenate([before, now])[rows]
    is_now = np.array(rows) >= len(before)
    squared = np.maximum(0, 2 - 2 * everything @ everything.T)
    kernel = np.exp(-squared / np.median(squared[~np.eye(len(squared), dtype=bool)]))
    sides = np.stack([is_now, *(rng.permutation(is_now) for _ in range(PERMUTATIONS))])
    weights = np.where(sides, 1 / is_now.sum(), -1 / (~is_now).sum())
    found = ((weights @ kernel) * weights).sum(axis=1)
    return float((found >= found[0] - 1e-12).mean())


def compare_classes(
    before: Sequence[str], now: Sequence[str], names: Sequence[str], groups: Groups
) -> pd.DataFrame:
    """Return how often each class was and is predicted, by Fisher's exact test.

    `groups` are those of the images before; their images count as `effective_images` do.

    Returns:
        label, share_before and share_now (0 to 1), p_value, corrected for the number of classes by
        Holm; the most significant first.
    """
    one, other = pd.Series(before), pd.Series(now)
    rows = []
    for name in names:
        was, is_now = ((side == name).to_numpy() for side in (one, other))
        table = np.array([[side.sum(), (~side).sum()] for side in (was, is_now)])
        table[0] = np.rint(effective_images(was, groups) / len(was) * table[0])
        rows.append((name, was.mean(), is_now.mean(), fisher_exact(table)[1]))
    found = pd.DataFrame(rows, columns=["label", "share_before", "share_now", "p_value"])
    found["p_value"] = holm_correction(found["p_value"].to_numpy())
    return found.sort_values("p_value", kind="stable", ignore_index=True)


def combine(p_features: float, classes: pd.DataFrame) -> float:
    """Return the p-value that anything has changed, features or classes, by Bonferroni."""
    return min(1.0, 2 * min(p_features, float(classes["p_value"].min())))
