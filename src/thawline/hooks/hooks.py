"""What happens around the nodes: parameters are checked, and all is tracked in MLflow."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import mlflow
import pandas as pd
import plotly.graph_objects as go
import torch
from kedro.config import MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import AbstractVersionedDataset, DataCatalog, Version
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import _run_context_provider_registry
from PIL import Image

from thawline.data.atomic_write import sync
from thawline.data.sources import find_root
from thawline.datasets import ClassifierDataset, TrainingCheckpointsDataset
from thawline.datasets.image_table_dataset import ImageTable
from thawline.errors import DataError, ParameterError, TrackingError
from thawline.hooks.configuration import MLFLOW_PATTERNS, register_project_path
from thawline.networks.building import build_on_meta_device
from thawline.options import flatten, validate_parameters
from thawline.sweep.space import possible_strategies
from thawline.thaw.freezing import find_unknown_names
from thawline.tracking.redaction import mask, mask_logs, strip_credentials
from thawline.tracking.servers import connect, log_input, wait_for_locks
from thawline.tracking.stale_runs import ProcessContext, mark_dead_runs

logger = logging.getLogger(__name__)

PACKAGES = ("thawline", "torch", "torchvision", "timm", "kedro", "mlflow")
CLASSIFIER_ENTRIES = {"splits", "predictions"}  # saved by the run that saved a classifier
OUTBOX = Path("data", "mlflow_outbox")  # of a project
UNMARKED = "The end of this run cannot be told to MLflow: the next run marks it as KILLED"
TRACKING_URI = "MLFLOW_TRACKING_URI"
ELSEWHERE = re.compile(r"/|[A-Za-z][\w+.-]*:")  # an absolute path, or a URI
MAX_PARAMS_PER_BATCH = 100  # MLflow refuses more in one call

# The files of a model are few; a bar for each copy of them only breaks the log.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

# A run has its tags from its first moment so: set afterwards, they come too late for a SIGKILL.
_run_context_provider_registry.register(ProcessContext)
wait_for_locks()

mask_logs()


class ProjectHook:
    """Checks all parameters before anything runs, and sees to it that versions fit together."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Make ``${project_path:}`` known to the configuration and validate the parameters.

        Kedro's own validation sees one group at a time: it accepts unknown groups and does not look
        at plain values such as `strategy` and `seed`.
        """
        register_project_path(context.project_path)
        self._hooks = context._hook_manager.hook
        options = self._parameters = validate_parameters(context.config_loader["parameters"])
        ClassifierDataset.own = options.model
        project = Path(context.project_path)
        ImageTable.current_root = find_root(options.dataset.root, project, project)

    @hook_impl
    def after_catalog_created(self, catalog: DataCatalog) -> None:
        """Give nodes `parameters` as what was validated, as Kedro does with `params:GROUP`."""
        catalog["parameters"].save(self._parameters)

    @hook_impl(tryfirst=True)  # before an MLflow run begins
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check that the backbone has the stages that the run's strategies name; fix versions.

        A run reads the versions that it wrote, and a classifier's own splits and predictions.

        Kedro takes the latest version of what a run has just saved: another run in the same folder
        may have saved a later one since. And where classifier and splits are both read from disk,
        the latest splits need not be those that the classifier was trained with.

        Raises:
            ParameterError: when there is no such stage.
            DataError: when there are no splits or predictions of the classifier's version.
        """
        self._check_stages(pipeline)
        self._catalog = catalog
        self._keeps_splits = (
            "splits" in pipeline.inputs() and "classifier" in pipeline.all_outputs()
        )
        for name in pipeline.all_outputs():
            dataset = catalog.get(name)
            if isinstance(dataset, AbstractVersionedDataset) and dataset._version:
                dataset._version = Version(dataset._version.save, dataset._version.save)
        if "classifier" not in pipeline.inputs():
            return
        own = catalog["classifier"].resolve_load_version()  # type: ignore[attr-defined]
        given = run_params["load_versions"] or {}
        for name in sorted(pipeline.inputs() & CLASSIFIER_ENTRIES - {*given}):
            # Replacing the entry instead would drop its validator.
            catalog[name]._version = Version(own, None)  # type: ignore[attr-defined]
            logger.info("Classifier and %s of version %s", name, own)
            if not catalog[name].exists():
                raise DataError(
                    f"{name}: there are none of the classifier's version {own}, so its run did not"
                    f" come to its end. Name another one by --load-versions=classifier:VERSION, or"
                    f" other {name} by --load-versions={name}:VERSION."
                )

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any, node: Node) -> None:
        """Save splits that a training reads from disk as its own, as if the run had made them.

        So they have the version of its classifier, whatever splits are made later, and are logged.
        """
        if dataset_name != "splits" or not self._keeps_splits:
            return
        self._keeps_splits = False
        splits: Any = self._catalog[dataset_name]
        splits._version = Version(splits._version.save, splits._version.save)
        saved = {"dataset_name": dataset_name, "data": data, "node": node}
        self._hooks.before_dataset_saved(**saved)
        splits.save(data)
        self._hooks.after_dataset_saved(**saved)

    def _check_stages(self, pipeline: Pipeline) -> None:
        """Look at the structure of the network before the first image is read."""
        names, chosen = {node.name for node in pipeline.nodes}, set()
        if names & {"build_model", "choose_strategy"}:
            chosen.add(self._parameters.strategy)
        if "train_strategies" in names:
            chosen.update(self._parameters.compare.strategies)
        if "run_sweep" in names:
            chosen.update(possible_strategies(self._parameters))
        if not chosen:
            return
        strategies = {n: s for n, s in self._parameters.strategies.items() if n in chosen}
        network = build_on_meta_device(self._parameters.model) if strategies else None
        if network and (problems := find_unknown_names(network, strategies)):
            lines = "\n".join(f"  {line}" for line in problems)
            raise ParameterError(
                f"These parameters do not fit {self._parameters.model.backbone}:\n{lines}"
            )

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Say which model predicts next, and forget the states of trainings that ended well."""
        if "registration" in pipeline.all_outputs():
            logger.info("%s", catalog.load("registration")["next_prediction"])
        for name in pipeline.inputs():
            dataset = catalog.get(name)
            if isinstance(dataset, TrainingCheckpointsDataset):
                dataset.forget()


class AtomicSaveHook:
    """Moves what the catalog saves to its place when it is whole.

    Kedro's datasets write straight to it: half a file, where the disk is full or the process was
    killed, would be the latest version.
    """

    @hook_impl
    def before_pipeline_run(self, catalog: DataCatalog) -> None:
        """Keep the catalog, of which Kedro tells less later."""
        self._catalog = catalog
        self._unfinished: dict[str, tuple[Any, Path, Path]] = {}

    @hook_impl
    def before_dataset_saved(self, dataset_name: str) -> None:
        """Let an entry of one local file be written beside its place."""
        dataset: Any = self._catalog.get(dataset_name)
        if getattr(dataset, "_protocol", None) == "file":
            target = Path(dataset._get_save_path())
            # A run beside this one may be saving the same entry.
            beside = target.with_name(f"unfinished.{os.getpid()}.{target.name}")
            self._unfinished[dataset_name] = (dataset, beside, target)
            dataset._get_save_path = lambda: PurePosixPath(beside.as_posix())

    @hook_impl(tryfirst=True)  # before it is logged
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Move what was written as a whole to its place."""
        if dataset_name in self._unfinished:
            _, beside, target = self._unfinished[dataset_name]
            sync(beside)
            beside.replace(target)
            self._forget_unfinished(dataset_name)

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Remove what was not written as a whole."""
        for name in [*self._unfinished]:
            self._forget_unfinished(name)

    def _forget_unfinished(self, dataset_name: str) -> None:
        dataset, beside, _ = self._unfinished.pop(dataset_name)
        del dataset._get_save_path  # of this one object
        beside.unlink(missing_ok=True)


class TrackingHook(MlflowHook):
    """kedro-mlflow's hook, which further logs all parameters first, tags, and catalog entries.

    A catalog entry is logged when it is saved and its `metadata.mlflow` lists what it is: `input`
    (a table that the run used), `metrics` (numbers by name), `tags` (texts by name), `artifact` (a
    file, unless there is nothing in it).

    Runs that are interrupted (Ctrl+C, SIGTERM) are marked as KILLED when Python ends, those whose
    process could not do so when the next run begins.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Set MLflow up and keep the parameters of the run."""
        _prepare_server(context)
        self._parameters = validate_parameters(context.config_loader["parameters"])
        outbox = Path(context.project_path, OUTBOX)
        self._servers = connect(outbox, self._parameters.tracking.on_failure)
        given = os.environ.get(TRACKING_URI)
        try:
            super().after_context_created(context)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            super().after_context_created(context)  # another run has just made the experiment
        # MLflow sets it, and the next session in this process would take it for the user's.
        os.environ.pop(TRACKING_URI, None)
        if given is not None:
            os.environ[TRACKING_URI] = given

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Start the MLflow run with every parameter and with what else the run depends on."""
        given = mask(str(run_params["runtime_params"] or ""))
        if not self._already_active_mlflow:
            experiment = self.mlflow_config.tracking.experiment._experiment
            mark_dead_runs(mlflow.MlflowClient(), experiment.experiment_id)
        atexit.register(self._end_as_killed)  # before MLflow's own, by which they are FINISHED
        super().before_pipeline_run({**run_params, "runtime_params": given}, pipeline, catalog)
        self._catalog = catalog
        if not self._is_mlflow_enabled:
            atexit.unregister(self._end_as_killed)
            return
        self._log_parameters(self.run_id, self._parameters.model_dump(mode="json"))
        mlflow.set_tags(  # in place of kedro-mlflow's: a command without --params, an address
            {
                "kedro_command": mask(_command_line()),
                "runner": run_params["runner"].split()[0].rpartition(".")[2],
                "device": _device(self._parameters.training.device),
                "python": platform.python_version(),
                **{name: version(name) for name in PACKAGES},
                **_commit(Path(run_params["project_path"])),
            }
        )

    @hook_impl
    def before_node_run(
        self, node: Node, catalog: DataCatalog, inputs: dict[str, Any], is_async: bool
    ) -> None:
        """Reopen the run where a node runs in a thread; its parameters are logged already."""
        super().before_node_run(node, catalog, {}, is_async)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log a catalog entry that says so."""
        dataset = self._catalog.get(dataset_name)
        metadata = getattr(dataset, "metadata", None) or {}
        if not self._is_mlflow_enabled:
            return
        kinds = metadata.get("mlflow", [])
        if isinstance(dataset, ImageTable):
            data = dataset.as_saved(data)
        if "input" in kinds:
            table = from_pandas(data, name=dataset_name, targets="label")
            log_input(table, context="training")
        if "metrics" in kinds:
            mlflow.log_metrics(data)
        if "tags" in kinds:
            mlflow.set_tags(data)
        if "artifact" in kinds:
            _log_artifact(dataset_name, data, dataset, self.run_id)

    @hook_impl
    def on_pipeline_error(
        self, error: Exception, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Mark the run as failed."""
        atexit.unregister(self._end_as_killed)
        try:
            super().on_pipeline_error(error, run_params, pipeline, catalog)
        except (MlflowException, TrackingError) as second:  # the first is what matters
            logger.warning("%s (%s)", UNMARKED, second)
        self._servers.finish()

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """End the run."""
        super().after_pipeline_run(run_params, pipeline, catalog)
        atexit.unregister(self._end_as_killed)
        self._servers.finish()

    def _end_as_killed(self) -> None:
        """Mark what is running while Python ends, of which Kedro does not tell its hooks."""
        if not mlflow.active_run():
            return
        try:
            while mlflow.active_run():
                mlflow.end_run("KILLED")
        except (MlflowException, TrackingError) as error:
            logger.warning("%s (%s)", UNMARKED, error)
        self._servers.finish()
        logger.warning(
            "This run was interrupted, and is marked as KILLED. To go on where a training was last"
            " saved, repeat the command with training.resume=true."
        )

    def _log_parameters(self, run_id: str, tree: dict[str, Any]) -> None:
        parameters = [
            Param(self.sanitize_param_name(name), mask(f"{name}={value}").removeprefix(f"{name}="))
            for name, value in flatten(tree)
        ]
        parameters.sort(key=lambda p: p.key.startswith("strategies."))  # the long list comes last
        for start in range(0, len(parameters), MAX_PARAMS_PER_BATCH):
            batch = parameters[start : start + MAX_PARAMS_PER_BATCH]
            mlflow.MlflowClient().log_batch(run_id, params=batch)


def _prepare_server(context: KedroContext) -> None:
    """Hide the password of a tracking server from all that repeats its address.

    A folder of this project as the place of files is none to a server: it has one of its own.
    """
    loader: Any = context.config_loader
    loader.config_patterns.setdefault("mlflow", MLFLOW_PATTERNS)
    try:
        configuration = context.config_loader["mlflow"]
    except MissingConfigException:  # kedro-mlflow then takes its defaults
        configuration = {}
    server = configuration.get("server") or {}
    for place, name in ((server, "mlflow_tracking_uri"), (os.environ, TRACKING_URI)):
        if place.get(name):
            place[name] = strip_credentials(place[name])
    experiment = (configuration.get("tracking") or {}).get("experiment") or {}
    files = experiment.get("create_experiment_kwargs") or {}
    is_server = str(server.get("mlflow_tracking_uri")).startswith(("http:", "https:"))
    if is_server and not ELSEWHERE.match(files.get("artifact_location") or ""):
        files["artifact_location"] = None
    if server:
        context.config_loader["mlflow"] = configuration


def _log_artifact(name: str, data: Any, dataset: Any, run_id: str) -> None:
    """Log a table, a figure, a picture, a text or plain data to a run."""
    if isinstance(data, pd.DataFrame):
        mlflow.log_text(data.to_csv(index=False), f"{name}.csv", run_id)
    elif isinstance(data, go.Figure):
        if data.data:  # with plotly.js in it: the page must open without a network
            mlflow.log_text(data.to_html(include_plotlyjs=True), f"{name}.html", run_id)
    elif isinstance(data, Image.Image):
        mlflow.MlflowClient().log_image(run_id, data, f"{name}.png")
    elif isinstance(data, str):
        mlflow.log_text(data, name + PurePath(dataset._filepath).suffix, run_id)
    else:
        mlflow.log_dict(data, f"{name}.json", run_id)


def _command_line() -> str:
    """Return what was typed, by the name of the command instead of where it is installed."""
    packaged = Path(sys.argv[0]).parts[-2:] == ("thawline", "__main__.py")
    return " ".join(["python -m thawline" if packaged else "kedro", *sys.argv[1:]])


def _device(wanted: str) -> str:
    """Return the name of what computes."""
    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if wanted in ("auto", "mps") and torch.backends.mps.is_available():
        return "mps"
    return f"cpu ({platform.processor() or platform.machine()})"


def _commit(project: Path) -> dict[str, str]:
    """Return the commit and whether files differ from it; nothing outside a repository."""
    commit = _git(project, "rev-parse", "HEAD")
    if not commit:
        return {}
    return {"git_commit": commit, "git_dirty": str(bool(_git(project, "status", "--short")))}


def _git(project: Path, *arguments: str) -> str:
    """Return what git says, or nothing outside a repository or without git."""
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=project, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
