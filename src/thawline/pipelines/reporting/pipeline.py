"""Wiring of what is drawn after an evaluation, and of the report that gathers it."""

from kedro.pipeline import Pipeline

from thawline.evaluation.weak_spots import find_weak_spots
from thawline.pipelines import make_node
from thawline.pipelines.reporting import nodes
from thawline.reports.finetune import ENTRIES

CALIBRATION = ["calibration", "reliability_diagram", "risk_coverage_figure", "prediction_sets"]
REPORTED = ("parameters", "splits", "strategy_choice", "metrics", "registration", *ENTRIES)


def create_error_analysis() -> Pipeline:
    """Return the pipeline from predictions to how sure, and where wrong, the classifier is."""
    predicted = ["classifier", "predictions", "params:seed"]
    figures = ["per_class_figure", "misclassified_images"]
    return Pipeline(
        [
            make_node(nodes.measure_calibration, predicted, CALIBRATION),
            make_node(nodes.plot_errors, ["predictions", "per_class_metrics"], figures),
            make_node(find_weak_spots, ["predictions", "params:seed"], "weak_spots"),
        ]
    )


def create_report() -> Pipeline:
    """Return the pipeline from all figures and tables to one page."""
    inputs = {name: name for name in REPORTED}
    return Pipeline([make_node(nodes.write_report, inputs, ["finetune_report", "latest_report"])])
