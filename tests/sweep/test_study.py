"""A sweep tries what may be tried, and makes exactly so many trials, whatever happens to it."""

from __future__ import annotations

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
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from conftest import child_process
from thawline.errors import ParameterError, TrainingError
from thawline.options import Parameters, validate_parameters
from thawline.pipelines.sweep import nodes
from thawline.sweep import storage as sweep_storage
from thawline.sweep import study as sweeping
from thawline.thaw.cache import ActivationCache
from thawline.training.loop import OnEpoch

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


def test_the_space_of_conf_base_can_be_searched_with_every_strategy() -> None:
    space = yaml.safe_load((CONF / "parameters_sweep.yml").read_text())["sweep"]
    for strategy in ("head_only", "full", "gradual", "auto"):
        sweeping.check_space(make(space, strategy=strategy))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"trian.lr": LR}, ["trian: unknown", "did you mean 'training'"]),
        ({"training.lrr": LR}, ["training.lrr: unknown", "did you mean 'lr'"]),
        ({"training.lr.x": LR}, ["training.lr.x: unknown"]),
        ({"strategies.full.phases.7.lr": LR}, ["strategies.full.phases.7.lr: unknown"]),
        (
            {"training.momentum": LR | {"high": 1.5}},
            ["training.momentum: Input should be less than 1, given 1.5"],
        ),
        (
            {"training.batch_size": LR | {"low": 8, "high": 64}},
            ["training.batch_size", "valid integer"],
        ),
        (
            {"training.optimizer": {"type": "categorical", "choices": ["sgd", "adam"]}},
            ["training.optimizer", "given 'adam'"],
        ),
        (
            {"strategy": {"type": "categorical", "choices": ["full", "lp_tf"]}},
            ["strategy: 'lp_tf'", "did you mean 'lp_ft'"],
        ),
        (
            {"training.lr": LR | {"strategies": ["hed_only"]}},
            ["training.lr: strategies names 'hed_only'", "did you mean 'head_only'"],
        ),
        ({"training.lr": LR | {"strategies": ["full"]}}, ["nothing is tried with", "head_only"]),
        (
            {
                "transforms.size": {"type": "categorical", "choices": [64, 224]},
                "transforms.resize": {"type": "categorical", "choices": [128, 72]},
            },
            ["resize must not be smaller than size"],
        ),
        ({"dataset.root": LR}, ["dataset.root: it changes the splits"]),
        ({"seed": LR}, ["seed: it changes the splits"]),
        ({"training.monitor": LR}, ["training.monitor: it is what trials are compared by"]),
        ({"evaluation.top_k": LR}, ["evaluation.top_k: it does not change what a network learns"]),
    ],
)
def test_what_cannot_be_tried_is_said_before_the_first_trial(
    space: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ParameterError) as caught:
        sweeping.check_space(make({"space": space}))
    for words in ["sweep.space", *said]:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("dimension", "said"),
    [
        ({"type": "float", "low": 1}, "a float needs low and high"),
        ({"type": "int", "low": 5, "high": 1}, r"low \(5\) must be below high \(1\)"),
        ({"type": "int", "low": 1, "high": 4.5}, "whole numbers"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "low above 0"),
        ({"type": "categorical", "low": 0}, "a categorical needs choices"),
        ({"type": "flaot", "low": 0, "high": 1}, "given 'flaot'"),
        ({"type": "float", "low": 0, "hihg": 1}, "did you mean 'high'"),
    ],
)
def test_a_dimension_that_makes_no_sense_is_refused(dimension: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=rf"(?s)sweep\.space\.training\.lr.*{said}"):
        make({"space": {"training.lr": dimension}})


def test_null_takes_a_parameter_out_of_the_space() -> None:
    assert [*sweeping._dimensions(make({"space": {"training.lr": LR, "seed": None}}))] == [
        "training.lr"
    ]


def test_what_depends_on_the_strategy_is_tried_with_that_strategy_only(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    space = {
        "strategies.lp_ft.phases.1.lr": LR | {"strategies": ["lp_ft"]},
        "strategy": {"type": "categorical", "choices": ["head_only", "lp_ft"]},
        "training.gradient_accumulation_steps": {"type": "int", "low": 1, "high": 3},
    }
    parameters = make({"space": space, "trials": 10})
    sweeping.check_space(parameters)
    seen = []

    def train(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
        lr = chosen.strategies["lp_ft"].phases[1].lr
        assert lr == values.get("strategies.lp_ft.phases.1.lr", 0.0003)
        assert chosen.strategy == values["strategy"]
        seen.append((values["strategy"], len(values)))
        on_epoch({"val_accuracy": 0.5, "val_loss": number}, 1)

    sweeping.run_trials(study_of(tmp_path / "a.db", parameters, splits), parameters, train)
    assert set(seen) == {("head_only", 2), ("lp_ft", 3)}


@settings(max_examples=30)
@given(
    st.dictionaries(st.sampled_from(["lr", "ema_decay", "label_smoothing"]), st.floats(0.01, 0.9))
)
def test_values_by_dotted_name_change_these_and_nothing_else(values: dict[str, float]) -> None:
    before = make()
    after = sweeping.with_values(before, {f"training.{n}": v for n, v in values.items()})
    assert after.training == before.training.model_copy(update=values)
    assert after.strategies == before.strategies and after.model == before.model


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
    start = time.monotonic()
    sweeping.run_trials(study, parameters, quick)
    assert count(study) > 0 and time.monotonic() - start < 10


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
    tmp_path: Path,
    splits: pd.DataFrame,
    change: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    first = study_of(tmp_path / "a.db", make(), splits)
    second = study_of(tmp_path / "a.db", make(**change), splits)
    assert first.study_name != second.study_name
    assert f"{second.study_name} is new; {first.study_name} had other " in caplog.text
    named = {"sweep": "space of training.lr", "training": "training.weight_decay"}
    assert named.get(*change, *change) in caplog.text
    assert study_of(tmp_path / "a.db", make(), splits).study_name == first.study_name


def test_other_images_make_another_study_and_a_moved_folder_does_not(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    whole = sweeping.identity(make(), splits)
    moved = splits.copy()
    for row, path in enumerate(splits["path"]):
        copy = tmp_path / path.replace("/", "_")
        copy.write_bytes(Path(path).read_bytes())
        moved.loc[row, "path"] = str(copy)
    assert sweeping.identity(make(), moved) == whole
    assert sweeping.identity(make(), splits.iloc[1:]) != whole
    others = {"sweep": {"trials": 7, "pruner": "none"}, "training": {"num_workers": 0}}
    assert sweeping.identity(make(**others), splits) == whole


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
            lambda _, name=name: ActivationCache(tmp_path / name, 1),
            lambda _, name=name: sweep_storage.open_storage(f"sqlite:///{tmp_path}/{name}.db"),
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
    with pytest.raises(TrainingError, match="None of the 1 trials"):
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
        made = optuna.trial.create_trial(
            value=accuracy, user_attrs={"val_accuracy": accuracy, "val_loss": loss}
        )
        made.number = number
        return made

    trials = [trial(0, 0.9, 0.1), trial(1, 1.0, 0.4), trial(2, 1.0, 0.3), trial(3, 1.0, 0.3)]
    assert sweeping.best_trial(trials, "val_accuracy").number == 2
    assert sweeping.best_trial(trials, "val_loss").number == 0


def slow(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
    for epoch in (1, 2):
        time.sleep(random.random() / 20)
        on_epoch({"val_accuracy": values["training.lr"], "val_loss": 0.0}, epoch)


def work(file: Path, parameters: Parameters, splits: pd.DataFrame) -> None:
    sweep_storage.HEARTBEAT, sweep_storage.GRACE = 1, 3
    sweeping.run_trials(study_of(file, parameters, splits), parameters, slow)


def start(file: Path, parameters: Parameters, splits: pd.DataFrame) -> Any:
    process = child_process(work, file, parameters, splits)
    process.start()
    return process


def test_processes_share_the_trials_of_a_study_and_one_may_be_killed(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    parameters = make({"trials": 15, "pruner": "none", "sampler": "random"})
    file = tmp_path / "a.db"
    first, *others = [start(file, parameters, splits) for _ in range(3)]  # nobody made the tables
    time.sleep(1.5)
    os.kill(first.pid, signal.SIGKILL)
    for process in (first, *others):
        process.join(60)
    assert [process.exitcode for process in others] == [0, 0]
    study = study_of(file, parameters, splits)
    assert count(study) == 15
    rates = [t.params["training.lr"] for t in study.get_trials(states=sweeping.FINISHED)]
    assert len(set(rates)) == 15  # none is counted twice
    assert not study.get_trials(states=(TrialState.RUNNING,))
    for trial in study.get_trials(states=(TrialState.FAIL,)):
        if "training.lr" in trial.params:  # it was killed, and tried again
            assert trial.params["training.lr"] in rates


def test_a_trial_killed_before_its_first_sign_of_life_is_made_up_for(
    tmp_path: Path, splits: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_storage, "HEARTBEAT", 1)
    monkeypatch.setattr(sweep_storage, "GRACE", 2)
    parameters = make({"trials": 3})
    study = study_of(tmp_path / "a.db", parameters, splits)
    study.ask()  # and nothing more
    sweeping.run_trials(study, parameters, quick)
    assert count(study) == 3
    assert study.trials[0].state == TrialState.FAIL


def test_a_trial_that_was_only_taken_for_dead_is_not_counted_twice(
    tmp_path: Path, splits: pd.DataFrame
) -> None:
    parameters = make({"trials": 3})
    study = study_of(tmp_path / "a.db", parameters, splits)

    def train(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
        if number == 1:  # as another process does after a while without a sign of life
            study.tell(number, state=TrialState.FAIL)
        quick(number, values, chosen, on_epoch)

    sweeping.run_trials(study, parameters, train)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", *["COMPLETE"] * 2]


def test_a_password_is_in_no_message() -> None:
    for url in ("postgresql+nonsense://user:secret@host/db", "user:secret@host"):
        with pytest.raises(ParameterError, match=r"sweep\.storage") as caught:
            sweep_storage.open_storage(url)
        assert "secret" not in str(caught.value)
    parameters = make({"storage": "postgresql://user:secret@host/db"})
    assert "secret" not in parameters.model_dump_json() + repr(parameters)
