"""Wiring of the search for label problems."""

from kedro.pipeline import Pipeline

from thawline.pipelines import make_node
from thawline.pipelines.label_problems.nodes import find_label_problems

INPUTS = ["parameters", "network", "splits", "near_duplicates", "transforms", "activations"]
GRIDS = ["label_errors_grid", "near_duplicates_grid", "outliers_grid"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from splits and a pretrained network to tables of odd images."""
    outputs = ["label_errors", "outliers", *GRIDS, "label_problems"]
    return Pipeline([make_node(find_label_problems, INPUTS, outputs)])
