"""The way by which metrics leave a node while it is still running."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlflow
from kedro.io import AbstractDataset, DatasetError


class LiveMetricsDataset(AbstractDataset[None, Callable[[dict[str, float], int], None]]):
    """Loads a function (metrics, step) that writes to the active MLflow run, if there is one.

    A node that trains for an hour would otherwise show its curves only when it has ended. Metrics
    named in `leave_out` are not written.
    """

    def __init__(
        self, leave_out: list[str] | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        """Take the names of the metrics that are for the table only."""
        self._leave_out, self.metadata = frozenset(leave_out or []), metadata

    def load(self) -> Callable[[dict[str, float], int], None]:
        """Return the function to call after each epoch."""
        return self._write

    def save(self, data: None) -> None:
        """Refuse: metrics are written by calling what `load` returns.

        Raises:
            DatasetError: always.
        """
        raise DatasetError("Live metrics are written by calling what this dataset loads.")

    def _write(self, metrics: dict[str, float], step: int) -> None:
        if mlflow.active_run():
            kept = {name: v for name, v in metrics.items() if name not in self._leave_out}
            mlflow.log_metrics(kept, step=step)

    def _describe(self) -> dict[str, Any]:
        return {"leave_out": sorted(self._leave_out)}
