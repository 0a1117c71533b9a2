"""Wiring of the comparison of strategies."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from thawline.pipelines import data_preparation, finetune
from thawline.pipelines.compare import nodes


def create_pipeline() -> Pipeline:
    """Return the pipeline from images to trained strategies and the best of them."""
    training = Node(
        nodes.train_strategies,
        [
            "parameters",
            "splits",
            "transforms",
            "activations",
            "training_checkpoints",
            "metric_logger",
            "child_runs",
        ],
        [
            "comparison_outcomes",
            "comparison_classifiers",
            "comparison_trainings",
            "comparison_histories",
            "comparison_predictions",
        ],
        name="train_strategies",
    )
    conclusion = Node(
        nodes.compare_strategies,
        ["parameters", "splits", "comparison_outcomes"],
        ["comparison", "comparison_table", "comparison_figure", "comparison_report"],
        name="compare_strategies",
    )
    return Pipeline(
        [
            data_preparation.create_pipeline(),
            finetune.create_transforms(),
            Pipeline([training, conclusion]),
        ]
    )
