"""Find MLflow runs that are RUNNING although their process is gone, and mark them as KILLED."""

import logging
import socket

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from thawline.tracking.process_context import BEGAN, HOST, PID

logger = logging.getLogger(__name__)

CLOCK_TOLERANCE_SECONDS = 2  # by which a process's start moves when a clock is set


def find_stale_runs(client: MlflowClient, experiment_id: str) -> list[Run]:
    """Return the runs with status RUNNING whose process on this machine is gone.

    Runs of other machines, or without the tags of `process_tags`, are not judged.
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
        began = process.create_time()
        return process.status() != psutil.STATUS_ZOMBIE and (
            abs(began - float(tags[BEGAN])) < CLOCK_TOLERANCE_SECONDS
        )
    except psutil.NoSuchProcess:
        return False
