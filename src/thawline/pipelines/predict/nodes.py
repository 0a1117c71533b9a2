"""Nodes of prediction."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from thawline.data.sources import find_files
from thawline.errors import ParameterError
from thawline.options import ModelOptions, PredictOptions, RegistryOptions, TrainingOptions
from thawline.pipelines.types import ProjectFolders

logger = logging.getLogger(__name__)


def predict_folder(
    project: Path,
    registry: ProjectFolders,
    options: PredictOptions,
    registry_options: RegistryOptions,
    model: ModelOptions,
    training: TrainingOptions,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a row for every file in `predict.root`, and by which model, and how many failed."""
    from thawline.evaluation.predictions import predict_files
    from thawline.serving.find_model import find_model

    if options.root is None:
        raise ParameterError(
            "predict.root: no folder is given. Say which images are to be looked at:"
            " kedro run --pipeline=predict --params=predict.root=FOLDER"
        )
    files = find_files(options.root, project)
    found = find_model("predict.model", options.model, registry_options.name, model, registry)
    logger.info("Predicting %d files with %s", len(files), found)
    table = predict_files(found.classifier, files, options.batch_size, options.top_k, training)
    bad = table[table["problem"].notna()]
    if len(bad):
        logger.warning(
            "%d of %d files cannot be read, first %s (%s); the column 'problem' says why",
            len(bad),
            len(table),
            *bad[["path", "problem"]].iloc[0],
        )
    refused = int(table["reason"].notna().sum()) if "reason" in table else 0
    if refused:
        logger.warning(
            "%d of %d images are unlike the training images and have no label; 'distance' says how"
            " unlike",
            refused,
            len(table),
        )
    counts = {"files": len(table), "unreadable_files": len(bad), "refused_images": refused}
    return table, {"predicted_by": found.name, **counts}
