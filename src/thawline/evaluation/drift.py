"""Test whether images are like others, and which classes have become rarer or more frequent."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from thawline.evaluation.significance import holm_correction

PERMUTATIONS = 1000
MAX_COMPARED = 500  # images of each side


def compare_features(
    before: np.ndarray, now: np.ndarray, groups: Sequence[Any], seed: int
) -> float:
    """Return the p-value of the hypothesis that two sets of images are alike.

    It is that of a permutation test of the maximum mean discrepancy (Gretton et al. 2012) with a
    Gaussian kernel, whose width is the median distance, on up to 500 images of each. Features are
    (N, D) and (M, D) of length 1; `groups` (N + M,) name images that belong together: a group
    changes sides as a whole.
    """
    rng = np.random.default_rng(seed)
    some, others = (rng.permutation(len(side))[:MAX_COMPARED] for side in (before, now))
    everything = np.concatenate([before[some], now[others]])
    units = pd.factorize(np.asarray(groups)[[*some, *(len(before) + others)]])[0]
    is_now = np.arange(len(everything)) >= len(some)
    squared = np.maximum(0, 2 - 2 * everything @ everything.T)
    kernel = np.exp(-squared / np.median(squared[~np.eye(len(squared), dtype=bool)]))
    first = np.unique(units, return_index=True)[1]
    sides = np.stack(
        [is_now[first], *(rng.permutation(is_now[first]) for _ in range(PERMUTATIONS))]
    )
    drawn = sides[:, units]
    count = drawn.sum(axis=1, keepdims=True)
    weights = np.where(drawn, 1 / count, -1 / (len(units) - count))
    found = ((weights @ kernel) * weights).sum(axis=1)
    return float((found >= found[0] - 1e-12).mean())


def compare_classes(
    before: Sequence[str], now: Sequence[str], names: Sequence[str]
) -> pd.DataFrame:
    """Return how often each class was and is predicted, by Fisher's exact test.

    Returns:
        label, share_before and share_now (0 to 1), p_value, corrected for the number of classes by
        Holm; the most significant first.
    """
    one, other = pd.Series(before), pd.Series(now)
    rows = []
    for name in names:
        counts = int((one == name).sum()), int((other == name).sum())
        table = [[counts[0], len(one) - counts[0]], [counts[1], len(other) - counts[1]]]
        rows.append((name, counts[0] / len(one), counts[1] / len(other), fisher_exact(table)[1]))
    found = pd.DataFrame(rows, columns=["label", "share_before", "share_now", "p_value"])
    found["p_value"] = holm_correction(found["p_value"].to_numpy())
    return found.sort_values("p_value", kind="stable", ignore_index=True)


def combine(p_features: float, classes: pd.DataFrame) -> float:
    """Return the p-value that anything has changed, features or classes, by Bonferroni."""
    return min(1.0, 2 * min(p_features, float(classes["p_value"].min())))
