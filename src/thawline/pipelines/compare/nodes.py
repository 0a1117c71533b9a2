"""Nodes of the comparison of strategies."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich import print as rich_print
from rich.markup import escape

from thawline.evaluation.comparison import TrainingOutcome, compare, console_table
from thawline.networks.classifier import Classifier
from thawline.options import DatasetOptions, ModelOptions, validate_parameters
from thawline.reports.figures.comparison import comparison_figure
from thawline.reports.html import comparison_sections, data_facts, html_report


def collect_result(
    strategy: str,
    seed: int,
    parameters: dict[str, Any],
    classifier: Classifier,
    history: pd.DataFrame,
    metrics: dict[str, float],
    predictions: pd.DataFrame,
    *rest: Any,
) -> TrainingOutcome:
    """Return all that the comparison needs to know of one training.

    What else the training yields comes as `rest`, so that it ends here: as outputs of the whole
    pipeline it would stay in memory and, in kedro viz, outside the training's branch.
    """
    whole = validate_parameters(parameters)
    data_seed = whole.seed if whole.dataset.seed is None else whole.dataset.seed
    changed = whole.changed() | {"strategy": strategy, "seed": seed, "dataset.seed": data_seed}
    return TrainingOutcome(
        strategy=strategy,
        seed=seed,
        metrics=metrics,
        predictions=predictions,
        history=history,
        best_epoch=classifier.training["epoch"],
        seconds=float(history["seconds"].sum()),
        settings={name: str(value) for name, value in changed.items()},
    )


def compare_strategies(
    splits: pd.DataFrame, dataset: DatasetOptions, model: ModelOptions, *results: TrainingOutcome
) -> tuple[dict[str, Any], pd.DataFrame, go.Figure, str]:
    """Return verdict and tests as plain values, the table, the figure and the HTML page."""
    comparison = compare(results)
    rich_print(console_table(comparison.table))
    rich_print(f"[bold]{escape(comparison.verdict['sentence'])}[/bold]")
    page = html_report(
        "Which strategy?",
        data_facts(dataset.root, model.backbone, splits),
        comparison.verdict["sentence"],
        comparison_sections(results, comparison),
    )
    figure = comparison_figure(results, comparison.table)
    return comparison.summary(), comparison.table, figure, page
