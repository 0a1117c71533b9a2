"""Wiring of sweeps."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.sweep import nodes
from thawline.sweep.space import check_space

RESOURCES = ["activations", "sweep_storage", "child_runs", "metric_logger"]
FIGURES = ["optimization_history", "importance", "parallel_coordinates"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from splits and all parameters to the best of them."""
    trials = Node(
        nodes.run_sweep,
        ["sweep_parameters", "development_splits", *RESOURCES],
        ["sweep_study", "finished_trials"],
        name="run_sweep",
    )
    best = Node(
        nodes.select_best_trial,
        ["sweep_study", "finished_trials", "sweep_parameters"],
        "best_parameters",
        name="select_best_trial",
    )
    report = Node(
        nodes.report_sweep,
        ["finished_trials", "sweep_parameters"],
        ["sweep_trials", *FIGURES],
        name="report_sweep",
    )
    return Pipeline(
        [
            Node(check_space, "parameters", "sweep_parameters", name="check_parameters"),
            Node(nodes.drop_test_split, "splits", "development_splits", name="drop_test_split"),
            trials,
            best,
            report,
        ]
    )
