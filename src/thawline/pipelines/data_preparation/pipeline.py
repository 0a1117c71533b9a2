"""Wiring of data preparation."""

from kedro.pipeline import Pipeline

from thawline.data.screening.screen import screen_images
from thawline.pipelines import make_node
from thawline.pipelines.data_preparation import nodes

FIGURES = ["class_balance", "image_sizes", "sample_images"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from raw images to splits and what they look like."""
    raw = ["project", "raw_images", "params:dataset"]
    found = ["manifest", "params:screening", "params:transforms", "screening_cache"]
    usable = ["clean_manifest", "params:dataset", "params:screening", "params:model", "params:seed"]
    return Pipeline(
        [
            make_node(nodes.scan_images, raw, ["manifest", "applied_corrections"]),
            make_node(screen_images, found, ["clean_manifest", "quarantine"]),
            make_node(nodes.split_dataset, usable, ["splits", "near_duplicates"]),
            make_node(nodes.plot_dataset, ["splits", "params:seed"], FIGURES),
        ]
    )
