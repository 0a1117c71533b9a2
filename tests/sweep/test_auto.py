"""The strategy auto chooses by paired results on validation images, within a budget."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from thawline.options import AutoOptions, LastStages, Parameters, TrainingOptions, TransformOptions
from thawline.sweep import auto
from thawline.sweep.auto import Trained, choose_strategy, is_better, possible_sizes

CONF = Path(__file__).parents[2] / "conf" / "base" / "parameters_strategies.yml"
STRATEGIES = Parameters(**yaml.safe_load(CONF.read_text())).strategies


def parameters(**changes: Any) -> Parameters:
    return Parameters(**{"strategies": STRATEGIES, "strategy": "auto", **changes})


def write_splits(folder: Path, side: int) -> pd.DataFrame:
    Image.new("RGB", (side, 2 * side)).save(folder / f"{side}.png")
    splits = pd.DataFrame({"split": ["train"] * 60 + ["val"] * 40})
    return splits.assign(path=str(folder / f"{side}.png"))


AT_224 = parameters(transforms=TransformOptions(size=224))


class Trainings:
    """Trainings whose results are made up, in the order in which they are asked for."""

    def __init__(
        self, errors: dict[tuple[str, int], int], larger_gains: float = 0, seconds: float = 0.01
    ) -> None:
        self.errors, self.larger_gains, self.seconds = errors, larger_gains, seconds
        self.asked: list[tuple[str, int]] = []

    def train(self, own: Parameters) -> Trained:
        size = own.transforms.size or 224
        self.asked.append((own.strategy, size))
        correct = np.arange(40) >= self.errors.get((own.strategy, size), 20)
        losses = np.full(60, 1.0) - (self.larger_gains if size > 224 else 0)
        path = [{"C": 0.1, "loss": 1.0, "accuracy": 0.5}]
        head = {"path": path, "losses": losses.tolist(), "groups": []}
        return Trained(own, SimpleNamespace(linear_head=head), correct, size, self.seconds)

    def prepare(self, own: Parameters) -> Any:
        return own

    def choose(
        self, splits: pd.DataFrame, given: Parameters, checkpoints: Any = None
    ) -> auto.Choice:
        return choose_strategy(given, splits, self.train, self.prepare, checkpoints)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "estimate_seconds", lambda run, phase: 1.0)


def test_a_named_strategy_is_taken_with_the_epochs_and_rate_of_a_training(tmp_path: Path) -> None:
    given = parameters(strategy="gradual", training=TrainingOptions(epochs=7, lr=0.123))
    choice = Trainings({}).choose(write_splits(tmp_path, 8), given)
    assert (choice.name, choice.reason) == ("gradual", "named by the parameter strategy")
    assert choice.table().empty and choice.result is None
    for phase, own in zip(choice.parameters.phases, STRATEGIES["gradual"].phases, strict=True):
        assert phase == own.model_copy(update={"epochs": 7, "lr": 0.123})


def test_a_closed_form_has_one_epoch_or_none() -> None:
    for epochs, expected in ((7, 1), (0, 0), (None, 1)):
        given = parameters(strategy="full", training=TrainingOptions(epochs=epochs))
        assert given.with_strategy("lp_ft").phases[0].epochs == expected


def test_a_strategy_brings_its_head_and_weights() -> None:
    assert parameters().with_strategy("all_stages").model.head == "all_stages"
    assert parameters().with_strategy("scratch").model.weights == "none"
    assert parameters().with_strategy("full").model == parameters().model


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("gains", "size"), [(0.5, 320), (-0.5, 224), (0.0, 224)])
def test_a_larger_input_is_taken_only_if_its_losses_are_lower(
    tmp_path: Path, gains: float, size: int
) -> None:
    trainings = Trainings({("all_stages", 224): 2, ("all_stages", 320): 2}, gains)
    choice = trainings.choose(write_splits(tmp_path, 400), parameters())
    assert trainings.asked == [("all_stages", 224), ("all_stages", 320)]  # 2 errors: nothing more
    assert choice.name == "all_stages" and (choice.parameters.transforms.size or 224) == size
    assert "fine-tuning could not show" in choice.reason


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("errors", "name"), [(0, "lp_ft"), (20, "all_stages"), (30, "all_stages")])
def test_fine_tuning_is_taken_only_if_it_is_better(tmp_path: Path, errors: int, name: str) -> None:
    trainings = Trainings({("all_stages", 224): 20, ("lp_ft", 224): errors})
    choice = trainings.choose(write_splits(tmp_path, 100), AT_224)
    assert trainings.asked == [("all_stages", 224), ("lp_ft", 224)]
    assert choice.name == name and choice.reason.startswith(f"{name}: ")
    assert choice.table()["strategy"].tolist() == ["all_stages", "lp_ft"]
    assert choice.result is choice.tried[name == "lp_ft"].result


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("seconds", "budget"), [(1.2, 3), (0.8, 2)])  # twice as long at 224 px
def test_a_size_that_does_not_fit_into_what_is_left_of_the_budget_is_not_tried(
    tmp_path: Path, seconds: float, budget: float
) -> None:
    given = parameters(auto=AutoOptions(budget_minutes=budget / 60))
    trainings = Trainings({}, seconds=seconds)
    trainings.choose(write_splits(tmp_path, 150), given)
    assert trainings.asked == [("all_stages", 160), ("lp_ft", 160)]


@pytest.mark.usefixtures("quick")
def test_without_a_budget_only_the_closed_form_is_fitted(tmp_path: Path) -> None:
    trainings = Trainings({})
    given = parameters(auto=AutoOptions(budget_minutes=0))
    choice = trainings.choose(write_splits(tmp_path, 400), given)
    assert trainings.asked == [("all_stages", 224)] and choice.name == "all_stages"
    assert "does not fit into auto.budget_minutes" in choice.reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"head": "mlp"}}, "model.head: mlp needs a strategy that trains it"),
        ({"training": {"epochs": 0}}, "training.epochs: 0 leaves the strategy auto nothing"),
    ],
)
def test_what_auto_would_ignore_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameters(**changes)


@pytest.mark.parametrize(("fits", "depth"), [(9, 5), (4, 4)])
def test_as_many_stages_are_fine_tuned_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int, depth: int
) -> None:
    depths = []

    def needed(run: Any, phase: Any) -> float:
        depths.append(phase.trainable)
        return 1.0 if phase.trainable.last <= fits else 1e6

    monkeypatch.setattr(auto, "estimate_seconds", needed)
    choice = Trainings({("lp_ft", 224): 0}).choose(write_splits(tmp_path, 100), AT_224)
    assert depths[-1] == choice.parameters.phases[-1].trainable == LastStages(last=depth)


@pytest.mark.usefixtures("quick")
def test_a_training_that_is_to_be_resumed_keeps_its_stages(tmp_path: Path) -> None:
    begun = SimpleNamespace(has=lambda run, phases: phases[-1].trainable.last <= 3)
    choice = Trainings({("lp_ft", 224): 0}).choose(write_splits(tmp_path, 100), AT_224, begun)
    assert choice.parameters.phases[-1].trainable == LastStages(last=3)


@pytest.mark.parametrize(
    ("side", "sizes"),
    [(100, [128, 160, None]), (159, [160, None]), (160, [160, None, 320]), (500, [None, 320])],
)
def test_sizes_of_the_input_follow_those_of_the_images(
    tmp_path: Path, side: int, sizes: list[int | None]
) -> None:
    assert possible_sizes(parameters(), write_splits(tmp_path, side)) == sizes


@pytest.mark.parametrize("per_group", [1, 8])
def test_without_a_difference_better_is_said_in_16_percent(per_group: int) -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(60).repeat(per_group)
    said = [is_better(rng.normal(size=60)[groups], groups) for _ in range(1500)]
    assert np.mean(said) == pytest.approx(0.16, abs=0.04)


def test_one_group_cannot_show_a_difference_by_its_images_alone() -> None:
    groups = np.arange(3).repeat(8)
    gains = np.where(groups == 0, 1.0, np.where(groups == 1, -0.5, 0))
    assert is_better(gains, np.arange(24)) and not is_better(gains, groups)
