"""Tags that tell which process an MLflow run belongs to."""

import os
import socket

import psutil
from mlflow.tracking.context.abstract_context import RunContextProvider

HOST, PID, BEGAN = "process_host", "process_id", "process_began"


class ProcessContext(RunContextProvider):
    """Tags every run with its process when it is created: later tags may come after a SIGKILL.

    MLflow finds it by the entry point `mlflow.run_context_provider` in pyproject.toml.
    """

    def in_context(self) -> bool:
        """Return True: every run has a process."""
        return True

    def tags(self) -> dict[str, str]:
        """Return `process_tags`."""
        return process_tags()


def process_tags() -> dict[str, str]:
    """Return host name, process id and start of this process (seconds since 1970), as texts."""
    began = psutil.Process().create_time()
    return {HOST: socket.gethostname(), PID: str(os.getpid()), BEGAN: f"{began:.2f}"}
