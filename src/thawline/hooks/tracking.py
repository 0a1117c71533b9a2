"""Track a run in MLflow: its parameters, tags and catalog entries."""

import atexit
import logging
from typing import Any

import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from thawline.options import flatten, validate_parameters
from thawline.tracking.connection import connect, no_retries
from thawline.tracking.entries import log_entry
from thawline.tracking.redaction import mask, mask_logs
from thawline.tracking.run_tags import describe_run
from thawline.tracking.stale_runs import mark_stale_runs

logger = logging.getLogger(__name__)

MAX_PARAMS_PER_BATCH = 100  # MLflow refuses more in one call

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
        """Set MLflow up and keep the parameters of the run."""
        self._parameters = validate_parameters(context.config_loader["parameters"])
        self._config = connect(context)
        context.mlflow = self._config  # type: ignore[attr-defined]  # `kedro mlflow ui` reads it

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], catalog: DataCatalog) -> None:
        """Start the MLflow run with all parameters and with what else the run depends on."""
        self._catalog = catalog
        tracking, names = self._config.tracking, run_params["pipeline_names"] or ["__default__"]
        self._run_id = ""
        if {*names} & {*tracking.disable_tracking.pipelines}:
            return
        experiment = mlflow.get_experiment_by_name(tracking.experiment.name)
        assert experiment is not None  # kedro-mlflow has created it
        mark_stale_runs(mlflow.MlflowClient(), experiment.experiment_id)
        atexit.register(self._end_as_killed)  # it runs before MLflow's own, which says FINISHED
        run = mlflow.start_run(
            run_id=tracking.run.id,
            run_name=tracking.run.name or "+".join(names),
            nested=tracking.run.nested,
        )
        self._run_id = run.info.run_id
        self._log_parameters()
        mlflow.set_tags(describe_run(run_params, self._parameters.training.device))

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

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Mark the run as FAILED."""
        atexit.unregister(self._end_as_killed)
        if isinstance(error, MlflowException):
            with no_retries():
                self._end("FAILED")
        else:
            self._end("FAILED")

    @hook_impl
    def after_pipeline_run(self) -> None:
        """End the run."""
        if self._run_id:
            mlflow.end_run()
        atexit.unregister(self._end_as_killed)

    def _end_as_killed(self) -> None:
        """Mark what is running while Python ends, of which Kedro does not tell its hooks."""
        if mlflow.active_run():
            self._end("KILLED")
            logger.warning(
                "Run interrupted and marked as KILLED. To resume it, repeat the command with"
                " training.resume=true."
            )

    def _end(self, status: str) -> None:
        """Give a status to the active run and the one below it."""
        try:
            while mlflow.active_run():
                mlflow.end_run(status)
        except MlflowException as error:  # the error that ended the run is the one to show
            logger.warning(
                "MLflow cannot be told that this run is %s; the next run marks it as KILLED (%s)",
                status,
                error,
            )

    def _log_parameters(self) -> None:
        """Log all parameters at once: a crash would lose those of later nodes."""
        parameters = [
            Param(name, mask(f"{name}={value}").removeprefix(f"{name}="))
            for name, value in flatten(self._parameters.model_dump(mode="json"))
        ]
        parameters.sort(key=lambda p: p.key.startswith("strategies."))  # the long list comes last
        for start in range(0, len(parameters), MAX_PARAMS_PER_BATCH):
            batch = parameters[start : start + MAX_PARAMS_PER_BATCH]
            mlflow.MlflowClient().log_batch(self._run_id, params=batch)
