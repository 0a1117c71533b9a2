"""Wiring of the comparison of strategies."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.compare import nodes

TRACKING = ["training_checkpoints", "metric_logger", "child_runs"]
TABLES = ["comparison_trainings", "comparison_histories", "comparison_predictions"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from splits and transforms to trained strategies and the best of them."""
    training = Node(
        nodes.train_strategies,
        ["parameters", "splits", "transforms", "activations", *TRACKING],
        ["comparison_outcomes", "comparison_classifiers", *TABLES],
        name="train_strategies",
    )
    conclusion = Node(
        nodes.compare_strategies,
        ["parameters", "splits", "comparison_outcomes"],
        ["comparison", "comparison_table", "comparison_figure", "comparison_report"],
        name="compare_strategies",
    )
    return Pipeline([training, conclusion])
