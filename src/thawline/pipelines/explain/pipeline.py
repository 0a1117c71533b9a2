"""Wiring of explanations."""

from kedro.pipeline import Pipeline

from thawline.pipelines import make_node
from thawline.pipelines.explain.nodes import explain_predictions

INPUTS = ["classifier", "splits", "predictions", "params:explain", "params:training", "project"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from a classifier's predictions to what they rest on."""
    return Pipeline([make_node(explain_predictions, INPUTS, ["explained_images", "attributions"])])
