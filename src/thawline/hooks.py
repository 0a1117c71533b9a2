"""What happens around the nodes: parameters are checked, and all is tracked in MLflow."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import plotly.graph_objects as go
import torch
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import AbstractVersionedDataset, DataCatalog, Version
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Param
from omegaconf import OmegaConf

from thawline.datasets import TrainingStateDataset
from thawline.options import validate_parameters

logger = logging.getLogger(__name__)

PACKAGES = ("thawline", "torch", "torchvision", "timm", "kedro", "mlflow")
PARAMS_A_BATCH = 100  # MLflow refuses more in one call

# The files of a model are few; a bar for each copy of them only breaks the log.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


class ProjectHook:
    """Checks all parameters before anything runs, and sees to it that versions fit together."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Make ``${project_path:}`` known to the configuration and validate the parameters.

        Kedro's own validation sees one group at a time: it accepts unknown groups and does not look
        at plain values such as `strategy` and `seed`.
        """
        root = context.project_path.as_posix()
        # OmegaConf 2.4 renames the function and warns of the old name.
        register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
        register("project_path", lambda: root, replace=True)
        validate_parameters(context.config_loader["parameters"])

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Let a run read the versions that it wrote, and a classifier's own splits.

        Kedro takes the latest version of what a run has just saved: another run in the same folder
        may have saved a later one since. And where classifier and splits are both read from disk,
        the latest splits need not be those that the classifier was trained with.
        """
        for name in pipeline.all_outputs():
            dataset = catalog.get(name)
            if isinstance(dataset, AbstractVersionedDataset) and dataset._version:
                dataset._version = Version(dataset._version.save, dataset._version.save)
        if not {"classifier", "splits"} <= pipeline.inputs():
            return
        if "splits" not in (run_params["load_versions"] or {}):
            own = catalog["classifier"].resolve_load_version()  # type: ignore[attr-defined]
            # Replacing the entry instead would drop its validator.
            catalog["splits"]._version = Version(own, None)  # type: ignore[attr-defined]
            logger.info("Classifier and splits of version %s", own)

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Forget the states of trainings whose results are all in the catalog now."""
        for name in pipeline.inputs():
            dataset = catalog.get(name)
            if isinstance(dataset, TrainingStateDataset):
                dataset.forget()


class TrackingHook(MlflowHook):
    """kedro-mlflow's hook, which further logs all parameters first, tags, and catalog entries.

    A catalog entry is logged when it is saved and its `metadata.mlflow` lists what it is: `input`
    (a table that the run used), `metrics` (numbers by name), `tags` (texts by name), `artifact` (a
    file, unless there is nothing in it).
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Set MLflow up and keep the parameters of the run."""
        super().after_context_created(context)
        self._parameters = validate_parameters(context.config_loader["parameters"])

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Start the MLflow run with every parameter and with what else the run depends on."""
        given = _without_password(str(run_params["runtime_params"] or ""))
        super().before_pipeline_run({**run_params, "runtime_params": given}, pipeline, catalog)
        self._catalog = catalog
        if not self._is_mlflow_enabled:
            return
        parameters = [
            Param(self.sanitize_param_name(name), value)
            for name, value in _flatten(self._parameters.model_dump(mode="json"))
        ]
        parameters.sort(key=lambda p: p.key.startswith("strategies."))  # the long list comes last
        for start in range(0, len(parameters), PARAMS_A_BATCH):
            mlflow.MlflowClient().log_batch(
                self.run_id, params=parameters[start : start + PARAMS_A_BATCH]
            )
        mlflow.set_tags(  # in place of kedro-mlflow's: a command without --params, an address
            {
                "kedro_command": _without_password(" ".join(["kedro", *sys.argv[1:]])),
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
        metadata = getattr(self._catalog.get(dataset_name), "metadata", None) or {}
        if not self._is_mlflow_enabled:
            return
        kinds = metadata.get("mlflow", [])
        if "input" in kinds:
            table = from_pandas(data, name=dataset_name, targets="label")
            mlflow.log_input(table, context="training")
        if "metrics" in kinds:
            mlflow.log_metrics(data)
        if "tags" in kinds:
            mlflow.set_tags(data)
        if "artifact" in kinds:
            _log_artifact(dataset_name, data)


def _without_password(command: str) -> str:
    """Return a command without what stands between user and host of URLs in it."""
    return re.sub(r"(://[^/\s:@]*):[^/\s@]*@", r"\1:***@", command)


def _log_artifact(name: str, data: Any) -> None:
    if isinstance(data, pd.DataFrame):
        mlflow.log_text(data.to_csv(index=False), f"{name}.csv")
    elif isinstance(data, go.Figure):
        if data.data:  # with plotly.js in it: the page must open without a network
            mlflow.log_text(data.to_html(include_plotlyjs=True), f"{name}.html")
    elif isinstance(data, str):
        mlflow.log_text(data, f"{name}.yml")
    else:
        mlflow.log_dict(data, f"{name}.json")


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted name and text of every scalar; lists of scalars stay together."""
    inner: Any = ()
    if isinstance(tree, dict):
        inner = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, (dict, list)) for item in tree):
        inner = enumerate(tree)
    if not inner:
        yield prefix, str(tree)
    for name, value in inner:
        yield from _flatten(value, f"{prefix}.{name}" if prefix else str(name))


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
