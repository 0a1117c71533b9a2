"""A sweep's trials are neither lost nor doubled if its database goes away or is restarted."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from conftest import empty_tracking_store
from helpers.servers import PASSWORD, Postgres
from sweep.test_study import count, make, quick
from thawline.errors import ParameterError, StorageError
from thawline.options import Parameters
from thawline.sweep import storage as sweep_storage
from thawline.sweep import study as sweeping
from thawline.training.progress import OnEpoch


def study_of(url: str, parameters: Parameters, splits: pd.DataFrame) -> optuna.study.Study:
    return sweeping.open_study(sweep_storage.open_storage(url), parameters, splits)


def test_a_restart_between_two_calls_is_not_noticed(
    postgres: Postgres, splits: pd.DataFrame
) -> None:
    parameters = make({"trials": 4, "study": "restart"})
    study = study_of(postgres.url().replace("+psycopg", ""), parameters, splits)

    def train(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
        if number == 2:
            postgres.stop()
            postgres.start()
        quick(number, values, chosen, on_epoch)

    sweeping.run_trials(study, parameters, train)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # heartbeats
def test_a_database_that_goes_away_ends_the_sweep_and_repeating_the_command_completes_it(
    postgres: Postgres, splits: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_storage, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(sweep_storage, "GRACE_SECONDS", 1)
    url = postgres.url()
    parameters = make({"trials": 4, "study": "away", "storage": url})

    def train(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
        if number == 2:
            postgres.stop()
        quick(number, values, chosen, on_epoch)

    try:
        with pytest.raises(StorageError, match=r"sweep\.storage: .*Repeat the command") as caught:
            sweeping.run_trials(study_of(url, parameters, splits), parameters, train)
        with pytest.raises(ParameterError, match=r"sweep\.storage: .* cannot be opened") as second:
            sweep_storage.open_storage(url)
    finally:
        postgres.start()
    assert PASSWORD not in str(caught.value) + str(second.value)
    time.sleep(2.5)  # without a heartbeat
    study = study_of(url, parameters, splits)
    sweeping.run_trials(study, parameters, quick)
    assert count(study) == 4
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.FAIL] + [TrialState.COMPLETE] * 2
    assert study.trials[3].params == study.trials[2].params  # it was tried again


def test_without_a_driver_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ParameterError, match=r"pip install 'thawline\[postgres\]'") as caught:
        sweep_storage.open_storage("postgresql://user:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_database_of_mlflow_is_refused(tmp_path: Path) -> None:
    file = shutil.copy(empty_tracking_store(), tmp_path)
    with pytest.raises(ParameterError, match="Give sweeps a database of their own"):
        sweep_storage.open_storage(f"sqlite:///{file}")
