"""Catalog entries that a node works with while it runs: folders, and ways to MLflow's run."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import mlflow
from kedro.io import AbstractDataset, DatasetError

GROUPS = {  # of metrics in MLflow, by the names in histories and tables
    r"(train|val|test)_(.+)": r"\1/\2",
    r"best_val_(.+)": r"val/best_\1",
    r"(lr(?:/.+)?|phase|trainable_parameters)": r"train/\1",
    r"(temperature)": r"val/\1",
    r"(label_errors|near_duplicates|outliers)": r"data/\1",
    r"(seconds|images_per_second)": r"time/\1",
}

SetTags = Callable[[dict[str, Any]], Any]
OpenRun = Callable[[str, dict[str, Any], dict[str, Any]], AbstractContextManager[SetTags]]


class ResourceDataset(AbstractDataset[None, Any]):
    """Loads an object through which a node reads and writes while it runs."""

    resource: Any

    def __init__(self, filepath: str = "", metadata: dict[str, Any] | None = None) -> None:
        """Keep the metadata of the entry, and the path that Kedro-Viz shows, if any."""
        self.metadata, self._filepath = metadata, filepath

    def load(self) -> Any:
        """Return the object."""
        return self.resource

    def save(self, data: None) -> None:
        """Raise a DatasetError: the catalog saves nothing here."""
        raise DatasetError(f"{type(self).__name__} is used by nodes as an input only.")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath} if self._filepath else {}


class PathDataset(ResourceDataset):
    """Loads an absolute path, which need not exist.

    So the catalog decides where caches lie, and what a relative path of a parameter is relative to.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(filepath, metadata)
        self.resource = Path(filepath)


class TrainingCheckpointsDataset(ResourceDataset):
    """Loads the states of trainings; when a run has ended well, its last ones are kept."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        from thawline.training.state import TrainingCheckpoints

        super().__init__(filepath, metadata)
        self.resource = TrainingCheckpoints(Path(filepath))


class RegistryDataset(ResourceDataset):
    """Loads the folders that `serving.find_model` and `serving.champion` work with."""

    def __init__(
        self, filepath: str, path: str, registrations: str, metadata: dict[str, Any] | None = None
    ) -> None:
        """Take the folder of classifiers, the base of relative paths, and one of registrations.

        Kedro makes the first two absolute; the third is relative to `path`.
        """
        from thawline.serving.registry import ProjectFolders

        super().__init__(filepath, metadata)
        self.resource = ProjectFolders(Path(filepath), Path(path, registrations), Path(path))


def log_metrics(metrics: dict[str, Any], step: int | None = None) -> None:
    """Write metrics to the active MLflow run, if there is one; texts and the epoch are none."""
    if mlflow.active_run():
        numbers = {k: v for k, v in metrics.items() if k != "epoch" and not isinstance(v, str)}
        mlflow.log_metrics({metric_name(name): n for name, n in numbers.items()}, step=step)


def metric_name(name: str) -> str:
    """Return the name in MLflow, whose charts come in groups: data, train, val, test, time."""
    found = ((re.fullmatch(pattern, name), grouped) for pattern, grouped in GROUPS.items())
    return next((match.expand(grouped) for match, grouped in found if match), name)


class MetricLoggerDataset(ResourceDataset):
    """Loads `log_metrics`, so that the curves of a training are seen before its node has ended."""

    resource = staticmethod(log_metrics)


@contextmanager
def open_run(name: str, parameters: dict[str, Any], tags: dict[str, Any]) -> Iterator[SetTags]:
    """Open a child of the active MLflow run; without one, nothing is written.

    What is tracked inside the `with` block goes to the child, which fails where the block does, and
    is marked as killed where the block is interrupted.

    Yields:
        A function for tags that are known only later.
    """
    if not mlflow.active_run():
        yield lambda _: None
        return
    texts = {tag: str(value) for tag, value in tags.items()}  # a server takes nothing else
    with mlflow.start_run(run_name=name, nested=True, tags=texts):
        mlflow.log_params(parameters)
        try:
            yield mlflow.set_tags
        except (KeyboardInterrupt, SystemExit):
            mlflow.end_run("KILLED")
            raise


class ChildRunsDataset(ResourceDataset):
    """Loads `open_run`, for what a node does many times."""

    resource = staticmethod(open_run)
