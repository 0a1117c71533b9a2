"""Wiring of the comparison of new images with held-out ones."""

from kedro.pipeline import Pipeline

from thawline.pipelines import make_node
from thawline.pipelines.drift.nodes import measure_drift

INPUTS = ["parameters", "classifier", "splits", "activations", "project"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from a folder of images to whether they are like those of the run."""
    outputs = ["drift", "drift_classes", "drift_images", "drift_report"]
    return Pipeline([make_node(measure_drift, INPUTS, outputs)])
