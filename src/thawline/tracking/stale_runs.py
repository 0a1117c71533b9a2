"""MLflow runs whose process ended before it could say so."""

from __future__ import annotations

import logging
import os
import socket

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking.context.abstract_context import RunContextProvider

logger = logging.getLogger(__name__)

HOST, PID, BEGAN = "process_host", "process_id", "process_began"
TOLERANCE = 2  # seconds by which a process's start is told differently when a clock is set


class ProcessContext(RunContextProvider):
    """Tags a run with the process that it belongs to, in the moment in which it is created."""

    def in_context(self) -> bool:
        """Return that every run has a process."""
        return True

    def tags(self) -> dict[str, str]:
        """Return what tells this process from any other, on this machine or another."""
        return process_tags()


def process_tags() -> dict[str, str]:
    """Return host name, process id and the process's start (seconds since 1970), as texts."""
    began = psutil.Process().create_time()
    return {HOST: socket.gethostname(), PID: str(os.getpid()), BEGAN: f"{began:.2f}"}


def find_dead_runs(client: MlflowClient, experiment_id: str) -> list[Run]:
    """Return the runs that are said to be running, but whose process on this machine is gone.

    Of a run of another machine, or without the tags of `process_tags`, nothing can be told.
    """
    here = f"attributes.status = 'RUNNING' and tags.{HOST} = '{socket.gethostname()}'"
    running = client.search_runs([experiment_id], here)
    return [run for run in running if not _lives(run.data.tags)]


def mark_dead_runs(client: MlflowClient, experiment_id: str) -> None:
    """Give the runs of `find_dead_runs` the status KILLED."""
    for run in find_dead_runs(client, experiment_id):
        client.set_terminated(run.info.run_id, "KILLED")
        logger.warning(
            "MLflow run '%s' (%s) was left running by a process that is gone; it is now KILLED",
            run.info.run_name,
            run.info.run_id,
        )


def _lives(tags: dict[str, str]) -> bool:
    """Return whether the process of a run is there, and no later one has its number."""
    try:
        process = psutil.Process(int(tags[PID]))
        began = process.create_time()
        return process.status() != psutil.STATUS_ZOMBIE and (
            abs(began - float(tags[BEGAN])) < TOLERANCE
        )
    except psutil.NoSuchProcess:
        return False
