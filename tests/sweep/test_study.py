"""A sweep runs its trials, resumes, and compares what can be compared."""

import os
import random
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from conftest import child_process
from helpers.servers import wait_until
from thawline.errors import ParameterError, TrainingError
from thawline.options import Parameters, validate_parameters
from thawline.pipelines.sweep import nodes
from thawline.sweep import storage as sweep_storage
from thawline.sweep import study as sweeping
from thawline.sweep.space import check_space
from thawline.training.progress import OnEpoch

CONF = Path(__file__).parents[2] / "conf" / "base"
LR = {"type": "float", "low": 0.001, "high": 0.1, "log": True}


def make(sweep: dict[str, Any] | None = None, **groups: Any) -> Parameters:
    """Return the parameters of conf/base with a space of one rate, and other changes."""
    tree = {}
    for name in ("parameters.yml", "parameters_strategies.yml"):
        tree |= yaml.safe_load((CONF / name).read_text())
    for name, value in groups.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
    return validate_parameters(tree | {"sweep": {"space": {"training.lr": LR}} | (sweep or {})})


def quick(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
    """Stand in for a training: accuracy by the rate alone."""
    for epoch in (1, 2):
        lr = chosen.training.lr or 0.0
        on_epoch({"val_accuracy": 1 - abs(lr - 0.03) - 0.1 / epoch, "val_loss": lr}, epoch)


def study_of(file: Path, parameters: Parameters, splits: pd.DataFrame) -> optuna.study.Study:
    return sweeping.open_study(sweep_storage.open_storage(f"sqlite:///{file}"), parameters, splits)


def count(study: optuna.study.Study) -> int:
    return len(study.get_trials(states=sweeping.FINISHED))


def test_what_depends_on_the_strategy_is_tried_with_that_strategy_only(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    space = {
        "strategies.lp_ft.phases.1.lr": LR | {"strategies": ["lp_ft"]},
        "strategy": {"type": "categorical", "choices": ["head_only", "lp_ft"]},
        "training.gradient_accumulation_steps": {"type": "int", "low": 1, "high": 3},
    }
    parameters = make({"space": space, "trials": 10})
    check_space(parameters)
    seen = []

    def train(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
        lr = chosen.strategies["lp_ft"].phases[1].lr
        assert lr == values.get("strategies.lp_ft.phases.1.lr", 0.0003)
        assert chosen.strategy == values["strategy"]
        seen.append((values["strategy"], len(values)))
        on_epoch({"val_accuracy": 0.5, "val_loss": number}, 1)

    sweeping.run_trials(study_of(tmp_path / "a.db", parameters, splits), parameters, train)
    assert set(seen) == {("head_only", 2), ("lp_ft", 3)}


def test_the_same_command_goes_on_until_the_budget_and_a_larger_one_adds_trials(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    tried = []
    for budget, expected in ((3, 3), (3, 3), (5, 5), (2, 5)):
        parameters = make({"trials": budget})
        study = study_of(tmp_path / "a.db", parameters, splits)
        sweeping.run_trials(study, parameters, quick)
        assert count(study) == expected
        tried.append([trial.params["training.lr"] for trial in study.trials])
    assert tried[2][:3] == tried[0]
    assert len(set(tried[-1])) == 5  # a new process does not try again what was tried


def test_interrupted_or_not_the_same_seed_tries_the_same(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    tried = []
    for name, budgets in (("a.db", (11,)), ("b.db", (5, 11))):  # ten are random in any case
        for budget in budgets:
            parameters = make({"trials": budget, "pruner": "none"})
            study = study_of(tmp_path / name, parameters, splits)
            sweeping.run_trials(study, parameters, quick)
        tried.append([trial.params for trial in study.trials])
    assert tried[0] == tried[1]


def test_without_a_number_of_trials_the_time_ends_a_sweep(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    parameters = make({"trials": None, "timeout_minutes": 0.01})
    study = study_of(tmp_path / "a.db", parameters, splits)
    sweeping.run_trials(study, parameters, quick)
    assert count(study) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"sweep": {"space": {"training.lr": LR | {"high": 0.2}}}},
        {"training": {"weight_decay": 0.5}},
        {"seed": 1},
        {"strategy": "full"},
    ],
)
def test_what_cannot_be_compared_is_never_in_one_study(
    tmp_path: Path, splits: pd.DataFrame, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = study_of(tmp_path / "a.db", make(), splits)
    second = study_of(tmp_path / "a.db", make(**change), splits)
    assert first.study_name != second.study_name
    assert f"{second.study_name} is new; {first.study_name} had other " in caplog.text
    named = {"sweep": "space.training.lr.high", "training": "training.weight_decay"}
    assert named.get(*change, *change) in caplog.text
    assert study_of(tmp_path / "a.db", make(), splits).study_name == first.study_name


def test_other_images_make_another_study_and_a_moved_folder_does_not(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    whole = sweeping.study_fingerprint(make(), splits)
    moved = splits.copy()
    for row, path in enumerate(splits["path"]):
        copy = tmp_path / path.replace("/", "_")
        copy.write_bytes(Path(path).read_bytes())
        moved.loc[row, "path"] = str(copy)
    assert sweeping.study_fingerprint(make(), moved) == whole
    assert sweeping.study_fingerprint(make(), splits.iloc[1:]) != whole
    others = {"sweep": {"trials": 7, "pruner": "none"}, "training": {"num_workers": 0}}
    assert sweeping.study_fingerprint(make(**others), splits) == whole


def test_test_images_change_nothing(tmp_path: Path, splits: pd.DataFrame) -> None:
    blind = splits.copy()
    is_test = blind["split"] == "test"
    blind.loc[is_test, "path"] = "nowhere"
    blind.loc[is_test, "class_index"] = 1 - blind.loc[is_test, "class_index"]
    options = {"num_workers": 0, "epochs": 1, "precision": "fp32"}
    parameters = make({"trials": 1}, training=options, transforms={"size": 32})
    found = []
    for name, table in (("a", splits), ("b", blind)):
        study, trials = nodes.run_sweep(
            parameters,
            nodes.drop_test_split(table),
            tmp_path / name,
            tmp_path / f"{name}.db",
            lambda *_: nullcontext(lambda _: None),
            lambda *_: None,
        )
        found.append((study, [(trial.params, trial.user_attrs) for trial in trials]))
    assert found[0] == found[1]


def test_a_hopeless_trial_is_stopped_early(tmp_path: Path, splits: pd.DataFrame) -> None:
    parameters = make({"trials": 7, "sampler": "random"})
    study = study_of(tmp_path / "a.db", parameters, splits)

    def train(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
        for epoch in range(1, 6):
            on_epoch({"val_accuracy": 0.9 - 0.05 * number, "val_loss": 1.0}, epoch)

    sweeping.run_trials(study, parameters, train)
    table = sweeping.trial_table(study.trials)
    assert table["state"].tolist() == ["complete"] * 5 + ["pruned"] * 2
    assert table["epochs"].tolist() == [5] * 5 + [2] * 2  # the first epoch is no evidence
    assert table["val_accuracy"].iloc[6] == pytest.approx(0.9 - 0.3)
    assert sweeping.best_trial(study.trials, "val_accuracy").number == 0


def test_a_trial_that_diverges_counts_and_does_not_end_the_sweep(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    parameters = make({"trials": 3})
    study = study_of(tmp_path / "a.db", parameters, splits)

    def train(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
        if number == 1:
            raise TrainingError("train_loss is nan")
        quick(number, values, chosen, on_epoch)

    sweeping.run_trials(study, parameters, train)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    with pytest.raises(TrainingError, match="All 1 trials were pruned"):
        sweeping.best_trial(study.trials[1:2], "val_accuracy")


def test_a_mistake_ends_the_sweep_and_is_not_counted(tmp_path: Path, splits: pd.DataFrame) -> None:
    parameters = make({"trials": 2})
    study = study_of(tmp_path / "a.db", parameters, splits)

    def train(*_: Any) -> None:
        raise ParameterError("strategies: trainable names 'x'")

    with pytest.raises(ParameterError):
        sweeping.run_trials(study, parameters, train)
    sweeping.run_trials(study, parameters, quick)
    assert count(study) == 2


def test_equal_accuracies_are_told_apart_by_the_loss() -> None:
    def trial(number: int, accuracy: float, loss: float) -> FrozenTrial:
        figures = {"val_accuracy": accuracy, "val_loss": loss}
        made = optuna.trial.create_trial(value=accuracy, user_attrs=figures)
        made.number = number
        return made

    trials = [trial(0, 0.9, 0.1), trial(1, 1.0, 0.4), trial(2, 1.0, 0.3), trial(3, 1.0, 0.3)]
    assert sweeping.best_trial(trials, "val_accuracy").number == 2
    assert sweeping.best_trial(trials, "val_loss").number == 0


def slow(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
    for epoch in (1, 2):
        time.sleep(random.random() / 5)
        on_epoch({"val_accuracy": values["training.lr"], "val_loss": 0.0}, epoch)


def work(file: Path, parameters: Parameters, splits: pd.DataFrame) -> None:
    sweep_storage.HEARTBEAT_SECONDS, sweep_storage.GRACE_SECONDS = 1, 2
    sweeping.run_trials(study_of(file, parameters, splits), parameters, slow)


@pytest.mark.slow
def test_processes_share_the_trials_of_a_study_and_the_one_of_a_killed_process_is_retried(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    parameters = make({"trials": 20, "pruner": "none", "sampler": "random"})
    file = tmp_path / "a.db"
    first, *others = [child_process(work, file, parameters, splits) for _ in range(3)]
    for process in (first, *others):  # nobody made the tables
        process.start()
    study = study_of(file, parameters, splits)
    wait_until(lambda: count(study) >= 3, seconds=60)
    os.kill(first.pid, signal.SIGKILL)
    for process in (first, *others):
        process.join(60)
    assert [process.exitcode for process in others] == [0, 0]
    finished = study.get_trials(states=sweeping.FINISHED)
    assert len(finished) in (20, 21)  # each process ends after the trial that it is at
    rates = [trial.params["training.lr"] for trial in finished]
    assert len(set(rates)) == len(rates)  # none is counted twice
    for trial in study.get_trials(states=(TrialState.FAIL,)):
        if "training.lr" in trial.params:
            assert trial.params["training.lr"] in rates


def test_a_password_is_in_no_message() -> None:
    for url in ("postgresql+nonsense://user:secret@host/db", "user:secret@host"):
        with pytest.raises(ParameterError, match=r"sweep\.storage") as caught:
            sweep_storage.open_storage(url)
        assert "secret" not in str(caught.value)
    parameters = make({"storage": "postgresql://user:secret@host/db"})
    assert "secret" not in parameters.model_dump_json() + repr(parameters)
