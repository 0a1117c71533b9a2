"""Wiring of the review."""

from kedro.pipeline import Pipeline

from thawline.pipelines import make_node
from thawline.pipelines.review import nodes

FOUND = ["label_errors", "near_duplicates", "outliers", "applied_corrections"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from what the last run has left to the page of its images."""
    mapped = ["parameters", "classifier", "splits", "activations", "project"]
    shown = ["parameters", "image_map", *FOUND, "classifier", "project"]
    return Pipeline(
        [
            make_node(nodes.map_images, mapped, "image_map"),
            make_node(nodes.write_review, shown, "review_page"),
        ]
    )
