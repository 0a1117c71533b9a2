"""Track a run in MLflow: its parameters, tags and catalog entries."""

import atexit
import logging
import os
import sys
from typing import Any

import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from mlflow.exceptions import MlflowException

from thawline.tracking.connection import MAX_RETRIES, connect, find_experiment, restore
from thawline.tracking.entries import log_entry
from thawline.tracking.process_context import mark_stale_runs
from thawline.tracking.redaction import mask_logs
from thawline.tracking.run_tags import describe_device, describe_run, name_run, own_parameters

logger = logging.getLogger(__name__)

TRAINING_NODES = ("train_model", "train_strategies", "run_sweep")

mask_logs()


class TrackingHook:
    """Opens an MLflow run per Kedro run; kedro-mlflow configures it and shows it.

    kedro-mlflow's own hook would log typed parameters as one opaque text each, and passwords among
    the tags. Every catalog entry is logged when it is saved; see `thawline.tracking.entries`.

    Runs that are interrupted (Ctrl+C, SIGTERM) are marked as KILLED when Python ends, those whose
    process could not do so when the next run begins.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Set MLflow up."""
        self._config = connect(context)
        context.mlflow = self._config  # type: ignore[attr-defined]  # `kedro mlflow ui` reads it

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Start the MLflow run with all parameters and with what else the run depends on."""
        self._catalog = catalog
        tracking, names = self._config.tracking, run_params["pipeline_names"] or ["__default__"]
        self._run_id = ""
        if {*names} & {*tracking.disable_tracking.pipelines}:
            return
        experiment_id = find_experiment(tracking.experiment.name, names)
        parameters = catalog["parameters"].load()
        nodes = {node.name for node in pipeline.nodes}
        trains, self._can_resume = "train_model" in nodes, not nodes.isdisjoint(TRAINING_NODES)
        self._name = tracking.run.name or name_run(parameters, names, trains)
        mark_stale_runs(mlflow.MlflowClient(), experiment_id)
        atexit.register(self._end_as_killed)  # it runs before MLflow's own, which says FINISHED
        run = mlflow.start_run(
            run_id=tracking.run.id,
            experiment_id=experiment_id,
            run_name=self._name,
            nested=tracking.run.nested,
        )
        self._run_id = run.info.run_id
        mlflow.log_params(own_parameters(parameters, names))
        mlflow.set_tags(describe_run(run_params))

    @hook_impl
    def before_node_run(self) -> None:
        """Continue the run if another thread runs the node: MLflow keeps one per thread."""
        if self._run_id and not mlflow.active_run():
            mlflow.start_run(self._run_id)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log a catalog entry."""
        if self._run_id:
            log_entry(self._catalog, dataset_name, data)
            if dataset_name == "strategy_choice" and data["strategy"] != data["chosen_strategy"]:
                chosen = f"{data['strategy']}→{data['chosen_strategy']}"
                name = self._name.replace(f" · {data['strategy']} · ", f" · {chosen} · ")
                mlflow.set_tag("mlflow.runName", name)

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Mark the run as FAILED."""
        atexit.unregister(self._end_as_killed)
        with restore(MAX_RETRIES):
            if isinstance(error, MlflowException):  # retries have just ended in vain
                os.environ[MAX_RETRIES] = "0"
            self._end("FAILED")

    @hook_impl
    def after_pipeline_run(self) -> None:
        """End the run."""
        if self._run_id:
            self._tag_device()
            mlflow.end_run()
        atexit.unregister(self._end_as_killed)

    def _end_as_killed(self) -> None:
        """Mark what is running while Python ends, of which Kedro does not tell its hooks."""
        if mlflow.active_run() and self._end("KILLED"):
            how = " To resume it, repeat the command with training.resume=true."
            logger.warning("Run interrupted and marked as KILLED.%s", how * self._can_resume)

    def _tag_device(self) -> None:
        """Say what the run computed on; one that has not needed PyTorch does not import it."""
        if mlflow.active_run() and "torch" in sys.modules:
            options = self._catalog["parameters"].load().training
            mlflow.set_tag("device", describe_device(options.device))

    def _end(self, status: str) -> bool:
        """Give a status to the active run and the one below it; return whether MLflow has it."""
        try:
            try:
                self._tag_device()
            finally:
                while mlflow.active_run():
                    mlflow.end_run(status)
        except MlflowException as error:  # the error that ended the run is the one to show
            logger.warning(
                "MLflow cannot be told that this run is %s; the next run marks it as KILLED (%s)",
                status,
                error,
            )
            return False
        return True
