"""Wiring of the export."""

from kedro.pipeline import Pipeline

from thawline.pipelines import make_node
from thawline.pipelines.export.nodes import export_model


def create_pipeline() -> Pipeline:
    """Return the pipeline from a model to its ONNX file."""
    inputs = ["registry", "params:export", "params:registry", "params:model"]
    return Pipeline([make_node(export_model, inputs, "onnx_model")])
