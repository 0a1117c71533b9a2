"""Wiring of data preparation."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.data_preparation.nodes import (
    plot_dataset,
    scan_images,
    screen_images,
    split_dataset,
)


def create_pipeline() -> Pipeline:
    """Return the pipeline from raw images to splits and what they look like."""
    return Pipeline(
        [
            Node(
                scan_images,
                ["project", "raw_images", "params:dataset"],
                "manifest",
                name="scan_images",
            ),
            Node(
                screen_images,
                ["manifest", "params:screening", "params:transforms", "screening_cache"],
                ["clean_manifest", "quarantine"],
                name="screen_images",
            ),
            Node(
                split_dataset,
                [
                    "clean_manifest",
                    "params:dataset",
                    "params:screening",
                    "params:model",
                    "params:seed",
                ],
                ["splits", "near_duplicates"],
                name="split_dataset",
            ),
            Node(
                plot_dataset,
                ["splits", "params:seed"],
                ["class_balance", "image_sizes", "sample_images"],
                name="plot_dataset",
            ),
        ]
    )
