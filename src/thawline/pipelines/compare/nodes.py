"""Nodes of the comparison of strategies."""

import itertools
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich import print as rich_print

from thawline.options import TRAINING_GROUPS, Parameters, flatten
from thawline.pipelines.finetune import nodes as finetune
from thawline.pipelines.types import (
    Classifier,
    OnEpoch,
    OpenRun,
    TrainingCheckpoints,
    Trainings,
    Transforms,
)
from thawline.reports.figures.comparison import comparison_figure
from thawline.reports.html import data_facts, html_report

logger = logging.getLogger(__name__)


def train_strategies(
    parameters: Parameters,
    splits: pd.DataFrame,
    image_transforms: Transforms,
    activations: Path,
    training_checkpoints: TrainingCheckpoints,
    metric_logger: OnEpoch,
    child_runs: OpenRun,
) -> tuple[Trainings, dict[str, Classifier], pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Train and evaluate every strategy with every seed, each in an MLflow run of its own.

    Returns:
        What the comparison needs, the classifiers by `STRATEGY.seed_N` and `STRATEGY.soup`, and
        three tables of it: one row per training, per epoch and per test image.
    """
    from thawline.evaluation import comparison
    from thawline.evaluation.weight_averages import make_greedy_soup
    from thawline.pipelines.finetune.run_training import training_arguments

    rows, settings, histories, predictions, classifiers, chosen = [], [], {}, {}, {}, {}
    # All have the splits and random views of the first seed.
    dataset = parameters.dataset.model_copy(update={"seed": parameters.data_seed})
    seeds = range(parameters.seed, parameters.seed + parameters.compare.num_seeds)
    for strategy, seed in itertools.product(parameters.compare.strategies, seeds):
        name, key = f"{strategy} seed {seed}", {"strategy": strategy, "seed": seed}
        own = parameters.model_copy(update=key | {"dataset": dataset})
        logger.info("Training %s", name)
        tags = key | {"backbone": own.model.backbone}
        groups = {*TRAINING_GROUPS, "dataset"} - {"strategies"}
        depends_on = dict(flatten(own.model_dump(mode="json", include=groups)))
        with child_runs(name, depends_on, tags) as set_tags:
            network, _ = finetune.build_model(own, splits, image_transforms)
            choice, texts, *_, network, own_transforms = finetune.choose_strategy(
                own, network, splits, image_transforms, activations, training_checkpoints
            )
            set_tags(texts)
            network, _ = finetune.freeze_layers(network, choice)
            data = splits, own_transforms, activations
            classifier, _, history, *_ = finetune.train_model(
                network, choice, *data, training_checkpoints, metric_logger
            )
            metrics, _, predicted, _ = finetune.evaluate_model(
                classifier, splits, own.evaluation, own.training
            )
            epoch = classifier.training["epoch"]
            seconds = choice.seconds or float(history["seconds"].sum())
            metric_logger(metrics, epoch)
        classifiers[f"{strategy}.seed_{seed}"] = classifier
        chosen[strategy] = choice.parameters
        rows.append(key | {"best_epoch": epoch, "seconds": seconds} | metrics)
        values = key | {"dataset.seed": dataset.seed} | own.changed()
        settings.append({name: str(value) for name, value in values.items()})
        histories[strategy, seed] = history
        predictions[strategy, seed] = predicted
    tables = pd.DataFrame(rows), stack(histories), stack(predictions)
    tables[-1].attrs = splits.attrs
    soups = {}
    for strategy, own in chosen.items() if len(seeds) > 1 else ():
        trained = [classifiers[f"{strategy}.seed_{seed}"] for seed in seeds]
        arguments = training_arguments(own, splits, activations)
        if soup := make_greedy_soup(arguments, trained):
            classifiers[f"{strategy}.soup"] = soup
            metrics, *_ = finetune.evaluate_model(soup, splits, own.evaluation, own.training)
            soups[strategy] = {"seeds": len(soup.training["soup_of_seeds"]), **metrics}
    return comparison.Trainings(*tables, settings, soups), classifiers, *tables


def compare_strategies(
    parameters: Parameters, splits: pd.DataFrame, trainings: Trainings
) -> tuple[dict[str, Any], pd.DataFrame, go.Figure, str, str]:
    """Return verdict and tests as plain values, table, figure, and twice the HTML page."""
    from thawline.evaluation.comparison import compare
    from thawline.reports.comparison import comparison_sections, console_table

    comparison = compare(trainings)
    rich_print(console_table(comparison.shown))
    facts = data_facts(parameters.dataset.root, parameters.model.backbone, splits)
    sections = comparison_sections(trainings, comparison)
    page = html_report("Comparison of strategies", facts, comparison.verdict["sentence"], sections)
    figure = comparison_figure(trainings.table, comparison.table)
    return comparison.summary(), comparison.shown, figure, page, page


def stack(tables: dict[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """Return the tables of all trainings as one, with the columns strategy and seed."""
    stacked = pd.concat(tables, names=["strategy", "seed"]).reset_index(["strategy", "seed"])
    return stacked.reset_index(drop=True).infer_objects()  # a history without epochs has objects
