"""Tag MLflow runs with their process, and mark as KILLED those whose process is gone."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

import psutil
from mlflow.tracking.context.abstract_context import RunContextProvider

if TYPE_CHECKING:  # MLflow imports this module while it is imported itself
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

HOST, PID, BEGAN = "process_host", "process_id", "process_began"
CLOCK_TOLERANCE_SECONDS = 2  # by which a process's start moves when a clock is set


class ProcessContext(RunContextProvider):
    """Tags every run with its process when it is created: later tags may come after a SIGKILL.

    MLflow finds it by the entry point `mlflow.run_context_provider` in pyproject.toml.
    """

    def in_context(self) -> bool:
        """Return True: every run has a process."""
        return True

    def tags(self) -> dict[str, str]:
        """Return host name, process id and start of this process (seconds since 1970)."""
        process = psutil.Process()
        began = f"{process.create_time():.2f}"
        return {HOST: socket.gethostname(), PID: str(process.pid), BEGAN: began}


def find_stale_runs(client: MlflowClient, experiment_id: str) -> list[Run]:
    """Return the runs with status RUNNING whose process on this machine is gone.

    Runs of other machines, or without the tags of `ProcessContext`, are not judged.
    """
    here = f"attributes.status = 'RUNNING' and tags.{HOST} = '{socket.gethostname()}'"
    running = client.search_runs([experiment_id], here)
    return [run for run in running if not _is_alive(run.data.tags)]


def mark_stale_runs(client: MlflowClient, experiment_id: str) -> None:
    """Give the runs of `find_stale_runs` the status KILLED."""
    for run in find_stale_runs(client, experiment_id):
        client.set_terminated(run.info.run_id, "KILLED")
        logger.warning(
            "MLflow run '%s' (%s) lost its process; it is now KILLED",
            run.info.run_name,
            run.info.run_id,
        )


def _is_alive(tags: dict[str, str]) -> bool:
    """Return whether the process of a run exists, and its number is not that of a later one."""
    try:
        process = psutil.Process(int(tags[PID]))
        difference = abs(process.create_time() - float(tags[BEGAN]))
        return difference < CLOCK_TOLERANCE_SECONDS and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
