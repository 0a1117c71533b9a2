"""Open the database in which the processes of a sweep share its trials."""

import time
import warnings
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from thawline.errors import ParameterError, first_line

HEARTBEAT_SECONDS = 5
GRACE_SECONDS = 20  # without a heartbeat, after which the process of a trial counts as dead
MAX_RETRIES = 3  # of a trial whose process died
SQLITE_TIMEOUT_SECONDS = 60  # that a process waits for its turn at an SQLite file
MAX_ATTEMPTS = 10  # to open a new database, whose tables another process may be creating
POSTGRES = "postgresql+psycopg"  # the driver that the extra `postgres` installs


def open_storage(url: str) -> RDBStorage:
    """Open a database for Optuna and create its tables if there are none.

    A trial without a heartbeat for `GRACE_SECONDS` fails and is queued again, by whichever process
    starts the next trial. `postgresql://` is short for `postgresql+psycopg://`.

    Raises:
        ParameterError: if it cannot be opened; the message holds no password.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except ArgumentError as error:
        raise ParameterError(
            "sweep.storage: the value is not a database URL. Give one such as"
            " sqlite:///sweep.db or postgresql://user:password@host/name."
        ) from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername=POSTGRES)  # SQLAlchemy's own choice depends on its version
    shown = parsed.render_as_string()
    try:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):  # heartbeats
            return _connect(parsed)
    except ImportError as error:
        package = "'thawline[postgres]'" if parsed.drivername == POSTGRES else "its driver"
        raise ParameterError(
            f"sweep.storage: {shown} needs a package that is not installed: pip install {package}"
        ) from error
    except RuntimeError as error:  # Optuna's, if the version of the tables is unknown to it
        raise ParameterError(
            f"sweep.storage: {shown} has tables of another Optuna, or of a program such as MLflow."
            " Give sweeps a database of their own."
        ) from error
    except (SQLAlchemyError, StorageInternalError) as error:
        raise ParameterError(
            f"sweep.storage: {shown} cannot be opened ({type(error).__name__}:"
            f" {first_line(error)})."
        ) from error


def _connect(url: sqlalchemy.URL) -> RDBStorage:
    """Connect, again if another process has just created a table of the same name."""
    is_sqlite = url.get_backend_name() == "sqlite"
    engine: dict[str, Any] = {"pool_pre_ping": True}  # replaces connections lost by a restart
    if is_sqlite:
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        engine = {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS, "isolation_level": None}}
    for attempt in range(MAX_ATTEMPTS):
        try:
            storage = RDBStorage(
                url.render_as_string(hide_password=False),
                engine,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(MAX_RETRIES),
            )
            break
        except (SQLAlchemyError, StorageInternalError) as error:
            is_race = isinstance(error, IntegrityError) or "already exists" in str(error)
            if attempt == MAX_ATTEMPTS - 1 or not is_race:
                raise
            time.sleep(0.2)
    if is_sqlite:
        # Optuna locks rows by SELECT FOR UPDATE, which SQLite ignores: two processes could take the
        # same trial. docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-sqlite-serializable
        sqlalchemy.event.listen(
            storage.engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE")
        )
    return storage
