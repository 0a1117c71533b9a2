"""Nodes of explanations."""

import logging
from pathlib import Path

import pandas as pd
from PIL import Image

from thawline.data.manifests import ROOT
from thawline.data.sources import name_files
from thawline.errors import ParameterError
from thawline.options import ExplainOptions, TrainingOptions
from thawline.pipelines.types import Classifier

logger = logging.getLogger(__name__)


def explain_predictions(
    classifier: Classifier,
    splits: pd.DataFrame,
    predictions: pd.DataFrame,
    options: ExplainOptions,
    training: TrainingOptions,
    project: Path,
) -> tuple[pd.DataFrame, Image.Image]:
    """Return a table of the images that are explained, and what speaks for the predicted classes.

    A network that the method does not fit is no reason for a run to fail: the picture says so.
    """
    from thawline.evaluation import explanations
    from thawline.evaluation.predictions import worst_first
    from thawline.reports.figures.attributions import attribution_grid

    if options.images == "worst":
        images = worst_first(predictions).head(options.count)
    else:
        files = name_files(options.images, splits.attrs.get(ROOT, ""), base=project)
        images = pd.DataFrame({"path": files})
        images["label"] = images["path"].map(splits.set_index("path")["label"]).fillna("")
    try:
        explained = explanations.explain(classifier, images, options.method, training)
    except ParameterError as error:
        logger.warning("%s", error)
        nothing = pd.DataFrame(columns=["path", "label", "prediction", "probability"])
        return nothing, attribution_grid(None, options.method, str(error))
    explained.table.attrs = splits.attrs
    return explained.table, attribution_grid(explained, options.method)
