"""Find the classifier of a network, replace it, and reuse the weights of the old one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from thawline.errors import ParameterError
from thawline.options import ModelOptions

MLP_DROPOUT = 0.4

KeptRows = tuple[str, ...] | Literal["all"]


@dataclass(frozen=True)
class PretrainedHead:
    """The classifier that pretrained weights came with."""

    tensors: dict[str, Tensor]  # by their names inside the head
    class_names: tuple[str, ...] = ()  # of its outputs in order; empty if unknown


def head_name(network: nn.Module) -> str:
    """Return the dotted name of the classifier.

    It is the attribute `head_name` of the network or its class, or else what timm's
    `get_classifier` returns, or else the last linear layer or 1×1 convolution.

    Raises:
        ParameterError: if there is none.
    """
    if (name := getattr(network, "head_name", None)) is not None:
        if str(name) not in dict(network.named_modules()):
            raise ParameterError(
                f"model.backbone: head_name of {type(network).__name__} is {name!r}, but it has no"
                " module of that name. Set head_name to the dotted name of its classifier."
            )
        return str(name)
    get_classifier: Any = getattr(network, "get_classifier", None)
    classifier = get_classifier() if get_classifier else None
    if isinstance(classifier, tuple):
        raise ParameterError(
            f"model.backbone: {type(network).__name__} has {len(classifier)} classifiers, one for"
            " distillation. Take a backbone with one, such as that without distilled in its name."
        )
    if isinstance(classifier, nn.Module):
        return next(name for name, module in network.named_modules() if module is classifier)
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    ]
    if not layers:
        raise ParameterError(
            f"model.backbone: {type(network).__name__} has no linear layer to replace by a new"
            " head. End it with an nn.Linear, or name its own classifier in an attribute"
            " head_name and set model.head=builtin."
        )
    return layers[-1]


def find_linear(network: nn.Module) -> nn.Linear:
    """Return the last linear layer of the head.

    Raises:
        ParameterError: if it has none.
    """
    head = network.get_submodule(head_name(network))
    layers = [m for m in head.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    if not layers:
        raise ParameterError(
            f"The head of {type(network).__name__} is a {type(head).__name__} without an nn.Linear"
            " with a bias, which optimizer: lbfgs fits and features are read of. Train it with"
            " adamw or sgd."
        )
    return layers[-1]


def head_position(network: nn.Module) -> str:
    """Return the dotted name of the module that a new head replaces."""
    name = head_name(network)
    # SqueezeNet classifies every pixel, then pools. A new head replaces both.
    is_conv = isinstance(network.get_submodule(name), nn.Conv2d)
    return (name.rpartition(".")[0] or name) if is_conv else name


def replace_head(network: nn.Module, options: ModelOptions, classes: int) -> str:
    """Replace the classifier, which must be a linear layer, by a new one for the same features.

    Returns:
        The dotted name of the new one.
    """
    name, position = head_name(network), head_position(network)
    classifier = network.get_submodule(name)
    if isinstance(classifier, nn.Conv2d):  # classify pooled features, without the last ReLU
        new = make_head(classifier.in_channels, options, classes)
        new = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), new)
        name = f"{position}.2"
    elif isinstance(classifier, nn.Linear):
        new = make_head(classifier.in_features, options, classes)
    else:
        raise ParameterError(
            f"model.backbone: the classifier '{name}' of {options.backbone} is a"
            f" {type(classifier).__name__}, and Thawline replaces linear layers only. Set"
            " model.head=builtin to keep the classifier that your network builds."
        )
    network.set_submodule(position, new)
    network.head_name = position  # type: ignore[assignment]  # read by the function of this name
    return name


def make_head(width: int, options: ModelOptions, classes: int) -> nn.Module:
    """Return a classifier for features (N, width)."""
    layers: list[nn.Module] = [nn.Dropout(options.head_dropout)] if options.head_dropout else []
    if options.head == "mlp":
        dropout = MLP_DROPOUT if options.head_dropout is None else options.head_dropout
        layers = [nn.Linear(width, options.head_hidden), nn.ReLU(), nn.Dropout(dropout)]
        width = options.head_hidden
    layers.append(nn.Linear(width, classes))
    if options.log_probabilities:
        layers.append(nn.LogSoftmax(dim=1))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def reuse_head(
    network: nn.Module, options: ModelOptions, pretrained: PretrainedHead, names: Sequence[str]
) -> KeptRows:
    """Copy what the pretrained head knows about the same classes, and return their names.

    A builtin head is copied whole or not at all.
    """
    if options.head == "linear":
        return copy_rows(find_linear(network), pretrained, names)
    head = network.get_submodule(head_name(network))
    own, offered = head.state_dict(), pretrained.tensors
    fits = own.keys() == offered.keys() and all(same_kind(offered[n], own[n]) for n in own)
    same_classes = pretrained.class_names in ((), tuple(names))
    if options.head == "mlp" or not fits or not same_classes:
        return ()
    head.load_state_dict(offered)
    return "all"


@torch.no_grad()
def copy_rows(head: nn.Linear, pretrained: PretrainedHead, class_names: Sequence[str]) -> KeptRows:
    """Copy the weights of the classes that both heads have, if both are linear and equally wide.

    If the pretrained head's classes are unknown, copy all of it if it has as many outputs.
    """
    linear, old_names = _as_linear(pretrained), pretrained.class_names
    if linear is None or linear[0].shape[1] != head.in_features:
        return ()
    weight, bias = linear
    if not old_names and weight.shape == head.weight.shape:
        head.load_state_dict({"weight": weight, "bias": bias})
        return "all"
    if len(old_names) != len(weight):
        return ()
    kept = tuple(name for name in class_names if old_names.count(name) == 1)
    for name in kept:
        new, old = class_names.index(name), old_names.index(name)
        head.weight[new], head.bias[new] = weight[old], bias[old]
    return kept


def same_kind(offered: Tensor, own: Tensor) -> bool:
    """Return whether two tensors have one shape and are both floating-point, or both not."""
    return offered.shape == own.shape and offered.is_floating_point() == own.is_floating_point()


def _as_linear(head: PretrainedHead) -> tuple[Tensor, Tensor] | None:
    """Return weight (classes, width) and bias of a linear layer or 1×1 convolution, else None."""
    weight, *others = sorted(head.tensors.values(), key=Tensor.dim, reverse=True)
    is_matrix = weight.ndim > 1 and weight.shape[2:].numel() == 1
    if not is_matrix or not weight.is_floating_point() or len(others) > 1:
        return None
    bias = others[0] if others else weight.new_zeros(1).expand(len(weight))
    return (weight.flatten(1), bias) if bias.shape == weight.shape[:1] else None
