"""The runs and models of the place of a command, as MLflow has them."""

import math
from collections.abc import Mapping
from datetime import datetime

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from thawline.api import CLASSIFIERS, REPORT, Place, read_place
from thawline.reports.runs import RunRow
from thawline.serving.find_model import find_uri
from thawline.serving.registry import CHAMPION, ProjectFolders, find_version
from thawline.tracking.connection import read_settings

MAX_RUNS = 1000


def list_runs(place: Place, count: int | None) -> pd.DataFrame:
    """Return runs that have a test accuracy, the latest first, as `reports.runs` describes them."""
    columns = [*RunRow._fields]
    settings = read_settings(read_place(place)["mlflow"])
    uri = settings.server.mlflow_tracking_uri or ""
    if place.project.as_posix() in uri and not place.project.is_dir():  # MLflow would create it
        return pd.DataFrame(columns=columns)
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(settings.tracking.experiment.name)
    runs = [] if experiment is None else client.search_runs(
        [experiment.experiment_id],
        'metrics."test/accuracy" >= 0',
        order_by=["attributes.start_time DESC"],
        max_results=count or MAX_RUNS,
    )  # fmt: skip
    models = {run.data.tags.get("registered_model", "") for run in runs} - {""}
    champions = {model: find_version(model, CHAMPION, client) for model in models}
    return pd.DataFrame([_describe(run, champions) for run in runs], columns=columns)


def _describe(run: Run, champions: Mapping[str, str | None]) -> RunRow:
    tags, metrics, info = run.data.tags, run.data.metrics, run.info
    version = tags.get("registered_version", "")
    return RunRow(
        name=info.run_name,
        data=run.data.params.get("dataset.root", ""),
        accuracy=metrics["test/accuracy"],
        low=metrics.get("test/accuracy_low", math.nan),
        high=metrics.get("test/accuracy_high", math.nan),
        seconds=(info.end_time - info.start_time) / 1000 if info.end_time else math.nan,
        version=version,
        became_champion=bool(version) and tags.get("champion_version") == version,
        is_champion=bool(version) and champions.get(tags.get("registered_model", "")) == version,
        when=datetime.fromtimestamp(info.start_time / 1000),
        parameters=run.data.params,
    )


def find_registered(place: Place, reference: str) -> str:
    """Return the URI of a model by alias or version, as `predict.model` takes it.

    MLflow looks it up in the store of the place from then on.

    Raises:
        ParameterError: if there is none.
    """
    configuration = read_place(place)
    settings = read_settings(configuration["mlflow"])
    mlflow.set_tracking_uri(settings.server.mlflow_tracking_uri or "")
    name = configuration["parameters"]["registry"]["name"]
    registrations = place.project / REPORT.with_name("registration.json")
    folders = ProjectFolders(place.project / CLASSIFIERS, registrations, place.project)
    return find_uri("--model", reference, name, folders)
