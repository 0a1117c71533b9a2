"""Wiring of prediction."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.predict.nodes import predict_folder


def create_pipeline() -> Pipeline:
    """Return the pipeline from a folder of images to a table of labels."""
    return Pipeline(
        [
            Node(
                predict_folder,
                [
                    "project",
                    "registry",
                    "params:predict",
                    "params:registry",
                    "params:model",
                    "params:training",
                ],
                ["folder_predictions", "prediction_summary"],
                name="predict_folder",
            )
        ]
    )
