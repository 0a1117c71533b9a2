"""Wiring of prediction."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.predict.nodes import predict_folder

PARAMETERS = ["params:predict", "params:registry", "params:model", "params:training"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from a folder of images to a table of labels."""
    inputs = ["project", "registry", *PARAMETERS]
    outputs = ["folder_predictions", "prediction_summary"]
    return Pipeline([Node(predict_folder, inputs, outputs, name="predict_folder")])
