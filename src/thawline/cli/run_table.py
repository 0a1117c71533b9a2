"""The runs and models of the place of a command, as MLflow has them."""

from collections.abc import Iterator
from datetime import datetime

from mlflow import MlflowClient
from mlflow.entities import Run

from thawline.api import Place
from thawline.errors import TrackingError
from thawline.hooks.configuration import read_configuration
from thawline.serving.registry import CHAMPION, find_version
from thawline.tracking.connection import read_settings

MAX_RUNS = 1000


def connect(place: Place) -> tuple[MlflowClient, str, str]:
    """Return a client, the address of the store and the experiment's name that mlflow.yml says."""
    configuration = read_configuration(place.project, place.env, source=str(place.configuration))
    settings = read_settings(configuration["mlflow"])
    uri = settings.server.mlflow_tracking_uri or ""
    return MlflowClient(uri, uri), uri, settings.tracking.experiment.name


def list_runs(place: Place, count: int | None) -> Iterator[tuple[str, ...]]:
    """Yield name, accuracy, interval, seconds, version and time of runs, the latest first."""
    client, _, name = connect(place)
    if experiment := client.get_experiment_by_name(name):
        runs = client.search_runs(
            [experiment.experiment_id],
            'metrics."test/accuracy" >= 0',
            order_by=["attributes.start_time DESC"],
            max_results=count or MAX_RUNS,
        )
        champions: dict[str, str | None] = {}
        for run in runs:
            yield _describe(run, client, champions)


def _describe(run: Run, client: MlflowClient, champions: dict[str, str | None]) -> tuple[str, ...]:
    tags, metrics, info = run.data.tags, run.data.metrics, run.info
    low, high = (metrics.get(f"test/accuracy_{end}", float("nan")) for end in ("low", "high"))
    version, model = tags.get("registered_version", ""), tags.get("registered_model", "")
    if model and model not in champions:
        champions[model] = find_version(model, CHAMPION, client)
    champion = " champion" * bool(version and champions.get(model) == version)
    return (
        info.run_name,
        f"{metrics['test/accuracy']:.1%}",
        f"{100 * low:.0f}-{100 * high:.0f}",
        f"{(info.end_time - info.start_time) / 1000:.0f}" if info.end_time else "",
        f"{version}{champion}",
        f"{datetime.fromtimestamp(info.start_time / 1000):%m-%d %H:%M}",
    )


def find_registered(place: Place, reference: str) -> tuple[str, str]:
    """Return the URI of the model that was registered last, by alias or version, and its store.

    Raises:
        TrackingError: if there is none.
    """
    client, store, _ = connect(place)
    models = client.search_registered_models(order_by=["last_updated_timestamp DESC"])
    if not models:
        raise TrackingError(f"{store} has no registered model yet. Run thawline finetune first.")
    separator = "/" if reference.isdigit() else "@"
    return f"models:/{models[0].name}{separator}{reference}", store
