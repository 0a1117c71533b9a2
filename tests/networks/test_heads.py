"""A new head keeps what the pretrained one knows about its classes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.networks import ChannelwiseResNet
from helpers.weights_files import State, save_animals
from thawline.errors import ParameterError
from thawline.networks.building import IMAGENET, build_network
from thawline.networks.classifier import Classifier, save_classifier
from thawline.networks.heads import PretrainedHead, copy_rows, head_name
from thawline.options import ModelOptions


@pytest.mark.parametrize(
    "head", [{}, {"head_dropout": 0.2}, {"log_probabilities": True}, {"head_dropout": 0.0}]
)
def test_rows_of_classes_that_both_heads_have_are_kept(tmp_path: Path, head: dict) -> None:
    animals = str(save_animals(tmp_path))
    options = ModelOptions(backbone="helpers.networks:SmallNet", weights=animals, **head)
    names = ("wasp", "gnu", "bee")
    network, report = build_network(options, 3, 64, seed=0, class_names=names)
    linear = next(m for m in network.linear.modules() if isinstance(m, nn.Linear))
    assert linear.weight[1:, 0].tolist() == [6, 1] and linear.bias[1:].tolist() == [6, 1]
    assert report.kept_rows == ("gnu", "bee")
    assert report.replaced == ("linear.weight", "linear.bias")
    assert "head weights kept for 2 (gnu, bee)" in str(report)
    anew = options.model_copy(update={"reuse_head": False})
    fresh, _ = build_network(anew, 3, 64, seed=0, class_names=names)
    new = next(m for m in fresh.linear.modules() if isinstance(m, nn.Linear))
    assert torch.equal(new.weight[0], linear.weight[0])
    assert not torch.equal(new.weight[1], linear.weight[1])


def test_as_many_but_other_classes_keep_nothing(tmp_path: Path) -> None:
    animals = str(save_animals(tmp_path))
    options = ModelOptions(backbone="helpers.networks:SmallNet", weights=animals)
    _, report = build_network(options, 10, 64, seed=0, class_names=tuple("0123456789"))
    assert report.kept_rows == () and report.replaced == ("linear.weight", "linear.bias")


def test_a_classifier_of_ours_goes_on_with_its_classes(tmp_path: Path) -> None:
    model = ModelOptions(backbone="helpers.networks:SmallNet", weights="none", head_dropout=0.3)
    network, _ = build_network(model, 2, 64, seed=3)
    ours = Classifier(network, ("flower", "temple"), IMAGENET, model)
    save_classifier(ours, tmp_path / "ours")
    again = model.model_copy(update={"weights": str(tmp_path / "ours" / "model.safetensors")})
    more, report = build_network(again, 3, 64, 0, class_names=("bridge", "flower", "temple"))
    assert report.kept_rows == ("flower", "temple") and not report.problems()
    assert torch.equal(more.linear[1].weight[1:], network.linear[1].weight)


def test_a_name_that_occurs_twice_keeps_no_row() -> None:
    tensors, head = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, nn.Linear(2, 2)
    old = PretrainedHead(tensors, ("crane", "crane", "drake"))
    assert copy_rows(head, old, ("crane", "drake")) == ("drake",)
    assert head.weight[1].tolist() == [1, 1] and head.weight[0].tolist() != [1, 1]


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.ones(2, 3)},
        {"0.weight": torch.ones(5, 2), "1.weight": torch.ones(2, 5)},
        {"weight": torch.ones(2, 2), "bias": torch.ones(3)},
        {"scale": torch.ones(2)},
    ],
)
def test_a_head_of_another_kind_or_width_keeps_nothing(tensors: State) -> None:
    assert copy_rows(nn.Linear(2, 2), PretrainedHead(tensors, ("a", "b")), ("a", "b")) == ()


def test_a_head_without_bias_keeps_its_answers() -> None:
    head = nn.Linear(2, 2)
    assert copy_rows(head, PretrainedHead({"weight": torch.ones(2, 2)}), ()) == "all"
    assert head.bias.tolist() == [0, 0]


def test_a_head_of_ones_own_is_loaded_where_it_fits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = ChannelwiseResNet(4)
    torch.save(trained.state_dict(), tmp_path / "own.pth")
    own = {"backbone": "helpers.networks:ChannelwiseResNet", "head": "builtin"}
    options = ModelOptions(weights=str(tmp_path / "own.pth"), **own)
    network, report = build_network(options, 4, 64, seed=0)
    assert report.kept_rows == "all" and not report.problems()
    assert torch.equal(network.linear.weight, trained.linear.weight)
    _, report = build_network(options, 3, 64, seed=0)
    assert report.kept_rows == () and report.replaced == ("linear.scale", "linear.weight")


def test_a_1x1_convolution_of_the_network_itself_is_replaced() -> None:
    network, _ = build_network(ModelOptions(backbone="timm/dla46_c", weights="none"), 3, 64, seed=0)
    assert head_name(network) == "fc" and network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_a_network_with_a_second_classifier_for_distillation_is_refused() -> None:
    options = ModelOptions(backbone="timm/deit_tiny_distilled_patch16_224", weights="none")
    with pytest.raises(ParameterError, match="2 classifiers, one for distillation"):
        build_network(options, 3, 224, seed=0)
