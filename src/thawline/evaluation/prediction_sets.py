"""Sets of classes that hold the true one with a chosen probability: split conformal prediction.

Scores are those of adaptive prediction sets (APS; Romano et al. 2020, arXiv:2006.02544), with a
penalty for large sets (RAPS; Angelopoulos et al. 2021, arXiv:2009.14193).
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from thawline.networks.classifier import LARGEST

PENALTY = 0.01  # of each class beyond FREE_CLASSES, as in Angelopoulos et al.
FREE_CLASSES = 5


def draw_uniform(views: np.ndarray) -> np.ndarray:
    """Return a number from 0 to 1 for each view (N, …), (N,): asked again, its set is the same."""
    digests = [hashlib.sha256(view.tobytes()).digest() for view in views]
    return np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])


def class_scores(probabilities: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return for each class how unlikely it is as the true one, (N, C).

    It is the probability of all classes that are more probable, a share `uniform` (N,) of its own,
    and the penalty for the classes before it.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    penalty = PENALTY * np.maximum(0, np.arange(1, ranked.shape[1] + 1) - FREE_CLASSES)
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, before + uniform[:, None] * ranked + penalty, axis=1)
    return scores


def upper_bound(values: Sequence[float], share: float) -> float:
    """Return what a new value does not exceed with probability `share`, as far as chance allows.

    It is the finite-sample quantile of split conformal prediction; `LARGEST` if there are too few
    values for any claim.
    """
    place = math.ceil((len(values) + 1) * share)
    return float(sorted(values)[place - 1]) if place <= len(values) else LARGEST


def prediction_sets(
    probabilities: np.ndarray, uniform: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """Return which classes are in the set of each image, bool (N, C); the most probable always is.

    `limits` are the thresholds of the classes, (C,).
    """
    inside = class_scores(probabilities, uniform) <= limits
    inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return inside
