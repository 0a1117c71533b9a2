"""Nodes that show what a training came to."""

import logging
import os
import re
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from thawline.data.corrections import summarize_corrections
from thawline.options import AUTO, EvaluationOptions, Parameters, TrainingOptions
from thawline.pipelines.types import Classifier
from thawline.reports.finetune import VERDICT, finetune_sections
from thawline.reports.html import data_facts, html_report

logger = logging.getLogger(__name__)


def calibrate(
    classifier: Classifier,
    splits: pd.DataFrame,
    predictions: pd.DataFrame,
    options: EvaluationOptions,
    training: TrainingOptions,
    seed: int,
) -> tuple[dict[str, float], go.Figure]:
    """Return how far probabilities of the test split are from how often it is right, and a diagram.

    The temperature is fitted on the validation split.
    """
    from thawline.evaluation import calibration
    from thawline.evaluation.predictions import predict_split
    from thawline.reports.figures.evaluation import reliability_diagram

    how = options.batch_size, training, options.tta
    validation = predict_split(classifier, splits, "val", *how)
    temperature = calibration.fit_temperature(validation)
    scaled = calibration.with_temperature(predictions, temperature)
    errors = {
        "temperature": temperature,
        "test_calibration_error": calibration.calibration_error(predictions),
        "test_calibration_error_scaled": calibration.calibration_error(scaled),
        "test_calibration_error_by_chance": calibration.error_by_chance(predictions, seed),
    }
    logger.debug(
        "Expected calibration error %(test_calibration_error).4f, divided by the temperature"
        " %(temperature).2f it is %(test_calibration_error_scaled).4f; chance alone gives about"
        " %(test_calibration_error_by_chance).4f",
        errors,
    )
    before, after = calibration.reliability(predictions), calibration.reliability(scaled)
    return errors, reliability_diagram(before, after, errors)


def plot_errors(
    predictions: pd.DataFrame, per_class: pd.DataFrame
) -> tuple[go.Figure, Image.Image]:
    """Return bars for each class, and the most confident mistakes."""
    from thawline.reports.figures.evaluation import mistakes_grid, per_class_bars

    return per_class_bars(per_class), mistakes_grid(predictions)


def write_report(
    parameters: Parameters,
    splits: pd.DataFrame,
    strategy_choice: dict[str, str],
    metrics: dict[str, float],
    registration: dict[str, Any],
    **entries: Any,
) -> tuple[str, str]:
    """Return the HTML page with figures and tables of the run, to keep and as the latest."""
    facts = data_facts(parameters.dataset.root, parameters.model.backbone, splits)
    facts["Champion"] = registration["registration_reason"]
    facts["Strategy"] = strategy_choice["chosen_strategy"]
    if strategy_choice["strategy"] == AUTO:
        facts["Strategy"] = f"auto, {strategy_choice['strategy_reason']}"
    if said := summarize_corrections(entries["applied_corrections"]):
        facts["Corrections"] = (
            f"{said}; the champion is compared on test images that keep their label"
        )
    root = os.path.commonpath(list(splits["path"]))
    for name, entry in entries.items():
        if isinstance(entry, pd.DataFrame):  # to be read elsewhere: no folders of this machine
            entries[name] = entry.replace(f"{re.escape(root)}/", "", regex=True)
    page = html_report(
        "Fine-tuning report",
        facts,
        VERDICT.format(**metrics),
        finetune_sections(parameters, entries),
    )
    return page, page
