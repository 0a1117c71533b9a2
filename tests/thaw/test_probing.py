"""The strategy `auto` follows from the number of images, or from what is measured on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import training as helper
from thawline.data.decoding import hash_files
from thawline.data.loading import ImageView
from thawline.data.transforms import build_transforms, evaluation_view, normalize
from thawline.errors import DataError
from thawline.evaluation.significance import effective_images
from thawline.networks.building import IMAGENET, build_network
from thawline.options import (
    AutoOptions,
    LastStages,
    ModelOptions,
    Parameters,
    TrainingOptions,
    TransformOptions,
)
from thawline.thaw.cache import ActivationCache
from thawline.thaw.freezing import find_stages
from thawline.thaw.probing import (
    Choice,
    choose_by_probes,
    choose_by_size,
    choose_strategy,
    cross_validate,
    pool,
    probe_stages,
    stage_features,
)

CONF = Path(__file__).parents[2] / "conf" / "base" / "parameters_strategies.yml"
STRATEGIES = Parameters(**yaml.safe_load(CONF.read_text())).strategies
OPTIONS = TrainingOptions(num_workers=0, precision="fp32")
SIZE = 64


@pytest.mark.parametrize(
    ("images", "name"),
    [
        (1, "freeze_to_layer3"),
        (9_999, "freeze_to_layer3"),
        (10_000, "freeze_to_layer1"),
        (100_000, "freeze_to_layer1"),
        (100_001, "full"),
    ],
)
def test_more_images_thaw_more(images: int, name: str) -> None:
    choice = choose_by_size(images, STRATEGIES, AutoOptions())
    assert (choice.name, choice.strategy) == (name, STRATEGIES[name])
    assert str(images) in choice.reason and "auto." in choice.reason


def test_the_thresholds_are_parameters() -> None:
    assert choose_by_size(50, STRATEGIES, AutoOptions(small=10, large=40)).name == "full"


def table(*accuracies: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "stage": [f"layer{idx}" for idx in range(len(accuracies))],
            "features": 8,
            "accuracy": accuracies,
            "standard_error": 0.01,
        }
    )


@pytest.mark.parametrize(
    ("accuracies", "name", "trained"),
    [
        ((0.7, 0.9, 0.95), "head_only", 1),
        ((0.7, 0.95, 0.945), "head_only", 1),  # within a standard error of the best
        ((0.7, 0.95, 0.92), "freeze_to_layer3", 2),
        ((0.95, 0.7, 0.92), "freeze_to_layer3", 3),
        ((0.5, 0.6, 0.7), "full", None),
    ],
)
def test_what_lies_above_the_last_stage_that_serves_is_trained(
    accuracies: tuple[float, ...], name: str, trained: int | None
) -> None:
    choice = choose_by_probes(table(*accuracies), STRATEGIES, AutoOptions())
    assert choice.name == name
    for phase in choice.strategy.phases:
        assert phase.trainable == ("all" if trained is None else LastStages(last=trained))
    assert f"{max(accuracies):.3f}" in choice.reason


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_the_best_stage_is_never_trained_where_it_is_good_enough(
    accuracies: list[float], wanted: float
) -> None:
    probes = table(*accuracies)
    choice = choose_by_probes(probes, STRATEGIES, AutoOptions(probe_accuracy=wanted))
    trainable = choice.strategy.phases[0].trainable
    if max(accuracies) < wanted:
        assert trainable == "all"
    else:
        assert trainable.last <= len(accuracies) - int(probes["accuracy"].argmax())


@pytest.mark.parametrize("backbone", ["timm/tf_efficientnet_lite0", "helpers.networks:SmallNet"])
def test_every_stage_is_probed_in_one_pass_that_the_store_keeps(
    splits: pd.DataFrame, tmp_path: Path, backbone: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelOptions(backbone=backbone, weights="default")
    network, _ = build_network(model, 2, SIZE, seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    transforms = build_transforms(TransformOptions(size=SIZE), IMAGENET)
    store = ActivationCache(tmp_path, 1)
    probes = probe_stages(network, splits, transforms, OPTIONS, 0, effective_images, store)
    assert probes["stage"].tolist() == list(find_stages(network))[:-1]
    assert probes["accuracy"].between(0, 1).all()
    if "timm" in backbone:  # two photographs are told apart by pretrained features
        assert probes["accuracy"].max() > 0.9
        assert probes["features"].iloc[-1] == 1280
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    contents = store.contents()
    assert contents["entries"].sum() == (splits["split"] == "train").sum()
    again = probe_stages(network, splits, transforms, OPTIONS, 0, effective_images, store)
    pd.testing.assert_frame_equal(again, probes)


def chosen(splits: pd.DataFrame, **changes: Any) -> tuple[Choice, pd.DataFrame]:
    training = TrainingOptions(num_workers=0, precision="fp32", **changes.pop("training", {}))
    parameters = Parameters(strategies=STRATEGIES, training=training, **changes)
    network, views = helper.network_of(), helper.transforms()
    cache = ActivationCache(Path(), max_gb=0)
    return choose_strategy(parameters, network, splits, views, effective_images, cache)


def test_a_named_strategy_is_taken_as_it_is(splits: pd.DataFrame) -> None:
    choice, probes = chosen(splits, strategy="gradual")
    assert (choice.name, choice.strategy) == ("gradual", STRATEGIES["gradual"])
    assert choice.reason == "named by the parameter strategy"
    assert probes.empty and "accuracy" in probes


def test_auto_counts_training_images_or_probes_the_stages(splits: pd.DataFrame) -> None:
    train_images = int((splits["split"] == "train").sum())
    choice, probes = chosen(splits, strategy="auto", auto=AutoOptions(by="size"))
    assert choice == choose_by_size(train_images, STRATEGIES, AutoOptions())
    assert probes.empty
    choice, probes = chosen(splits, strategy="auto", auto=AutoOptions(by="probe"))
    assert choice == choose_by_probes(probes, STRATEGIES, AutoOptions())


def test_epochs_and_rate_of_a_training_hold_in_every_phase(splits: pd.DataFrame) -> None:
    changes = {"epochs": 7, "lr": 0.123}
    choice, _ = chosen(splits, strategy="gradual", training=changes)
    assert len(choice.strategy.phases) > 1
    for phase, own in zip(choice.strategy.phases, STRATEGIES["gradual"].phases, strict=True):
        assert phase == own.model_copy(update=changes)


@pytest.mark.parametrize(
    ("shape", "width"), [((2, 3, 4, 4), 3), ((2, 4, 4, 3), 3), ((2, 5, 3), 3), ((2, 3), 3)]
)
def test_outputs_of_every_layout_are_pooled_to_one_vector(
    shape: tuple[int, ...], width: int
) -> None:
    output = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    pooled = pool(output)
    assert pooled.shape == (2, width)
    torch.testing.assert_close(pooled.mean(1), output.flatten(1).mean(1))


def score(
    features: np.ndarray, truth: np.ndarray, groups: np.ndarray | None, seed: int
) -> tuple[float, float]:
    return cross_validate(features, truth, groups, seed, effective_images)


def patients(count: int, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (N, 50), classes and groups: patients look like themselves and no other."""
    rng = np.random.default_rng(0)
    groups = np.arange(count).repeat(images)
    features = rng.normal(size=(count, 50))[groups] + 0.1 * rng.normal(size=(len(groups), 50))
    return features, (np.arange(count) % 2)[groups], groups


def test_no_image_is_predicted_by_a_probe_that_saw_its_group() -> None:
    features, truth, groups = patients(40, 8)
    assert score(features, truth, None, seed=0)[0] > 0.95
    assert score(features, truth, groups, seed=0)[0] < 0.65


def test_the_standard_error_counts_the_images_of_a_group_together() -> None:
    features, truth, groups = patients(40, 8)
    accuracy, error = score(features, truth, groups, seed=0)
    by_group = np.sqrt(accuracy * (1 - accuracy) / 40)
    assert 0.8 * by_group < error <= 1.001 * by_group


def test_without_groups_a_probe_is_cross_validated_image_by_image() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 90)
    features = rng.normal(size=(90, 4)) + truth[:, None] * 0.6
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=7)
    accuracy = (cross_val_predict(probe, features, truth, cv=folds) == truth).mean()
    error = np.sqrt(accuracy * (1 - accuracy) / 90)
    assert score(features, truth, None, seed=7) == (accuracy, error)


@pytest.mark.parametrize("groups_of_class", [(1, 1), (1, 9), (2, 3)])
def test_a_class_of_few_groups_is_probed_all_the_same(groups_of_class: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(sum(groups_of_class)).repeat(6)
    truth = np.repeat([0, 1], groups_of_class).repeat(6)
    features = rng.normal(size=(len(truth), 3)) + 4 * truth[:, None]
    accuracy, _ = score(features, truth, groups, seed=0)
    unseen = groups_of_class.count(1)  # while their class is predicted
    assert accuracy == pytest.approx(1 - unseen / sum(groups_of_class))


def test_probes_hold_groups_together_and_need_two(splits: pd.DataFrame) -> None:
    model = ModelOptions(backbone="helpers.networks:SmallNet", weights="none")
    network, _ = build_network(model, 2, SIZE, seed=0)
    transforms = build_transforms(TransformOptions(size=SIZE), IMAGENET)
    by_class = splits.assign(group=splits["label"])  # which is never seen while it is predicted
    assert (
        probe_stages(network, by_class, transforms, OPTIONS, 0, effective_images)["accuracy"] == 0
    ).all()
    with pytest.raises(DataError, match=r"auto\.by: .* at least two groups.* auto\.by=size"):
        probe_stages(network, splits.assign(group="one"), transforms, OPTIONS, 0, effective_images)


def test_the_last_stage_s_features_are_what_the_head_sees(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    network, _ = build_network(ModelOptions(backbone="resnet18", weights="none"), 2, SIZE, seed=0)
    transforms = build_transforms(TransformOptions(size=SIZE), IMAGENET)
    paths = splits.loc[splits["split"] == "train", "path"].tolist()
    images = [ImageView(*pair) for pair in zip(paths, hash_files(paths), strict=True)]
    features = stage_features(network, images, transforms, OPTIONS, ActivationCache(tmp_path, 1))
    views = torch.stack([evaluation_view(path, transforms.preprocessing) for path in paths])
    seen = []
    network.fc.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        network.eval()(normalize(views, transforms.preprocessing))
    torch.testing.assert_close(torch.from_numpy(features["layer4"]), seen[0], rtol=1e-3, atol=1e-4)
