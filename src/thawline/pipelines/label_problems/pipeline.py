"""Wiring of the search for label problems."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.label_problems.nodes import find_label_problems

GRIDS = ["label_errors_grid", "near_duplicates_grid", "outliers_grid"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from splits and a pretrained network to tables of odd images."""
    node = Node(
        find_label_problems,
        ["parameters", "network", "splits", "near_duplicates", "transforms", "activations"],
        ["label_errors", "outliers", *GRIDS, "label_problems"],
        name="find_label_problems",
    )
    return Pipeline([node])
