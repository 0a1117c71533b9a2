"""Check MLflow's store and the runs in it, for `thawline doctor`."""

import importlib.util
import os
import shutil
from pathlib import Path

from thawline.cli.doctor_results import CheckResult, existing_folder
from thawline.errors import first_line
from thawline.tracking.redaction import mask

MIN_DISK_BYTES = 2e9


def check_tracking(uri: str, project: Path) -> list[CheckResult]:
    """Check that MLflow's store can be opened, and that the disk has room for what runs log.

    Args:
        uri: of the store; its password is not shown.
        project: folder that holds what runs log.
    """
    free = shutil.disk_usage(project).free
    found = f"{free / 1e9:.1f} GB are free in {project}"
    room = CheckResult("disk", "ok", found)
    if free < MIN_DISK_BYTES:
        room = CheckResult("disk", "warning", f"{found}; each run logs its model")
    return [_tracking_store(uri), room]


def check_runs(uri: str, experiment: str) -> list[CheckResult]:
    """Warn of runs of an experiment with status RUNNING whose process is gone.

    Args:
        uri: of MLflow's store, which can be opened.
        experiment: its name; there need not be one.
    """
    from mlflow import MlflowClient

    from thawline.tracking.stale_runs import find_stale_runs

    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return []  # asking would make it
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    dead = find_stale_runs(client, found.experiment_id) if found else []
    if not dead:
        return []
    names = ", ".join(f"{run.info.run_name} ({run.info.run_id})" for run in dead)
    advice = f"{names}: RUNNING, but the process is gone; the next run marks it as KILLED"
    return [CheckResult("runs", "warning", advice)]


def _tracking_store(uri: str) -> CheckResult:
    scheme = uri.partition(":")[0]
    if scheme in ("http", "https"):
        return check_server(uri)
    if scheme.startswith("databricks"):
        return CheckResult("tracking", "warning", f"{uri} is not checked here")
    if "://" not in uri or scheme == "file":
        advice = f"MLflow no longer writes runs to a folder, {uri}; set sqlite:///mlflow.db"
        return CheckResult("tracking", "problem", f"{advice} as server.mlflow_tracking_uri")
    return _database(uri)


def check_server(uri: str) -> CheckResult:
    """Check that an MLflow server answers."""
    from thawline.tracking.connection import find_server_problem

    if problem := find_server_problem(uri):
        return CheckResult("tracking", "problem", f"{problem}; start it, or correct the URI")
    return CheckResult("tracking", "ok", f"{mask(uri)} answers")


def _database(uri: str) -> CheckResult:
    """Check that a database can be opened and has the tables of the installed MLflow."""
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(uri)
    except SQLAlchemyError:
        return CheckResult(
            "tracking", "problem", "server.mlflow_tracking_uri is no URI of a database"
        )
    shown = url.render_as_string(hide_password=True)
    if url.drivername == "sqlite" and not Path(url.database or "").exists():
        return _new_file(Path(url.database or ""))
    try:
        with create_engine(url).connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
            empty = not inspect(connection).get_table_names()
    except (SQLAlchemyError, ImportError) as error:
        reason = mask(first_line(error))
        advice = f"{shown} cannot be opened: {reason}. Correct it in mlflow.yml, start the server"
        return CheckResult("tracking", "problem", f"{advice}, or install its driver")
    scripts = Path(_folder("mlflow"), "store", "db_migrations")
    wanted = ScriptDirectory(str(scripts)).get_current_head()
    if empty or found == wanted:
        return CheckResult("tracking", "ok", shown)
    advice = f"{shown} has tables of another MLflow ({found}, not {wanted}); make a copy, then"
    return CheckResult("tracking", "problem", f"{advice} mlflow db upgrade URI")


def _new_file(file: Path) -> CheckResult:
    """Check that SQLite can create a file."""
    folder = existing_folder(file.parent)
    if os.access(folder, os.W_OK):
        return CheckResult("tracking", "ok", f"{file} will be created by the first run")
    advice = f"{file} does not exist and {folder} cannot be written; set another URI in mlflow.yml"
    return CheckResult("tracking", "problem", advice)


def _folder(package: str) -> str:
    """Return where a package is installed, without importing it."""
    found = importlib.util.find_spec(package)
    return next(iter(found.submodule_search_locations or [])) if found else ""
