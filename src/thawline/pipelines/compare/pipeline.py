"""Wiring of the comparison of strategies."""

from kedro.pipeline import Pipeline

from thawline.pipelines import make_node
from thawline.pipelines.compare import nodes

TRACKING = ["training_checkpoints", "metric_logger", "child_runs"]
TRAINED = ["comparison_outcomes", "comparison_classifiers"]
TABLES = ["comparison_trainings", "comparison_histories", "comparison_predictions"]
CONCLUSION = ["comparison", "comparison_table", "comparison_figure", "comparison_report"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from splits and transforms to trained strategies and the best of them."""
    data = ["parameters", "splits", "transforms", "activations"]
    trained = ["parameters", "splits", "comparison_outcomes"]
    return Pipeline(
        [
            make_node(nodes.train_strategies, [*data, *TRACKING], [*TRAINED, *TABLES]),
            make_node(nodes.compare_strategies, trained, [*CONCLUSION, "latest_report"]),
        ]
    )
