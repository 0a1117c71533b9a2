"""Nodes of the review."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from thawline.data.sources import find_readable
from thawline.errors import ParameterError
from thawline.options import Parameters
from thawline.pipelines.types import Classifier

logger = logging.getLogger(__name__)

UNLABELED = "unlabeled"  # the split of images without a label
MAX_NEXT = 100  # images to label next
MAX_EXPLAINED = 60  # images whose attribution the page shows


def map_images(
    parameters: Parameters,
    classifier: Classifier,
    splits: pd.DataFrame,
    activations: Path,
    project: Path,
) -> pd.DataFrame:
    """Return all images with prediction, place on a map, and `rank` among those to label next.

    Those of `review.unlabeled` come last, without a label; the rank of all others is 0.
    """
    from thawline.evaluation import image_map
    from thawline.thaw.cache import ActivationCache
    from thawline.thaw.stage_features import read_head

    images = splits[["path", "label", "split"]]
    if parameters.review.unlabeled:
        found = find_readable(parameters.review.unlabeled, project, "review.unlabeled")
        new = pd.DataFrame({"path": found, "label": "", "split": UNLABELED}, dtype="str")
        images = pd.concat([images, new[~new["path"].isin(images["path"])]], ignore_index=True)
    cache = ActivationCache(activations, parameters.activations.max_gb)
    features, logits = read_head(classifier, images["path"].tolist(), parameters, cache)
    probabilities = (logits / classifier.calibration.temperature).softmax(dim=1).numpy()
    components = image_map.reduce_features(features.numpy(), parameters.seed)
    names = classifier.class_names
    table = image_map.describe_images(images, components, probabilities, names, parameters.seed)
    is_new = (images["split"] == UNLABELED).to_numpy()
    table["rank"] = 0
    if is_new.any():
        chosen = image_map.rank_unlabeled(
            components[is_new], components[~is_new], probabilities[is_new], MAX_NEXT
        )
        table.loc[np.flatnonzero(is_new)[chosen], "rank"] = range(1, len(chosen) + 1)
    table.attrs = splits.attrs
    return table


def write_review(
    parameters: Parameters,
    image_map: pd.DataFrame,
    label_errors: pd.DataFrame,
    near_duplicates: pd.DataFrame,
    outliers: pd.DataFrame,
    applied_corrections: pd.DataFrame,
    classifier: Classifier,
    project: Path,
) -> str:
    """Return the page of all images, and of those to look at first."""
    from thawline.evaluation import explanations
    from thawline.reports.figures.attributions import overlay_views
    from thawline.reports.review import list_images, review_page

    known = {*image_map["path"]}
    tables = [
        table[table["path"].isin(known) & table.get("other_path", table["path"]).isin(known)]
        for table in (label_errors, near_duplicates, outliers)
    ]
    lists = list_images(image_map, *tables)
    first = pd.concat([own.images.head(MAX_EXPLAINED // 3) for own in lists[:3]])
    first = first.drop_duplicates("path")
    pictures = {}
    try:
        explained = explanations.explain(classifier, first, "grad_cam", parameters.training)
        pictures = dict(zip(first["path"], overlay_views(explained), strict=True))
    except ParameterError as error:  # a network without a spatial stage
        logger.warning("%s", error)
    names = classifier.class_names
    return review_page(image_map, lists, pictures, applied_corrections, project, names)
