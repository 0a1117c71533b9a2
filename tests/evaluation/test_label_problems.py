"""Labels that are wrong, images in two splits and images out of place are found, and few others."""

import numpy as np
import pandas as pd
import pytest
import torch

from thawline.data.decoding import hash_files
from thawline.data.loading import ImageView
from thawline.data.sources import find_images
from thawline.data.splitting import class_names, split_dataset
from thawline.data.transforms import build_transforms
from thawline.evaluation.label_problems import (
    find_label_errors,
    find_outliers,
    out_of_sample_probabilities,
)
from thawline.networks.building import build_network, pretrained_preprocessing
from thawline.options import DatasetOptions, ModelOptions, TrainingOptions, TransformOptions
from thawline.thaw.stage_features import stage_features
from thawline.training.logistic_regression import find_basis

pytestmark = pytest.mark.xdist_group("digits")  # so that their features are computed once

SIZE = 64  # px, instead of 224: ten times as fast


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return the splits of scikit-learn's handwritten digits."""
    folder = tmp_path_factory.mktemp("digits")
    manifest = find_images("sklearn:digits", folder, folder)
    return split_dataset(manifest, DatasetOptions().fractions, seed=0)


@pytest.fixture(scope="module")
def by_stage(digits: pd.DataFrame) -> list[np.ndarray]:
    """Return what each stage of the pretrained network makes of them."""
    model = ModelOptions()
    network, _ = build_network(model, 10, SIZE, seed=0)
    transforms = build_transforms(TransformOptions(size=SIZE), pretrained_preprocessing(model))
    hashes = hash_files(digits["path"].tolist())
    images = [ImageView(*pair) for pair in zip(digits["path"], hashes, strict=True)]
    options = TrainingOptions(num_workers=0, precision="fp32")
    return [*stage_features(network, images, transforms, options).values()]


@pytest.fixture(scope="module")
def features(by_stage: list[np.ndarray]) -> torch.Tensor:
    """Return the principal components of all stages."""
    stacked = torch.from_numpy(np.hstack(by_stage))
    return find_basis(stacked, stacked.shape[1])[1]


def flip(splits: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, set[str]]:
    """Return the splits with so many labels wrong, and the paths of these."""
    rng, names = np.random.default_rng(seed), class_names(splits)
    wrong = rng.choice(len(splits), round(share * len(splits)), replace=False)
    flipped = splits.copy()
    turned = (splits["class_index"].iloc[wrong] + rng.integers(1, len(names), len(wrong))) % 10
    flipped.loc[wrong, "class_index"] = turned
    flipped["label"] = [names[idx] for idx in flipped["class_index"]]
    return flipped, set(splits["path"].iloc[wrong])


@pytest.mark.parametrize("seed", range(2))
def test_most_flipped_labels_are_found_and_few_others(
    digits: pd.DataFrame, features: torch.Tensor, seed: int
) -> None:
    flipped, wrong = flip(digits, 0.05, seed)
    table = find_label_errors(flipped, features, seed)
    found = set(table["path"])
    assert len(found & wrong) >= 0.7 * len(wrong)
    assert len(found - wrong) <= 0.02 * (len(digits) - len(wrong))
    assert table["probability"].is_monotonic_increasing and table["probability"].between(0, 1).all()
    assert (table["suggested"] != table["label"]).all()
    right = table[table["path"].isin(wrong)].merge(digits, on="path")
    assert (right["suggested"] == right["label_y"]).mean() > 0.9


def test_few_of_the_digits_as_they_are_are_suspected(
    digits: pd.DataFrame, features: torch.Tensor, by_stage: list[np.ndarray]
) -> None:
    assert len(find_label_errors(digits, features, 0)) < 0.02 * len(digits)
    assert len(find_outliers(digits, by_stage[-1])) < 0.02 * len(digits)


def test_no_image_is_predicted_from_its_own_group() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(60) // 2  # two of each, the same, and nothing else tells the classes apart
    labels = rng.permutation(30)[groups] % 2
    features = 5 * torch.eye(30)[torch.from_numpy(groups)]
    apart = out_of_sample_probabilities(features, labels, None, seed=0)
    together = out_of_sample_probabilities(features, labels, pd.Series(groups), seed=0)
    assert together.sum(axis=1) == pytest.approx(np.ones(60))
    accuracy = [(table.argmax(axis=1) == labels).mean() for table in (apart, together)]
    assert accuracy[0] > 0.75 and accuracy[1] <= 0.6


def test_where_every_class_is_one_group_no_label_is_contradicted() -> None:
    labels = np.arange(60) % 2
    found = out_of_sample_probabilities(torch.randn(60, 3), labels, pd.Series(labels), seed=0)
    assert (found == np.eye(2)[labels]).all()


def test_fewer_groups_than_folds_are_predicted_from_each_other() -> None:
    groups, labels = np.arange(60) // 20, np.arange(60) % 2
    features = 50 * torch.from_numpy(np.stack([labels, groups], axis=1)).float()
    found = out_of_sample_probabilities(features, labels, pd.Series(groups), seed=0)
    assert (found.argmax(axis=1) == labels).all()


def test_an_image_of_another_kind_is_an_outlier(
    digits: pd.DataFrame, by_stage: list[np.ndarray]
) -> None:
    odd = by_stage[-1].copy()
    odd[7] = np.roll(odd[7], 100)
    table = find_outliers(digits, odd)
    assert table["path"].iloc[0] == digits["path"].iloc[7]
    assert table["distance"].is_monotonic_decreasing
