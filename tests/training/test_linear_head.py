"""The closed form is scikit-learn's logistic regression, folded into the network's last layer."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import cross_entropy

from helpers.training import network_of, parameters, prepared, run, same, transforms
from thawline.networks.all_stages import find_all_stages
from thawline.networks.stages import find_stages
from thawline.options import ModelOptions, Phase
from thawline.training import linear_head, logistic_regression
from thawline.training.logistic_regression import (
    C_PATH,
    NUM_FOLDS,
    LinearMap,
    cross_validate,
    find_basis,
    fit,
    make_folds,
    measure_contributions,
)
from thawline.training.loop import train
from thawline.training.setup import prepare

CLOSED = Phase(trainable={"last": 1}, optimizer="lbfgs")
THAWED = Phase(trainable="all", epochs=2, lr=0.003, batch_norm="eval")


def made_up(images: int, width: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, F), each of its own scale, and labels (N,)."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    features = torch.randn(images, width, generator=rng)
    features[:, :classes] += 1.5 * nn.functional.one_hot(labels, classes)
    return features * torch.logspace(-2, 2, width) + 3, labels


def start_of(components: torch.Tensor, classes: int) -> LinearMap:
    return LinearMap(torch.zeros(classes, components.shape[1]), torch.zeros(classes))


def quiet(**_: object) -> None:
    """Show no progress."""


@pytest.mark.parametrize(("images", "width"), [(60, 150), (300, 20)])
@pytest.mark.parametrize("strength", [1e-3, 1e-1])
@pytest.mark.parametrize("class_weight", [None, {0: 0.5, 1: 1.0, 2: 2.0}])
def test_a_fit_is_scikit_learn_s(
    images: int, width: int, strength: float, class_weight: dict[int, float] | None
) -> None:
    features, labels = made_up(images, width)
    basis, components = find_basis(features, features.shape[1])
    torch.testing.assert_close(basis.project(features), components, atol=1e-4, rtol=1e-4)
    weights = torch.tensor([*class_weight.values()]) if class_weight else torch.ones(3)
    loss = nn.CrossEntropyLoss(weights)  # a mean, so that the weights of all images add up to N
    line = fit(components, labels, strength, loss, start_of(components, 3))
    standardized = (features - features.mean(0)) / features.std(0, correction=0)
    own = weights * len(labels) / weights[labels].sum()
    inputs, own = standardized.double().numpy(), dict(enumerate(own.tolist()))
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000, class_weight=own)
    probabilities = theirs.fit(inputs, labels.numpy()).predict_proba(inputs)
    found = line(components).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, probabilities, atol=2e-3)


def test_a_constant_feature_does_no_harm() -> None:
    features, labels = made_up(40, 6)
    with_constant = torch.cat([features, torch.full((40, 1), 7.0)], dim=1)
    logits = []
    for each in (features, with_constant):
        _, components = find_basis(each, each.shape[1])
        line = fit(components, labels, 0.1, cross_entropy, start_of(components, 3))
        logits.append(line(components))
    assert logits[1].isfinite().all()
    torch.testing.assert_close(*logits, atol=2e-3, rtol=0)


def test_images_of_a_group_are_never_in_a_fold_and_in_the_rest() -> None:
    groups = np.array([f"patient {idx}" for idx in range(20)]).repeat(4)
    labels = (np.arange(20) % 2).repeat(4)
    folds = make_folds(labels, groups, seed=0)
    assert len(folds) == NUM_FOLDS
    assert np.array_equal(np.sort(np.concatenate([fold for _, fold in folds])), np.arange(80))
    assert not any(set(groups[rest]) & set(groups[fold]) for rest, fold in folds)


@pytest.mark.parametrize(
    ("labels", "groups"), [([0, 0, 1, 1], ["a"] * 4), ([0, 1, 2], None), ([0, 1], ["a", "b"])]
)
def test_one_group_or_one_image_of_each_class_has_no_folds(
    labels: list[int], groups: list[str] | None
) -> None:
    assert make_folds(np.array(labels), np.array(groups) if groups else None, seed=0) == []


def test_c_has_the_lowest_loss_on_images_that_were_not_fitted() -> None:
    features, labels = made_up(120, 40)
    _, components = find_basis(features, features.shape[1])
    folds, start = make_folds(labels.numpy(), None, seed=0), start_of(components, 3)
    curve = cross_validate(components, labels, folds, cross_entropy, 3, C_PATH, quiet)
    path, lines, losses = curve
    found = [row["loss"] for row in path]
    assert [row["C"] for row in path] == list(C_PATH[: len(path)])
    assert found[:-1] == sorted(found[:-1], reverse=True)  # the path ends where the loss rises
    best = min(path, key=lambda row: row["loss"])
    assert curve.c == best["C"]
    assert np.mean(losses) == pytest.approx(best["loss"], rel=1e-5)
    for (rest, fold), line in zip(folds, lines, strict=True):
        again = fit(components[rest], labels[rest], best["C"], cross_entropy, start)
        answers = (each(components[fold]).softmax(1) for each in (again, line))
        torch.testing.assert_close(*answers, atol=5e-3, rtol=0)


def test_a_stage_of_noise_loses_nothing_and_one_with_the_label_much() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    noise = torch.randn(200, 5, generator=rng)
    telling = labels[:, None] * 4.0 + torch.randn(200, 2, generator=rng)
    features = torch.cat([noise, telling], dim=1)
    basis, components = find_basis(features, features.shape[1])
    folds = make_folds(labels.numpy(), None, seed=0)
    _, lines, _ = cross_validate(components, labels, folds, cross_entropy, 2, C_PATH, quiet)
    widths = {"noise": 5, "telling": 2}
    first, second = measure_contributions(widths, basis, components, labels, folds, lines)
    assert (first["stage"], first["features"]) == ("noise", 5)
    assert abs(first["accuracy_lost"]) < 0.03 and second["accuracy_lost"] > 0.3


@pytest.mark.parametrize("head", ["linear", "all_stages"])
@pytest.mark.parametrize("log_probabilities", [False, True])
def test_the_network_answers_as_the_fit_did_and_only_its_head_has_changed(
    splits: pd.DataFrame, head: str, log_probabilities: bool
) -> None:
    network = network_of(head=head, log_probabilities=log_probabilities)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = ModelOptions(log_probabilities=log_probabilities)
    chosen = parameters().model_copy(update={"model": model})
    result = train(prepare(chosen, network, splits, transforms()), [CLOSED])
    changed = {n for n, t in network.state_dict().items() if not torch.equal(t, before[n])}
    assert changed and all(name.startswith("linear.") for name in changed)
    (row,) = result.history.to_dict("records")
    assert result.best_epoch == 1 and np.isfinite(row["train_loss"])
    images = splits[splits["split"] == "train"]
    assert result.linear_head["path"] and len(result.linear_head["losses"]) == len(images)
    if head == "all_stages":
        stages = [part["stage"] for part in result.linear_head["contributions"]]
        assert stages in ([*find_stages(network)], ["head"])


@pytest.mark.parametrize("is_in_the_last_layer", [False, True])
def test_all_stages_are_read_only_if_they_tell_more_than_the_last_layer(
    splits: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, is_in_the_last_layer: bool
) -> None:
    network = network_of(head="all_stages")
    linear = linear_head.find_linear(network)
    labels = torch.tensor(splits.loc[splits["split"] == "train", "class_index"].to_numpy())
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(len(labels), linear.in_features, generator=rng)
    features[:, slice(-4, None) if is_in_the_last_layer else slice(4)] += 4 * labels[:, None]

    def load(*arguments: Any) -> Iterator[torch.Tensor]:
        yield features[arguments[-1]]

    monkeypatch.setattr(linear_head, "load_features", load)
    result = train(prepared(splits, network), [CLOSED])
    stages = [part["stage"] for part in result.linear_head["contributions"]]
    assert stages == (["head"] if is_in_the_last_layer else [*find_stages(network)])
    pooled = find_all_stages(network)
    assert pooled
    assert bool(linear.weight[:, : -pooled.widths["head"]].any()) != is_in_the_last_layer


def test_the_same_seed_gives_the_same_bits(splits: pd.DataFrame) -> None:
    first, second = (run(splits, CLOSED, THAWED) for _ in range(2))
    assert same(first.last, second.last) and first.linear_head == second.linear_head


@pytest.mark.parametrize("name", ["MAX_BASIS_IMAGES", "MAX_CV_IMAGES"])
def test_more_images_than_are_sampled_come_to_nearly_the_same(
    splits: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = run(splits, CLOSED)
    monkeypatch.setattr(linear_head, name, 20)
    sampled = run(splits, CLOSED)
    for figure in ("train_accuracy", "val_accuracy"):
        assert sampled.history[figure][0] == pytest.approx(whole.history[figure][0], abs=0.15)


def test_c_is_at_most_that_of_the_phase(splits: pd.DataFrame) -> None:
    path = run(splits, CLOSED.model_copy(update={"max_c": 0.002})).linear_head["path"]
    assert [row["C"] for row in path] == [1e-4, 1e-3, 0.002][: len(path)]
    (alone,) = run(splits, CLOSED.model_copy(update={"max_c": 1e-6})).linear_head["path"]
    assert alone["C"] == 1e-6


def test_images_of_one_group_are_fitted_with_the_default_c(
    splits: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        result = run(splits.assign(group="one"), CLOSED)
    assert result.linear_head["path"] == [] and result.best_epoch == 1
    assert f"C {logistic_regression.DEFAULT_C:g}" in caplog.text


def test_fine_tuning_is_never_worse_than_its_head(splits: pd.DataFrame) -> None:
    result = run(splits, CLOSED, THAWED.model_copy(update={"lr": 1.0}))
    best = result.history["val_accuracy"].iloc[result.best_epoch - 1]
    assert best >= result.history["val_accuracy"].iloc[0]


def test_no_epochs_evaluate_without_a_fit(splits: pd.DataFrame) -> None:
    result = run(splits, CLOSED.model_copy(update={"epochs": 0}))
    assert result.history.empty and result.linear_head == {} and result.best_epoch == 0


def test_cross_validated_losses_have_the_groups_of_their_own_images(
    monkeypatch: pytest.MonkeyPatch, splits: pd.DataFrame
) -> None:
    monkeypatch.setattr(linear_head, "MAX_CV_IMAGES", 12)
    grouped = splits.assign(group=[f"roll {idx // 2}" for idx in range(len(splits))])
    result = run(grouped, CLOSED)
    assert len(result.linear_head["losses"]) == len(result.linear_head["groups"]) == 12
    assert run(splits, CLOSED).linear_head["groups"] == []


def test_features_that_are_all_alike_give_a_finite_head() -> None:
    for shape in ((8, 20), (20, 8)):
        basis, components = find_basis(torch.ones(shape), shape[1])
        assert components.shape[1] >= 1 and bool(components.isfinite().all())
        assert bool(basis.components.isfinite().all())
