"""A sweep's trials are neither lost nor doubled while a server of databases is restarted."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from conftest import child_process, empty_tracking_store
from helpers.servers import PASSWORD, Postgres
from sweep.test_study import count, make, quick
from thawline.errors import ParameterError, StorageError
from thawline.options import Parameters
from thawline.sweep import storage as sweep_storage
from thawline.sweep import study as sweeping
from thawline.training.loop import OnEpoch


def study_of(url: str, parameters: Parameters, splits: pd.DataFrame) -> optuna.study.Study:
    return sweeping.open_study(sweep_storage.open_storage(url), parameters, splits)


def test_a_restart_in_mid_trial_costs_nothing_but_time(
    postgres: Postgres, splits: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    parameters = make({"trials": 5, "study": "restart"})
    url = postgres.url().replace("+psycopg", "")
    study = study_of(url, parameters, splits)

    def train(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
        if number == 2:
            postgres.stop()
            postgres.start()
        quick(number, values, chosen, on_epoch)

    sweeping.run_trials(study, parameters, train)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5
    assert all(len(trial.intermediate_values) == 2 for trial in study.trials)
    assert "does not answer" in caplog.text and "answers again" in caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.slow
def test_soon_after_an_outage_no_trial_is_taken_for_dead(
    postgres: Postgres, splits: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_storage, "HEARTBEAT", 1)
    monkeypatch.setattr(sweep_storage, "GRACE", 1)
    parameters = make({"study": "silent"})
    study = study_of(postgres.url(), parameters, splits)
    alive = study.ask()
    alive.storage.record_heartbeat(alive._trial_id)
    postgres.stop()
    time.sleep(2)  # in which it could give no sign of life
    postgres.start()
    sweep_storage.retry_dead(study, set())
    assert study.trials[0].state == TrialState.RUNNING
    time.sleep(2)
    sweep_storage.retry_dead(study, set())
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_a_server_that_stays_away_ends_the_sweep_with_what_to_do(
    postgres: Postgres, splits: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_storage, "PATIENCE", 0)
    monkeypatch.setattr(sweep_storage, "PAUSE", 0.1)
    parameters = make({"trials": 1, "study": "away"})
    study = study_of(postgres.url(), parameters, splits)
    postgres.stop()
    try:
        with pytest.raises(StorageError, match=r"sweep\.storage: .*Repeat the command") as caught:
            sweeping.run_trials(study, parameters, quick)
        with pytest.raises(ParameterError, match=r"sweep\.storage: .* cannot be opened") as second:
            sweep_storage.open_storage(postgres.url())
    finally:
        postgres.start()
    assert PASSWORD not in str(caught.value) + str(second.value)


def test_without_a_driver_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ParameterError, match=r"pip install 'thawline\[postgres\]'") as caught:
        sweep_storage.open_storage("postgresql://user:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_database_of_mlflow_is_refused(tmp_path: Path) -> None:
    file = shutil.copy(empty_tracking_store(), tmp_path)
    with pytest.raises(ParameterError, match="Give sweeps a database of their own"):
        sweep_storage.open_storage(f"sqlite:///{file}")


def slow(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
    for epoch in (1, 2):
        time.sleep(0.1)
        on_epoch({"val_accuracy": values["training.lr"], "val_loss": 0.0}, epoch)


def work(url: str, parameters: Parameters, splits: pd.DataFrame) -> None:
    sweeping.run_trials(study_of(url, parameters, splits), parameters, slow)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_processes_share_a_study_on_a_server_that_is_restarted_again_and_again(
    postgres: Postgres, splits: pd.DataFrame, mode: str
) -> None:
    parameters = make({"trials": 60, "pruner": "none", "sampler": "random", "study": mode})
    processes = [child_process(work, postgres.url(), parameters, splits) for _ in range(3)]
    for process in processes:
        process.start()
    study = study_of(postgres.url(), parameters, splits)
    for finished in range(5, 60, 10):
        while count(study) < finished:
            time.sleep(0.1)
        postgres.stop(mode)
        time.sleep(0.5)
        postgres.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    trials = study.get_trials(states=sweeping.FINISHED)
    assert len(trials) == 60
    assert len({trial.params["training.lr"] for trial in trials}) == 60
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
