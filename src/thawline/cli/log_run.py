"""The command `kedro log-run`: log to MLflow afterwards what the catalog holds of a run."""

from typing import Any

import click
import mlflow
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.io import AbstractVersionedDataset, DataCatalog, Version

from thawline.errors import DataError, ThawlineError
from thawline.tracking.entries import entry_kinds, log_entry
from thawline.tracking.redaction import mask


@click.command("log-run")
@click.argument("version")
@click.option("--env", "-e", envvar="KEDRO_ENV", metavar="NAME", help="Environment in conf/.")
def log_run(version: str, env: str | None) -> None:
    """Log the catalog entries of VERSION to a new MLflow run, if an outage has kept them from it.

    VERSION is the name of their folders in data/, such as 2026-11-21T04.32.09.833Z.
    """
    try:
        with KedroSession.create(env=env) as session:
            context: Any = session.load_context()  # type: ignore[attr-defined]
            log_version(context.catalog, version)
    except ThawlineError as error:
        raise click.ClickException(mask(str(error))) from error


def log_version(catalog: DataCatalog, version: str) -> None:
    """Log all entries of a version to a new run of that name.

    Raises:
        DataError: if there are none.
    """
    names = sorted({name for pipeline in pipelines.values() for name in pipeline.all_outputs()})
    found = [name for name in names if _has(catalog, name, version)]
    if not found:
        raise DataError(f"There is no catalog entry of version {version} that is logged to MLflow.")
    with mlflow.start_run(run_name=version, tags={"version": version}):
        for name in found:
            log_entry(catalog, name, catalog.load(name, version))
    click.echo(f"Logged to MLflow: {', '.join(found)}")


def _has(catalog: DataCatalog, name: str, version: str) -> bool:
    dataset = catalog.get(name, version=Version(version, None))
    is_versioned = isinstance(dataset, AbstractVersionedDataset) and dataset.resolve_load_version()
    return bool(is_versioned and entry_kinds(catalog, name) and dataset and dataset.exists())
