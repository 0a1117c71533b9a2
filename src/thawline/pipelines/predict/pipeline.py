"""Wiring of prediction."""

from kedro.pipeline import Pipeline

from thawline.pipelines import make_node
from thawline.pipelines.predict.nodes import predict_folder

PARAMETERS = ["params:predict", "params:registry", "params:model", "params:training"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from a folder of images to a table of labels."""
    outputs = ["folder_predictions", "prediction_summary"]
    return Pipeline([make_node(predict_folder, ["project", "registry", *PARAMETERS], outputs)])
