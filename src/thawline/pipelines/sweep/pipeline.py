"""Wiring of sweeps."""

from kedro.pipeline import Pipeline

from thawline.pipelines import make_node
from thawline.pipelines.sweep import nodes
from thawline.sweep.space import check_space

RESOURCES = ["activations", "sweep_storage", "child_runs", "metric_logger"]
FIGURES = ["optimization_history", "importance", "parallel_coordinates"]


def create_pipeline() -> Pipeline:
    """Return the pipeline from splits and all parameters to the best of them."""
    searched = ["sweep_parameters", "development_splits", *RESOURCES]
    finished = ["finished_trials", "sweep_parameters"]
    return Pipeline(
        [
            make_node(check_space, "parameters", "sweep_parameters", name="check_parameters"),
            make_node(nodes.drop_test_split, "splits", "development_splits"),
            make_node(nodes.run_sweep, searched, ["sweep_study", "finished_trials"]),
            make_node(nodes.select_best_trial, ["sweep_study", *finished], "best_parameters"),
            make_node(nodes.report_sweep, finished, ["sweep_trials", *FIGURES]),
        ]
    )
