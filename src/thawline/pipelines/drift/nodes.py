"""Nodes of the comparison of new images with held-out ones."""

import logging
import os
from pathlib import Path

import pandas as pd

from thawline.data.manifests import ROOT
from thawline.data.sources import find_readable
from thawline.errors import DataError, ParameterError
from thawline.evaluation.significance import SIGNIFICANT
from thawline.options import Parameters
from thawline.pipelines.types import Classifier

logger = logging.getLogger(__name__)

MIN_IMAGES = 10  # of either side


def measure_drift(
    parameters: Parameters,
    classifier: Classifier,
    splits: pd.DataFrame,
    activations: Path,
    project: Path,
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame, str]:
    """Return numbers, classes, and the images of `drift.root`, the furthest first, and a page.

    They are compared with validation and test images, which had no part in training.

    Raises:
        ParameterError: if no folder is given.
        DataError: if there are too few images.
    """
    from torch.nn.functional import normalize

    from thawline.evaluation import drift
    from thawline.evaluation.inference import find_nearest
    from thawline.reports.drift import drift_page
    from thawline.thaw.cache import ActivationCache
    from thawline.thaw.stage_features import read_head

    if parameters.drift.root is None:
        raise ParameterError("drift.root: no folder is given. Say which images: drift.root=FOLDER")
    held_out = splits[splits["split"] != "train"].reset_index(drop=True)
    paths = find_readable(parameters.drift.root, project, "drift.root")
    if min(len(paths), len(held_out)) < MIN_IMAGES:
        raise DataError(
            f"drift.root: {len(paths)} images are to be compared with {len(held_out)}; at least"
            f" {MIN_IMAGES} of each are needed."
        )
    everything = [*held_out["path"], *paths]
    cache = ActivationCache(activations, parameters.activations.max_gb)
    features, logits = read_head(classifier, everything, parameters, cache)
    features, count = normalize(features), len(held_out)
    predicted = [classifier.class_names[idx] for idx in logits.argmax(dim=1)]
    own = held_out.get("group", held_out["path"])
    groups = pd.concat([own, pd.Series(paths)])
    before, now = features[:count].numpy(), features[count:].numpy()
    p_features = drift.compare_features(before, now, groups, parameters.seed)
    classes = drift.compare_classes(
        predicted[:count], predicted[count:], classifier.class_names, own
    )
    p_value = drift.combine(p_features, classes)
    measured: dict[str, float] = {
        "drift_p_value": p_value, "drift_p_features": p_features, "drift_images": len(paths)
    }  # fmt: skip
    distances = find_nearest(features[count:], features[:count])[0].numpy()
    table = pd.DataFrame({"path": paths, "prediction": predicted[count:], "distance": distances})
    table = table.sort_values("distance", ascending=False, ignore_index=True)
    table.attrs[ROOT] = os.path.commonpath([Path(path).parent for path in paths])
    logger.info(
        "%d images are %s the %d held-out ones (p = %.2g)",
        len(paths), "unlike" if p_value < SIGNIFICANT else "like", count, p_value,
    )  # fmt: skip
    page = drift_page(parameters.drift.root, count, measured, classes, table)
    return measured, classes, table, page
