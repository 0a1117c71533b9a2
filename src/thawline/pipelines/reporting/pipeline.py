"""Wiring of what is drawn after an evaluation, and of the report that gathers it."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.reporting import nodes
from thawline.reports.finetune import FIGURES

CALIBRATION = ["params:evaluation", "params:training", "params:seed"]
REPORTED = ("parameters", "splits", "strategy_choice", "metrics", *FIGURES)


def create_error_analysis() -> Pipeline:
    """Return the pipeline from predictions to how sure, and where wrong, the classifier is."""
    calibrate = Node(
        nodes.calibrate,
        ["classifier", "splits", "predictions", *CALIBRATION],
        ["calibration", "reliability_diagram"],
        name="calibrate",
    )
    plot = Node(
        nodes.plot_errors,
        ["predictions", "per_class_metrics"],
        ["per_class_figure", "misclassified_images"],
        name="plot_errors",
    )
    return Pipeline([calibrate, plot])


def create_report() -> Pipeline:
    """Return the pipeline from all figures to one page."""
    inputs = {name: name for name in REPORTED}
    return Pipeline([Node(nodes.write_report, inputs, "finetune_report", name="write_report")])
