"""Two projects share a study and a server of runs on PostgreSQL, and lose nothing in an outage."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from conftest import QUICK, copy_project, start_kedro, tracked
from helpers.servers import PASSWORD, MlflowServer, Postgres, wait_until
from thawline.sweep.storage import GRACE_SECONDS, open_storage
from thawline.sweep.study import FINISHED

TRIALS = 30


@pytest.fixture
def server(tmp_path: Path, postgres: Postgres) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "server", postgres.create("runs"))
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_two_machines_share_a_sweep_and_repeat_their_commands_after_an_outage(
    tmp_path: Path, photos: Path, postgres: Postgres, server: MlflowServer
) -> None:
    url = postgres.create("sweeps")
    storage = open_storage(url)
    options = f"--params=dataset.root={photos},sweep.trials={TRIALS},{QUICK}"
    by_environment, by_file = (copy_project(tmp_path / name) for name in ("a", "b"))
    local = by_file / "conf" / "local"
    (local / "mlflow.yml").write_text(f"server: {{ mlflow_tracking_uri: {server.uri} }}")
    (local / "parameters.yml").write_text(f"sweep: {{ storage: '{url}' }}")
    variables = {"MLFLOW_TRACKING_URI": server.uri, "THAWLINE_SWEEP_STORAGE": url}
    command = ("run", "--pipeline=sweep", options)

    def start() -> list[subprocess.Popen]:
        return [start_kedro(by_environment, *command, **variables), start_kedro(by_file, *command)]

    first = start()
    wait_until(lambda: count_finished(storage) >= TRIALS // 3, seconds=900)
    postgres.stop()
    outputs = ["".join(process.communicate(timeout=600)) for process in first]
    for process, said in zip(first, outputs, strict=True):
        assert process.returncode == 1 and "epeat the command" in said, said
        assert PASSWORD not in said
    postgres.start()
    time.sleep(GRACE_SECONDS)
    for process in start():
        said = "".join(process.communicate(timeout=1200))
        assert process.returncode == 0 and PASSWORD not in said, said
    trials = trials_of(storage)
    done = [trial for trial in trials if trial.state in FINISHED]
    assert TRIALS <= len(done) <= TRIALS + 1
    assert len({tuple(trial.params.values()) for trial in done}) == len(done)
    assert {trial.state for trial in trials} <= {*FINISHED, TrialState.FAIL}
    for trial in trials:
        if trial.state == TrialState.FAIL and trial.params:
            assert trial.params in [other.params for other in done]  # it was tried again

    client, runs = tracked(server.uri)
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
    whole = [run for run in runs if run.info.status == "FINISHED" and "trial" in run.data.tags]
    of_done = [run for run in whole if int(run.data.tags["trial"]) in {t.number for t in done}]
    assert sorted(int(run.data.tags["trial"]) for run in of_done) == [t.number for t in done]
    epochs = {trial.number: len(trial.intermediate_values) for trial in done}
    for run in of_done:
        curve = client.get_metric_history(run.info.run_id, "val/loss")
        last = epochs[int(run.data.tags["trial"])]
        assert [point.step for point in curve] == [*range(1, last + 1)]
    tables = [*server.folder.glob("artifacts/*/*/artifacts/sweep_trials.csv")]
    assert len(tables) == 2
    assert not [*tmp_path.glob("?/mlartifacts")]


def trials_of(storage: BaseStorage) -> list[optuna.trial.FrozenTrial]:
    """Return the trials of the one study there is."""
    names = optuna.get_all_study_names(storage)
    return [t for name in names for t in optuna.load_study(study_name=name, storage=storage).trials]


def count_finished(storage: BaseStorage) -> int:
    return sum(trial.state in FINISHED for trial in trials_of(storage))
