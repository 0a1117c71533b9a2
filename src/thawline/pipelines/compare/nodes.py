"""Nodes of the comparison of strategies."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich import print as rich_print
from rich.markup import escape

from thawline.data.transforms import Transforms
from thawline.datasets.resource_datasets import OpenRun
from thawline.evaluation.comparison import TrainingOutcome, compare
from thawline.networks.classifier import Classifier
from thawline.options import TRAINING_GROUPS, Parameters, flatten
from thawline.pipelines.finetune import nodes as finetune
from thawline.reports.comparison import comparison_sections, console_table
from thawline.reports.figures.comparison import comparison_figure
from thawline.reports.html import data_facts, html_report
from thawline.training.progress import OnEpoch
from thawline.training.state import TrainingCheckpoints

logger = logging.getLogger(__name__)


def train_strategies(
    parameters: Parameters,
    splits: pd.DataFrame,
    image_transforms: Transforms,
    activations: Path,
    training_checkpoints: TrainingCheckpoints,
    metric_logger: OnEpoch,
    child_runs: OpenRun,
) -> tuple[list[TrainingOutcome], dict[str, Classifier], pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Train and evaluate every strategy with every seed, each in an MLflow run of its own.

    Returns:
        What the comparison needs of each training, the classifiers by `STRATEGY.seed_N`, and three
        tables for all trainings: one row per training, per epoch and per test image.
    """
    outcomes, classifiers = [], {}
    for own in list_trainings(parameters):
        name = f"{own.strategy} seed {own.seed}"
        logger.info("Training %s", name)
        tags = {"strategy": own.strategy, "seed": own.seed, "backbone": own.model.backbone}
        groups = {*TRAINING_GROUPS, "dataset"} - {"strategies"}
        depends_on = dict(flatten(own.model_dump(mode="json", include=groups)))
        with child_runs(name, depends_on, tags) as set_tags:
            network, _ = finetune.build_model(own, splits, image_transforms)
            choice, texts, *_ = finetune.choose_strategy(
                own, network, splits, image_transforms, activations
            )
            set_tags(texts)
            network, _ = finetune.freeze_layers(network, choice)
            classifier, _, history, *_ = finetune.train_model(
                own, network, choice, splits, image_transforms, activations,
                training_checkpoints, metric_logger,
            )  # fmt: skip
            metrics, _, predictions, _ = finetune.evaluate_model(
                classifier, splits, own.evaluation, own.training
            )
            epoch, seconds = classifier.training["epoch"], float(history["seconds"].sum())
            metric_logger(metrics, epoch)
        classifiers[f"{own.strategy}.seed_{own.seed}"] = classifier
        fixed = {"strategy": own.strategy, "seed": own.seed, "dataset.seed": own.dataset.seed}
        settings = {key: str(value) for key, value in (fixed | own.changed()).items()}
        outcome = TrainingOutcome(
            own.strategy, own.seed, metrics, predictions, history, epoch, seconds, settings
        )
        outcomes.append(outcome)
    columns = ("strategy", "seed", "best_epoch", "seconds")
    rows = [{name: getattr(each, name) for name in columns} | each.metrics for each in outcomes]
    predictions = _stack(outcomes, "predictions")
    predictions.attrs = splits.attrs
    return outcomes, classifiers, pd.DataFrame(rows), _stack(outcomes, "history"), predictions


def compare_strategies(
    parameters: Parameters, splits: pd.DataFrame, outcomes: list[TrainingOutcome]
) -> tuple[dict[str, Any], pd.DataFrame, go.Figure, str]:
    """Return verdict and tests as plain values, the table, the figure and the HTML page."""
    comparison = compare(outcomes)
    rich_print(console_table(comparison.table))
    rich_print(f"[bold]{escape(comparison.verdict['sentence'])}[/bold]")
    page = html_report(
        "Comparison of strategies",
        data_facts(parameters.dataset.root, parameters.model.backbone, splits),
        comparison.verdict["sentence"],
        comparison_sections(outcomes, comparison),
    )
    figure = comparison_figure(outcomes, comparison.table)
    return comparison.summary(), comparison.table, figure, page


def list_trainings(parameters: Parameters) -> list[Parameters]:
    """Return the parameters of each training of a comparison, strategy by strategy.

    All have the splits and random views of the first seed.
    """
    seeds = range(parameters.seed, parameters.seed + parameters.compare.num_seeds)
    dataset = parameters.dataset.model_copy(update={"seed": parameters.data_seed})
    return [
        parameters.model_copy(update={"strategy": strategy, "seed": seed, "dataset": dataset})
        for strategy in parameters.compare.strategies
        for seed in seeds
    ]


def _stack(outcomes: Sequence[TrainingOutcome], table: str) -> pd.DataFrame:
    """Return a table of all trainings as one, with the columns strategy and seed."""
    tables = {(each.strategy, each.seed): getattr(each, table) for each in outcomes}
    stacked = pd.concat(tables, names=["strategy", "seed"])
    return stacked.reset_index(["strategy", "seed"]).reset_index(drop=True)
