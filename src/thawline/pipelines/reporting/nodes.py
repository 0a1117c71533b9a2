"""Nodes that show what a training came to."""

import logging
import os
import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from thawline.data.corrections import summarize_corrections
from thawline.evaluation.weak_spots import describe_weakest
from thawline.options import AUTO, Parameters
from thawline.pipelines.types import Classifier
from thawline.reports.finetune import VERDICT, finetune_sections
from thawline.reports.html import data_facts, html_report

logger = logging.getLogger(__name__)


def measure_calibration(
    classifier: Classifier, predictions: pd.DataFrame, seed: int
) -> tuple[dict[str, float], go.Figure, go.Figure, pd.DataFrame]:
    """Return how well test images say how sure the classifier is: numbers, two figures, a table."""
    from thawline.evaluation import calibration
    from thawline.evaluation.significance import accuracy_interval
    from thawline.reports.figures.evaluation import reliability_diagram, risk_coverage_curve

    own = classifier.calibration
    before = calibration.with_temperature(predictions, 1 / own.temperature)
    measured = {
        "temperature": own.temperature,
        "test_calibration_error": calibration.calibration_error(predictions),
        "test_calibration_error_uncalibrated": calibration.calibration_error(before),
        "test_calibration_error_by_chance": calibration.error_by_chance(predictions, seed),
        "test_brier_score": calibration.brier_score(predictions),
    }
    if "distance" in predictions:
        measured["test_refused"] = float((predictions["distance"] > own.max_distance).mean())
    table = pd.DataFrame(columns=["label", "images", "coverage", "mean_size"])
    if own.max_scores:
        sets = calibration.measure_sets(predictions, np.array(own.max_scores))
        covered = sets["covered"].to_numpy()
        low, high = accuracy_interval(covered, predictions.get("group"))
        measured |= {
            "test_coverage": float(covered.mean()), "test_coverage_low": low,
            "test_coverage_high": high, "test_set_size": float(sets["size"].mean()),
        }  # fmt: skip
        table = sets.groupby("label", as_index=False).agg(
            images=("size", "count"), coverage=("covered", "mean"), mean_size=("size", "mean")
        )
    bins = calibration.reliability(before), calibration.reliability(predictions)
    curve = risk_coverage_curve(calibration.risk_coverage(predictions))
    return measured, reliability_diagram(*bins, measured), curve, table


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
    if said := describe_weakest(entries["weak_spots"]):
        facts["Weakest"] = said
    if said := summarize_corrections(entries["applied_corrections"]):
        facts["Corrections"] = (
            f"{said}; the champion is compared on test images that keep their label"
        )
    root = os.path.commonpath(list(splits["path"]))
    for name, entry in entries.items():
        if isinstance(entry, pd.DataFrame):  # to be read elsewhere: no folders of this machine
            entries[name] = entry.replace(f"{re.escape(root)}/", "", regex=True)
    sections = finetune_sections(parameters, entries)
    page = html_report("Fine-tuning report", facts, VERDICT.format(**metrics), sections)
    return page, page
