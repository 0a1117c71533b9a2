"""The way by which metrics leave a node while it is still running."""

from collections.abc import Callable
from typing import Any

import mlflow

from thawline.datasets.resource_dataset import ResourceDataset


class MetricLoggerDataset(ResourceDataset[Callable[[dict[str, Any], int], None]]):
    """Loads a function (metrics, step) that writes to the active MLflow run, if there is one.

    A node that trains for an hour would otherwise show its curves only when it has ended. Metrics
    named in `leave_out` are not written, nor are texts.
    """

    def __init__(
        self, leave_out: list[str] | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        """Take the names of the metrics that are for the table only."""
        super().__init__(metadata)
        self._leave_out = frozenset(leave_out or [])

    def load(self) -> Callable[[dict[str, Any], int], None]:
        """Return the function to call after each epoch."""
        return self._write

    def _write(self, metrics: dict[str, Any], step: int) -> None:
        if mlflow.active_run():
            kept = {
                name: value
                for name, value in metrics.items()
                if name not in self._leave_out and not isinstance(value, str)
            }
            mlflow.log_metrics(kept, step=step)

    def _describe(self) -> dict[str, Any]:
        return {"leave_out": sorted(self._leave_out)}
