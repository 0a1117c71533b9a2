"""Wiring of explanations."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.explain.nodes import explain_predictions


def create_pipeline() -> Pipeline:
    """Return the pipeline from a classifier's predictions to what they rest on."""
    node = Node(
        explain_predictions,
        ["classifier", "splits", "predictions", "params:explain", "params:training", "project"],
        ["explained_images", "attributions"],
        name="explain_predictions",
    )
    return Pipeline([node])
