"""Wiring of data preparation."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.data_preparation import nodes


def create_pipeline() -> Pipeline:
    """Return the pipeline from raw images to splits and what they look like."""
    inputs = ["project", "raw_images", "params:dataset"]
    scan = Node(nodes.scan_images, inputs, "manifest", name="scan_images")
    screen = Node(
        nodes.screen_images,
        ["manifest", "params:screening", "params:transforms", "screening_cache"],
        ["clean_manifest", "quarantine"],
        name="screen_images",
    )
    split = Node(
        nodes.split_dataset,
        ["clean_manifest", "params:dataset", "params:screening", "params:model", "params:seed"],
        ["splits", "near_duplicates"],
        name="split_dataset",
    )
    plot = Node(
        nodes.plot_dataset,
        ["splits", "params:seed"],
        ["class_balance", "image_sizes", "sample_images"],
        name="plot_dataset",
    )
    return Pipeline([scan, screen, split, plot])
