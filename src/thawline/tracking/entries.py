"""Log catalog entries to MLflow, as their `metadata.mlflow` says.

It lists what an entry is: `input` (a table that the run used), `metrics` (numbers by name), `tags`
(texts by name), `artifact` (a file).
"""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import mlflow
import pandas as pd
import plotly.graph_objects as go
from kedro.io import DataCatalog, Version
from mlflow.data.pandas_dataset import PandasDataset, from_pandas
from mlflow.exceptions import MlflowException
from PIL import Image

from thawline.errors import DataError


def log_entry(catalog: DataCatalog, name: str, data: Any) -> None:
    """Log what is in a catalog entry to the active run."""
    from thawline.datasets.image_table_dataset import ImageTable
    from thawline.datasets.resource_datasets import log_metrics

    kinds = entry_kinds(catalog, name)
    dataset = catalog.get(name)
    if isinstance(dataset, ImageTable):
        data = dataset.as_saved(data)
    if "input" in kinds:
        _log_input(from_pandas(data, name=name, targets="label"))
    if "metrics" in kinds:
        log_metrics(data)
    if "tags" in kinds:
        mlflow.set_tags(data)
    if "artifact" in kinds:
        file = catalog.config_resolver.resolve_pattern(name).get("filepath", "")
        _log_artifact(name, PurePath(file).suffix, data)


def log_version(catalog: DataCatalog, names: Sequence[str], version: str) -> list[str]:
    """Log those entries of a version that exist to a new run of that name, and return their names.

    Raises:
        DataError: if there are none.
    """
    logged = [name for name in names if entry_kinds(catalog, name)]
    datasets = {name: catalog.get(name, version=Version(version, None)) for name in logged}
    found = [name for name, dataset in datasets.items() if dataset and dataset.exists()]
    if not found:
        raise DataError(f"There is no catalog entry of version {version} that is logged to MLflow.")
    with mlflow.start_run(run_name=version, tags={"version": version}):
        for name in found:
            log_entry(catalog, name, catalog.load(name, version))
    return found


def entry_kinds(catalog: DataCatalog, name: str) -> list[str]:
    """Return how an entry is logged, as a metric, artifact or other; empty if it is not."""
    metadata = getattr(catalog.get(name), "metadata", None) or {}
    return list(metadata.get("mlflow", []))


def _log_input(table: PandasDataset) -> None:
    try:
        mlflow.log_input(table, context="training")
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        # Another run has just inserted the same new table, so that it exists the second time.
        mlflow.log_input(table, context="training")


def _log_artifact(name: str, suffix: str, data: Any) -> None:
    """Log a table, a figure, a picture, a text (with the suffix of its file) or plain data."""
    if isinstance(data, pd.DataFrame):
        mlflow.log_text(data.to_csv(index=False), f"{name}.csv")
    elif isinstance(data, go.Figure):
        if data.data:  # as JSON: plotly.js, 5 MB, is in the report once
            mlflow.log_text(data.to_json(), f"{name}.json")
    elif isinstance(data, Image.Image):
        mlflow.log_image(data, f"{name}.webp")
    elif isinstance(data, str):
        mlflow.log_text(data, f"{name}{suffix}")
    else:
        mlflow.log_dict(data, f"{name}.json")
