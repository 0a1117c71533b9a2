"""The database of a sweep, which processes share that may die, and whose server may be away.

A trial of which a process gives no sign of life for a while is tried again by another one. A server
of databases that is restarted is waited for, at one place: around each call of Optuna's storage.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from thawline.errors import ParameterError, StorageError

logger = logging.getLogger(__name__)

# Seconds between two signs of life of a trial, and after which a trial without one is repeated. A
# process that was killed and starts again has imported PyTorch by then, or tries something else.
HEARTBEAT, GRACE = 5, 20
RETRIES = 3  # of a trial whose process dies, before it is given up
BUSY_SECONDS = 60  # that a process waits for its turn at an SQLite file
ATTEMPTS = 10  # to open a database, at which two processes may make the tables at once
PATIENCE = 300  # seconds for which a server may be away
PAUSE = 1  # seconds until it is asked again

POSTGRES = "postgresql+psycopg"  # the driver that the extra `postgres` brings
CALLS = BaseStorage.__abstractmethods__ | BaseHeartbeat.__abstractmethods__


def open_storage(url: str) -> BaseStorage:
    """Return Optuna's storage in a database, whose tables are made where there are none.

    Trials that show no sign of life for `GRACE` seconds are taken to be dead and tried again.

    Args:
        url: as SQLAlchemy takes it; `postgresql://` is short for `postgresql+psycopg://`.

    Raises:
        ParameterError: when it cannot be opened; the message has no password in it.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise ParameterError(
            "sweep.storage: this is no URL of a database. Give one such as"
            " sqlite:///sweep.db or postgresql://user:password@host/name."
        ) from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername=POSTGRES)  # SQLAlchemy's own choice depends on its version
    if parsed.get_backend_name() != "sqlite":
        return PatientStorage(_try_to_open(parsed, {}))
    arguments = {"timeout": BUSY_SECONDS, "isolation_level": None}
    storage = _try_to_open(parsed, {"connect_args": arguments})
    # SQLite knows no FOR UPDATE, by which Optuna locks rows elsewhere: without this, two processes
    # could take the same trial.
    # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-sqlite-serializable
    sqlalchemy.event.listen(
        storage.engine, "begin", lambda link: link.exec_driver_sql("BEGIN IMMEDIATE")
    )
    return storage


class PatientStorage(_CachedStorage):
    """Optuna's storage on a server, each call of which is repeated while the server is away.

    A call that was carried out, and whose answer alone was lost, is repeated too. What it writes is
    then written once more; of a second new trial no sign of life comes. The one trace there may be:
    a trial that is queued again in that very moment is tried twice.
    """

    def __init__(self, backend: RDBStorage) -> None:
        """Take the storage that asks the server."""
        super().__init__(backend)
        self._away_since: float | None = None
        self._judges_from = 0.0

    def __getattribute__(self, name: str) -> Any:
        """Return a call that waits, or anything else as it is."""
        found = super().__getattribute__(name)
        return partial(self._ask, found) if name in CALLS else found

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Return the dead trials; none soon after an outage, in which all were silent."""
        if time.monotonic() < self._judges_from:
            return []
        return super()._get_stale_trial_ids(study_id)

    def _ask(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the answer.

        Raises:
            StorageError: when the server was away for `PATIENCE` seconds.
        """
        while True:
            try:
                answer = call(*args, **kwargs)
            except (SQLAlchemyError, StorageInternalError) as error:
                outage = _find_outage(error)
                if outage is None:
                    raise
                self._note(outage)
                time.sleep(PAUSE)
                continue
            if self._away_since is not None:
                self._away_since = None
                logger.warning("The database of the sweep answers again")
            return answer

    def _note(self, outage: BaseException) -> None:
        now = time.monotonic()
        shown = self._backend.engine.url.render_as_string()
        reason = str(outage).splitlines()[0]
        if self._away_since is None:
            self._away_since = now
            logger.warning(
                "The database of the sweep, %s, does not answer (%s). It is waited for, up to %d"
                " minutes.",
                shown,
                reason,
                PATIENCE // 60,
            )
        self._judges_from = now + PAUSE + GRACE
        if now - self._away_since > PATIENCE:
            raise StorageError(
                f"sweep.storage: {shown} has not answered for {PATIENCE // 60} minutes ({reason})."
                " Repeat the command when it is back: what was tried is kept."
            ) from outage


def retry_dead(study: optuna.study.Study, adopted: set[int]) -> None:
    """Queue again what processes that died were at.

    One that was killed before its trial's first sign of life is given one on its behalf: it is dead
    when no other follows.

    Args:
        study: of the trials.
        adopted: numbers of trials that were given one; is added to.
    """
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        began = trial.datetime_start
        # Other machines may have other clocks: a trial may begin in the future.
        is_old = began is not None and abs(datetime.now() - began) > timedelta(seconds=GRACE)
        if is_old and trial.number not in adopted:
            adopted.add(trial.number)
            study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]


@contextmanager
def heartbeat(trial: optuna.Trial) -> Iterator[None]:
    """Let a thread give signs of life of a trial."""
    over = threading.Event()

    def beat() -> None:
        with suppress(StorageError):  # which the trial meets as well
            while not over.wait(HEARTBEAT):
                trial.storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]

    trial.storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def no_experimental_warnings() -> Iterator[None]:
    """Leave out what Optuna says about heartbeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # we call for it ourselves
        yield


def _try_to_open(url: sqlalchemy.URL, engine_kwargs: dict[str, Any]) -> RDBStorage:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with no_experimental_warnings():
                return RDBStorage(
                    url.render_as_string(hide_password=False),
                    engine_kwargs,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(RETRIES),
                )
        except ImportError as error:
            package = "'thawline[postgres]'" if url.drivername == POSTGRES else "its driver"
            raise ParameterError(
                f"sweep.storage: {url.render_as_string()} needs a package that is not here:"
                f" pip install {package}"
            ) from error
        except RuntimeError as error:  # Optuna's, of a version of the tables that it does not know
            raise ParameterError(
                f"sweep.storage: {url.render_as_string()} has tables of another Optuna, or of a"
                " program such as MLflow. Give sweeps a database of their own."
            ) from error
        except (SQLAlchemyError, StorageInternalError) as error:
            is_absent = isinstance(error, OperationalError) and url.get_backend_name() != "sqlite"
            if attempt == ATTEMPTS or is_absent or not isinstance(error, DBAPIError):
                raise ParameterError(
                    f"sweep.storage: {url.render_as_string()} cannot be opened"
                    f" ({type(error).__name__}: {str(error).splitlines()[0]})."
                ) from error
            time.sleep(0.2)  # another process has just made a table of the same name
    raise AssertionError


def _find_outage(error: BaseException | None) -> BaseException | None:
    """Return the failure of a connection, if there is one among an error and what led to it."""
    while error and not isinstance(error, OperationalError | InterfaceError):
        error = error.__cause__ or error.__context__
    return error
