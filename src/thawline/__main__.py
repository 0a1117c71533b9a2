"""Run Thawline's pipelines where the project is installed as a package: `python -m thawline`."""

import os
from typing import Any

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project


def main(*args: Any, **kwargs: Any) -> Any:
    """Run a pipeline; takes the options of `kedro run`."""
    # In the project .telemetry says so; it is no part of the package.
    os.environ.setdefault("KEDRO_DISABLE_TELEMETRY", "1")
    configure_project("thawline")
    return find_run_command("thawline")(*args, **kwargs)


if __name__ == "__main__":
    main()
