"""Averages of networks are exact at their ends, and chosen by validation alone."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from helpers.training import EVERYTHING, HEAD, network_of, options, parameters, same, transforms
from thawline.data.decoding import hash_files
from thawline.evaluation.predictions import as_arrays, predict_split
from thawline.evaluation.weight_averages import ALPHAS, apply_wise_ft, average, make_greedy_soup
from thawline.networks.classifier import Classifier
from thawline.options import Phase
from thawline.pipelines.finetune.run_training import make_classifier
from thawline.thaw.cache import NO_CACHE, ActivationCache
from thawline.training.loop import train
from thawline.training.progress import State, TrainingResult, score
from thawline.training.setup import prepare
from thawline.training.state import TrainingCheckpoints

FITTED = Phase(trainable={"last": 1}, optimizer="lbfgs")
LAST_STAGE = Phase(trainable={"last": 2}, epochs=3, lr=0.01)


def arguments_of(splits: pd.DataFrame, cache: ActivationCache = NO_CACHE, **changes: Any) -> Any:
    """Return what prepares a training of the small network."""
    return parameters(**changes), network_of(), splits, transforms(), cache


def trained(arguments: Any, *phases: Phase) -> TrainingResult:
    return train(prepare(*arguments), phases)


def ends_of(result: TrainingResult) -> tuple[State, State]:
    assert result.wise_ft_ends
    return result.wise_ft_ends


def classifier_of(arguments: Any, state: State, seed: int = 0) -> Classifier:
    own, network, splits, image_transforms, _ = arguments
    names = {"strategy": "full", "chosen_strategy": "full", "seed": seed}
    return make_classifier(own, network, state, splits, image_transforms, names)


def measure(arguments: Any, state: State) -> tuple[float, float]:
    """Return the score on the validation split, as the evaluation computes it."""
    predictions = predict_split(classifier_of(arguments, state), arguments[2], "val", 8, options())
    probabilities, targets, correct = as_arrays(predictions)
    loss = -torch.tensor(probabilities[range(len(targets)), targets]).log().mean()
    return score({"val_accuracy": float(correct.mean()), "val_loss": float(loss)}, "val_accuracy")


def test_an_average_is_each_end_and_of_equal_states_that_state_to_the_bit() -> None:
    head, tuned = (network_of().state_dict() for _ in range(2))
    tuned = {n: t * 3.1 + 1 if t.is_floating_point() else t + 7 for n, t in tuned.items()}
    assert same(average([tuned, head], [1, 0]), tuned)
    floats = [name for name, tensor in head.items() if tensor.is_floating_point()]
    other_end = average([tuned, head], [0, 1])
    assert all(other_end[name].equal(head[name]) for name in floats)
    assert other_end["layer1.1.num_batches_tracked"] == 7
    for count in (2, 3, 7):
        assert same(average([tuned] * count, [1 / count] * count), tuned)
    middle = average([tuned, head], [0.25, 0.75])
    torch.testing.assert_close(middle["conv1.bias"], 1.525 * head["conv1.bias"] + 0.25)


@pytest.mark.parametrize("head", [FITTED, HEAD])
@pytest.mark.parametrize("monitor", ["val_accuracy", "val_loss"])
def test_wise_ft_takes_the_best_of_its_grid(
    splits: pd.DataFrame, head: Phase, monitor: str
) -> None:
    arguments = arguments_of(splits, monitor=monitor)
    before = trained(arguments, head, EVERYTHING)
    tuned, fitted = ends_of(before)
    assert tuned["conv1.weight"].equal(before.last["conv1.weight"]) or tuned is before.best
    assert fitted["conv1.weight"].equal(network_of().state_dict()["conv1.weight"])
    after = apply_wise_ft(arguments, before)
    grid = {a: average([tuned, fitted], [a, 1 - a]) for a in ALPHAS}
    alpha = after.wise_ft["wise_ft_alpha"]
    assert same(after.best, grid[alpha]) and same(after.last, before.last)
    scores = {a: measure(arguments, state) for a, state in grid.items()}
    if monitor == "val_loss":
        scores = {a: (loss, loss) for a, (_, loss) in scores.items()}
    else:
        assert after.wise_ft["best_val_accuracy"] == pytest.approx(scores[alpha][0])
    assert scores[alpha] == pytest.approx(max(scores.values()), rel=1e-4)
    pd.testing.assert_frame_equal(after.history, before.history)


def test_the_best_epoch_is_an_end_wherever_it_is(splits: pd.DataFrame) -> None:
    arguments = arguments_of(splits)
    ruin = EVERYTHING.model_copy(update={"lr": 3.0, "epochs": 1})
    result = trained(arguments, FITTED, ruin)
    tuned, head = ends_of(result)
    assert result.best_epoch == 1 and same(head, result.best) and same(tuned, result.last)
    after = apply_wise_ft(arguments, result)
    assert measure(arguments, after.best) >= measure(arguments, result.best)
    assert after.best_epoch == (2 if after.wise_ft["wise_ft_alpha"] else 1)


@pytest.mark.parametrize("phases", [[HEAD], [EVERYTHING], [HEAD, HEAD], [EVERYTHING, HEAD]])
def test_wise_ft_needs_a_head_that_was_trained_first(
    splits: pd.DataFrame, phases: list[Phase], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = arguments_of(splits)
    result = trained(arguments, *(phase.model_copy(update={"epochs": 1}) for phase in phases))
    with caplog.at_level(logging.INFO):
        assert apply_wise_ft(arguments, result) is result
    assert "training.wise_ft has no effect" in caplog.text


def test_wise_ft_may_be_asked_for_when_the_training_is_over(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    checkpoints = TrainingCheckpoints(tmp_path)
    phases = [FITTED, EVERYTHING]
    first = train(prepare(*arguments_of(splits)), phases, checkpoints)
    checkpoints.finish()
    asked = arguments_of(splits, wise_ft=True, resume=True)
    rows: list[int] = []
    again = train(prepare(*asked), phases, checkpoints, lambda _, epoch: rows.append(epoch))
    assert rows == [1, 2, 3]
    for one, other in zip(ends_of(first), ends_of(again), strict=True):
        assert same(one, other)


def test_what_all_states_have_in_common_is_read_from_the_cache(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    moved = splits.assign(
        sha256=hash_files(splits["path"].tolist()),
        path=[str(tmp_path / f"{idx}.jpg") for idx in range(len(splits))],
    )
    for source, target in zip(splits["path"], moved["path"], strict=True):
        shutil.copy(source, target)
    arguments = arguments_of(moved, ActivationCache(tmp_path / "cache", max_gb=1))
    result = trained(arguments, FITTED, LAST_STAGE)
    expected = apply_wise_ft(arguments, result)
    for path in moved["path"]:
        Path(path).unlink()
    assert apply_wise_ft(arguments, result).wise_ft == expected.wise_ft


def test_a_greedy_soup_is_never_worse_on_validation_than_its_best_ingredient(
    splits: pd.DataFrame,
) -> None:
    arguments = arguments_of(splits)
    start = trained(arguments, LAST_STAGE).last
    generator = torch.Generator().manual_seed(0)
    found = 0
    for _ in range(4):
        noisy = [
            {
                n: t + 0.2 * torch.randn(t.shape, generator=generator) if "weight" in n else t
                for n, t in start.items()
            }
            for _ in range(3)
        ]
        classifiers = [classifier_of(arguments, s, seed) for seed, s in enumerate(noisy)]
        soup = make_greedy_soup(arguments, classifiers)
        accuracies = [measure(arguments, state)[0] for state in noisy]
        if soup:
            found += 1
            seeds = soup.training["soup_of_seeds"]
            state = soup.network.state_dict()
            assert accuracies[seeds[0]] == max(accuracies)
            assert measure(arguments, state)[0] >= max(accuracies)
            assert same(state, average([noisy[s] for s in seeds], [1 / len(seeds)] * len(seeds)))
    assert found


def test_the_soup_of_one_network_or_of_different_ones_is_none(splits: pd.DataFrame) -> None:
    arguments = arguments_of(splits)
    state = trained(arguments, HEAD).best
    one = classifier_of(arguments, state)
    soup = make_greedy_soup(arguments, [one, one, one])
    assert soup and same(soup.network.state_dict(), state)
    broken = {name: tensor * 0 - 1 for name, tensor in state.items()}
    assert make_greedy_soup(arguments, [classifier_of(arguments, broken), one]) is None
    wider = network_of(backbone_kwargs={"width": 16})
    model = one.model.model_copy(update={"backbone_kwargs": {"width": 16}})
    other = Classifier(wider, one.class_names, one.preprocessing, model, one.training)
    assert make_greedy_soup(arguments, [one, other]) is None
