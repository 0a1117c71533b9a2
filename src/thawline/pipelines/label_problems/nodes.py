"""Nodes of the search for label problems."""

import logging
from pathlib import Path

import pandas as pd
from PIL import Image

from thawline.options import Parameters
from thawline.pipelines.types import Network, Transforms

logger = logging.getLogger(__name__)


def find_label_problems(
    parameters: Parameters,
    network: Network,
    splits: pd.DataFrame,
    near_duplicates: pd.DataFrame,
    transforms: Transforms,
    activations: Path,
) -> tuple[pd.DataFrame, pd.DataFrame, Image.Image, Image.Image, Image.Image, dict[str, int]]:
    """Return label errors and outliers, pictures of these and of near-duplicates, and numbers."""
    from thawline.data.loading import evaluation_images
    from thawline.evaluation import label_problems
    from thawline.reports.figures.data import problem_grid
    from thawline.thaw.cache import ActivationCache
    from thawline.thaw.stage_features import all_features

    images = evaluation_images(splits["path"].tolist())
    cache = ActivationCache(activations, parameters.activations.max_gb)
    how = transforms, parameters.training, cache
    components, last_layer = label_problems.read_components(
        lambda positions: all_features(network, [images[i] for i in positions], *how), len(images)
    )
    label_errors = label_problems.find_label_errors(splits, components, parameters.seed)
    outliers = label_problems.find_outliers(splits, last_layer.numpy())
    label_errors.attrs = outliers.attrs = splits.attrs
    counts = {
        "label_errors": len(label_errors),
        "near_duplicates": len(near_duplicates),
        "outliers": len(outliers),
    }
    logger.debug(
        "Label problems: %(label_errors)d probable label errors, %(near_duplicates)d images with a"
        " near-duplicate in another split, %(outliers)d outliers",
        counts,
    )
    return (
        label_errors,
        outliers,
        problem_grid("Probable label errors", label_errors),
        problem_grid("Pairs of near-duplicates across splits", near_duplicates),
        problem_grid("Outliers", outliers),
        counts,
    )
