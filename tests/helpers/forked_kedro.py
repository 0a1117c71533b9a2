"""Run the `kedro` command many times without importing PyTorch and MLflow each time.

A line of JSON on standard input is a command; for each a process is forked from this one, which has
only imported what others wrote. Its exit status is a line on standard output.
"""

import importlib
import json
import os
import signal
import sys
from typing import Any

# Not Kedro itself: it reads the configuration of logging from the working directory.
HEAVY = (
    "accelerate", "captum.attr", "cleanlab", "mlflow.data.pandas_dataset", "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store", "optuna", "plotly.express", "pyarrow.parquet",
    "scipy.stats", "sklearn.linear_model", "timm", "torch", "torchvision",
)  # fmt: skip
LIMIT = 300  # seconds


def main() -> None:
    """Run commands until there are no more."""
    sys.path.pop(0)  # the folder of the tests: the command does not know it
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(**json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


def run(arguments: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> Any:
    """Become the command, with its output in two files; does not return."""
    signal.alarm(LIMIT)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate((os.devnull, stdout, stderr)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.argv = ["kedro", *arguments]
    from kedro.framework.cli.cli import main as kedro

    sys.exit(kedro())


if __name__ == "__main__":
    main()
