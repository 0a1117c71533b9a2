"""Pooled outputs of stages are computed in one pass, which the cache keeps."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.training import network_of, options, parameters, same, transforms
from thawline.data.decoding import hash_files
from thawline.data.loading import ImageView
from thawline.data.transforms import evaluation_view, normalize
from thawline.networks.building import build_network
from thawline.networks.classifier import Classifier
from thawline.networks.heads import head_name
from thawline.networks.stages import find_stages
from thawline.options import ModelOptions, Phase
from thawline.thaw.cache import ActivationCache
from thawline.thaw.stage_features import all_features, pool, read_head, stage_features
from thawline.training import loop
from thawline.training.setup import prepare

SIZE = 64
SLOW_VIT = pytest.param("timm/vit_tiny_patch16_224", marks=pytest.mark.slow)


@pytest.fixture
def images(splits: pd.DataFrame) -> list[ImageView]:
    paths = splits.loc[splits["split"] == "train", "path"].tolist()
    return [ImageView(*pair) for pair in zip(paths, hash_files(paths), strict=True)]


@pytest.mark.parametrize(
    "backbone",
    ["timm/tf_efficientnet_lite0", "helpers.networks:SmallNet", "helpers.networks:BranchedNet"],
)
def test_every_stage_is_pooled_in_one_pass_that_the_cache_keeps(
    images: list[ImageView], tmp_path: Path, backbone: str
) -> None:
    network, _ = build_network(ModelOptions(backbone=backbone), 2, SIZE, seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cache = ActivationCache(tmp_path, 1)
    features = stage_features(network, images, transforms(SIZE), options(), cache)
    assert list(features) == list(find_stages(network))[:-1]
    assert {len(columns) for columns in features.values()} == {len(images)}
    assert same(before, network.state_dict())
    assert cache.contents()["entries"].sum() == len(images)
    again = stage_features(network, images, transforms(SIZE), options(), cache)
    assert all((again[stage] == features[stage]).all() for stage in features)


@pytest.mark.parametrize("backbone", ["timm/tf_efficientnet_lite0", SLOW_VIT])
def test_a_head_on_all_stages_has_left_the_same_features_in_the_store(
    splits: pd.DataFrame, images: list[ImageView], tmp_path: Path, backbone: str
) -> None:
    size, cache = 96 if "lite" in backbone else 224, ActivationCache(tmp_path, 1)
    model = ModelOptions(backbone=backbone, weights="none", head="all_stages")
    network, _ = build_network(model, 2, size, seed=0)
    context = prepare(parameters(), network, splits, transforms(size), cache)
    loop.train(context, [Phase(trainable={"last": 1}, optimizer="lbfgs")])
    entries = cache.contents()["entries"].sum()
    found = stage_features(network, images, transforms(size), options(), cache)
    assert cache.contents()["entries"].sum() == entries > 0
    plain, _ = build_network(model.model_copy(update={"head": "linear"}), 2, size, seed=0)
    own, head = plain.state_dict(), head_name(plain)
    own |= {n: t for n, t in network.state_dict().items() if not n.startswith(head)}
    plain.load_state_dict(own)
    expected = stage_features(plain, images, transforms(size), options())
    assert list(found) == list(expected)
    for stage in [*found][:-1]:
        np.testing.assert_allclose(found[stage], expected[stage], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 4, 4, 3), (2, 5, 3), (2, 3)])
def test_outputs_of_every_layout_are_pooled_to_one_vector(shape: tuple[int, ...]) -> None:
    output = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    pooled = pool(output)
    assert pooled.shape == (2, 3)
    torch.testing.assert_close(pooled.mean(1), output.flatten(1).mean(1))


def test_the_last_stage_s_features_are_what_the_head_sees(images: list[ImageView]) -> None:
    network, preprocessing = network_of("resnet18"), transforms(SIZE).preprocessing
    features = stage_features(network, images, transforms(SIZE), options())
    views = torch.stack([evaluation_view(image.path, preprocessing) for image in images])
    seen = []
    network.fc.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        network.eval()(normalize(views, preprocessing))
    torch.testing.assert_close(torch.from_numpy(features["layer4"]), seen[0], rtol=1e-3, atol=1e-4)


def test_all_features_are_the_pooled_outputs_of_the_stages_beside_each_other(
    images: list[ImageView],
) -> None:
    network, how = network_of(), (images, transforms(), options())
    found = stage_features(network, *how)
    features, last = map(torch.cat, zip(*all_features(network, *how), strict=True))
    assert features.tolist() == np.hstack([*found.values()]).tolist()
    assert last.tolist() == [*found.values()][-1].tolist()


def test_of_files_a_head_says_what_it_receives_and_returns(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    network, preprocessing = network_of().eval(), transforms().preprocessing
    classifier = Classifier(network, ("flower", "temple"), preprocessing, ModelOptions())
    paths, cache = splits["path"].tolist(), ActivationCache(tmp_path, 1)
    features, logits = read_head(classifier, paths, parameters(), cache)
    views = torch.stack([evaluation_view(path, preprocessing) for path in paths])
    with torch.no_grad():
        torch.testing.assert_close(network.linear(features), logits, rtol=1e-2, atol=1e-2)
        expected = network(normalize(views, preprocessing))
    torch.testing.assert_close(logits, expected, rtol=1e-2, atol=1e-2)
    assert cache.contents()["entries"].sum() == len(paths)
