"""A head on all stages belongs to an ordinary network, which copies, trains, saves and exports."""

import copy
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from helpers.training import network_of, options, transforms
from thawline.datasets import OnnxDataset
from thawline.evaluation.explanations import explain
from thawline.networks.all_stages import find_all_stages, pool
from thawline.networks.building import build_network
from thawline.networks.classifier import Classifier, load_classifier, save_classifier
from thawline.networks.stages import HEAD, find_stages
from thawline.options import ModelOptions, Phase
from thawline.serving.onnx import export_onnx
from thawline.thaw.freezing import freeze_layers
from thawline.thaw.line import split_at_thaw_line

SIZE = 64
NAMES = [
    "timm/tf_efficientnet_lite0", "resnet18", "densenet121", "squeezenet1_1",
    "helpers.networks:SmallNet", "helpers.networks:ResidualNet", "helpers.networks:CifarResNet20",
]  # fmt: skip
VIT = "timm/vit_tiny_patch16_224"


def build(name: str, head: str = "all_stages") -> tuple[nn.Module, int]:
    size = 224 if name == VIT else SIZE
    model = ModelOptions(backbone=name, weights="none", head=head)
    return build_network(model, 2, size, seed=0)[0].eval(), size


def images(size: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*NAMES, VIT])
def test_the_head_reads_what_every_stage_is_pooled_to(name: str) -> None:
    network, size = build(name)
    plain, _ = build(name, "linear")
    assert [*find_stages(network)] == [*find_stages(plain)]
    features = find_all_stages(network)
    assert features
    seen: dict[str, Tensor] = {}
    received: list[Tensor] = []
    last = [*features.stage_of.values()][-1]
    for module, stage in features.stage_of.items():
        network.get_submodule(module).register_forward_hook(
            lambda _, __, output, stage=stage: seen.update({stage: pool(output, stage != last)})
        )
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    linear.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    with torch.no_grad():
        network(images(size))
    assert [*features.widths] == [*seen, HEAD]
    expected = torch.cat([*seen.values()], dim=1)
    torch.testing.assert_close(received[0][:, : -features.widths[HEAD]], expected)


@pytest.mark.parametrize("sides", [(1, 1), (2, 5), (7, 7), (12, 9)])
def test_maps_are_pooled_to_means_over_a_grid_and_a_maximum(sides: tuple[int, int]) -> None:
    maps = torch.randn(2, 5, *sides)
    means = nn.functional.adaptive_avg_pool2d(maps, 3).flatten(2).mT.flatten(1)
    expected = torch.cat([means, maps.amax((2, 3))], 1)
    torch.testing.assert_close(pool(maps), expected)
    if sides[0] == sides[1]:
        torch.testing.assert_close(pool(maps.permute(0, 2, 3, 1)), expected)
    torch.testing.assert_close(pool(maps, with_means=False), maps.amax((2, 3)))


def test_tokens_are_pooled_to_their_mean_and_maximum() -> None:
    tokens = torch.randn(2, 7, 5, requires_grad=True)
    torch.testing.assert_close(pool(tokens), torch.cat([tokens.mean(1), tokens.amax(1)], 1))
    torch.testing.assert_close(pool(tokens, with_means=False), tokens.amax(1))


@pytest.mark.parametrize("name", [*NAMES, VIT])
def test_the_thaw_line_leaves_only_the_head_above(name: str) -> None:
    network, size = build(name)
    freeze_layers(network, Phase(trainable={"last": 1}, optimizer="lbfgs"))
    line = split_at_thaw_line(network, size)
    assert line.below is not None
    with torch.no_grad():
        network.eval()
        expected = network(images(size))
        found = line.above_eval(*line.below(images(size)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    if "Residual" not in name:  # which asks for its mode in the middle
        above = {name for name, _ in line.above_eval.named_parameters()}
        assert above == {name for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", NAMES)
def test_a_partly_trained_network_goes_back_twice(name: str) -> None:
    network, size = build(name)
    freeze_layers(network, Phase(trainable={"last": 2}, epochs=1, lr=1))
    for _ in range(2):
        network(images(size)).square().sum().backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_a_copy_does_not_touch_the_original() -> None:
    network = network_of(head="all_stages").eval()
    expected = network(images(32))
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert not torch.equal(other(images(32)), expected)
    assert torch.equal(network(images(32)), expected)
    features = find_all_stages(network)
    assert features and features._outputs == {}


@pytest.fixture
def classifier(tmp_path: Path) -> Classifier:
    model = ModelOptions(backbone="resnet18", weights="none", head="all_stages")
    network, _ = build_network(model, 2, 32, seed=0)
    return Classifier(network.eval(), ("flower", "temple"), transforms().preprocessing, model)


def test_a_saved_classifier_answers_the_same(classifier: Classifier, tmp_path: Path) -> None:
    save_classifier(classifier, tmp_path / "classifier")
    loaded = load_classifier(tmp_path / "classifier")
    with torch.no_grad():
        assert torch.equal(loaded.network(images(32)), classifier.network(images(32)))


def test_fine_tuning_goes_on_from_its_head(classifier: Classifier, tmp_path: Path) -> None:
    save_classifier(classifier, tmp_path / "classifier")
    weights = str(tmp_path / "classifier" / "model.safetensors")
    model = classifier.model.model_copy(update={"weights": weights})
    network, _ = build_network(model, 2, 32, 1, ("flower", "temple"))
    with torch.no_grad():
        assert torch.equal(network.eval()(images(32)), classifier.network(images(32)))


def test_grad_cam_explains_it(classifier: Classifier, splits: pd.DataFrame) -> None:
    explained = explain(classifier, splits[splits["split"] == "test"], "grad_cam", options())
    assert (explained.maps > 0).any()


@pytest.mark.slow
def test_the_exported_network_answers_the_same(classifier: Classifier, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    dataset = OnnxDataset(str(tmp_path / "onnx"))
    dataset.save(export_onnx(classifier))
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    for count in (1, 3):
        (found,) = session.run(["logits"], {"images": images(32, count).numpy()})
        with torch.no_grad():
            expected = classifier.network(images(32, count))
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)
