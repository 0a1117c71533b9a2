"""Wiring of what is drawn after an evaluation, and of the report that gathers it."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.reporting import nodes
from thawline.reports.finetune import FIGURES


def create_error_analysis() -> Pipeline:
    """Return the pipeline from predictions to how sure, and where wrong, the classifier is."""
    return Pipeline(
        [
            Node(
                nodes.calibrate,
                [
                    "classifier",
                    "splits",
                    "predictions",
                    "params:evaluation",
                    "params:training",
                    "params:seed",
                ],
                ["calibration", "reliability_diagram"],
                name="calibrate",
            ),
            Node(
                nodes.plot_errors,
                ["predictions", "per_class_metrics"],
                ["per_class_figure", "misclassified_images"],
                name="plot_errors",
            ),
        ]
    )


def create_report() -> Pipeline:
    """Return the pipeline from all figures to one page."""
    entries = ("parameters", "splits", "strategy_choice", "metrics", *FIGURES)
    return Pipeline(
        [
            Node(
                nodes.write_report,
                {name: name for name in entries},
                "finetune_report",
                name="write_report",
            )
        ]
    )
