"""Connect to MLflow: its address without a password, its retries, a check that it answers.

MLflow itself repeats a request to a server that does not answer: with these defaults for about a
minute, in which a server can restart. Variables of the environment change them
(https://mlflow.org/docs/latest/api_reference/python_api/mlflow.environment_variables.html). A
longer outage ends the run, which `training.resume=true` goes on with. MLflow waits 20 s for a
locked SQLite file.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
import requests
from kedro.framework.context import KedroContext
from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from thawline.errors import TrackingError
from thawline.tracking.redaction import PASSWORD, USERNAME, mask, strip_credentials

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",  # after 0, 4, 8, 16 and 32 seconds
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # it breaks the log
}
OTHER_EXPERIMENTS = {
    "data_preparation": " data", "predict": " predictions", "drift": " predictions",
    "explain": " predictions", "export": " predictions", "review": " data",
}  # fmt: skip
TRACKING_URI, MAX_RETRIES = "MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
HEALTH_TIMEOUT_SECONDS = 3
ABSOLUTE = re.compile(r"/|[A-Za-z][\w+.-]*:")  # a path or a URI

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)


def connect(context: KedroContext) -> KedroMlflowConfig:
    """Set MLflow up as mlflow.yml says and return what it says.

    Raises:
        TrackingError: if the server does not answer.
    """
    config = read_settings(context.config_loader["mlflow"])
    if problem := find_server_problem(config.server.mlflow_tracking_uri or ""):
        raise TrackingError(
            f"{problem}. Start it, or correct server.mlflow_tracking_uri in mlflow.yml."
        )
    # MLflow sets the variable, and the next session in this process would take it for the user's.
    with restore(TRACKING_URI):
        try:
            config.setup(context)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            config.setup(context)  # another run has just created the experiment
    return config


def find_experiment(name: str, pipelines: Collection[str]) -> str:
    """Return the id of the experiment for the runs of pipelines: one has trainings alone.

    `name` is that of mlflow.yml, which kedro-mlflow has created.
    """
    client = mlflow.MlflowClient()
    main = client.get_experiment_by_name(name)
    assert main is not None
    others = {OTHER_EXPERIMENTS.get(pipeline, "") for pipeline in pipelines}
    if len(others) > 1 or not (suffix := others.pop()):
        return str(main.experiment_id)
    own = f"{name}{suffix}"
    if not client.get_experiment_by_name(own):
        try:
            client.create_experiment(own, main.artifact_location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run has just created it
                raise
    found = client.get_experiment_by_name(own)
    assert found is not None
    if found.lifecycle_stage == LifecycleStage.DELETED:  # kedro-mlflow restores the main one alone
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def read_settings(settings: dict[str, Any]) -> KedroMlflowConfig:
    """Return mlflow.yml without a password, and without a folder of this project for a server."""
    config = KedroMlflowConfig.model_validate(settings)
    uri = strip_credentials(config.server.mlflow_tracking_uri or os.environ.get(TRACKING_URI, ""))
    config.server.mlflow_tracking_uri = uri or None
    files = config.tracking.experiment.create_experiment_kwargs
    if is_server(uri) and not ABSOLUTE.match(files.artifact_location or ""):
        files.artifact_location = None
    return config


def find_server_problem(uri: str) -> str:
    """Return the problem with an MLflow server; empty if it answers or there is none."""
    if not is_server(uri):
        return ""
    user, token = os.environ.get(USERNAME), os.environ.get("MLFLOW_TRACKING_TOKEN")
    asked: dict[str, Any] = {"auth": (user, os.environ.get(PASSWORD, ""))} if user else {}
    asked |= {"headers": {"Authorization": f"Bearer {token}"}} if token and not user else {}
    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_SECONDS, **asked)
    except requests.RequestException as error:
        return f"The MLflow server {mask(uri)} does not answer ({type(error).__name__})"
    if not answer.ok:
        return f"The MLflow server {mask(uri)} answers with status {answer.status_code}"
    return ""


def is_server(uri: str) -> bool:
    """Return whether runs are sent over HTTP, not written to a database."""
    return uri.startswith(("http:", "https:"))


@contextmanager
def restore(variable: str) -> Iterator[None]:
    """Give a variable of the environment back the value that it has before the block."""
    before = os.environ.get(variable)
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before
