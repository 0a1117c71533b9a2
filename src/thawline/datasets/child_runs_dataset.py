"""MLflow runs below the active one, for what a node does many times."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import mlflow

from thawline.datasets.resource_dataset import ResourceDataset

SetTags = Callable[[dict[str, Any]], Any]
OpenRun = Callable[[str, dict[str, Any], dict[str, Any]], AbstractContextManager[SetTags]]


class ChildRunsDataset(ResourceDataset[OpenRun]):
    """Loads a function (name, parameters, tags) that opens a child of the active MLflow run.

    What is tracked inside its `with` block goes to the child, which fails where the block does, and
    is marked as killed where the block is interrupted. It yields a function for tags that are known
    only later. Without an active run nothing is written.
    """

    def load(self) -> OpenRun:
        """Return the function."""
        return _open_run


@contextmanager
def _open_run(name: str, parameters: dict[str, Any], tags: dict[str, Any]) -> Iterator[SetTags]:
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
