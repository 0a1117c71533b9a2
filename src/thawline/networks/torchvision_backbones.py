"""Classifiers of torchvision: build one, find its weights and their preprocessing."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from thawline.data.transforms import Preprocessing
from thawline.errors import CheckpointError, ParameterError, did_you_mean
from thawline.networks.checkpoints import WEIGHT_FILES, is_weights_file
from thawline.networks.timm_backbones import WORKS_OFFLINE, find_in_hub_cache
from thawline.options import ModelOptions


def build(options: ModelOptions) -> nn.Module:
    """Return a network with its original head and the weights that `options` names."""
    weights = _find_member(options)
    try:
        network = models.get_model(options.backbone, weights=weights, **options.backbone_kwargs)
    except OSError as error:
        if weights is None:
            raise
        file = weights.url.rsplit("/", 1)[-1]
        raise CheckpointError(
            f"model.weights: {file} could not be downloaded from {weights.url} ({error}). Put that"
            f" file into {Path(torch.hub.get_dir(), 'checkpoints')}, or set"
            f" model.weights=/path/to/{file}. {WORKS_OFFLINE}"
        ) from error
    return _remove_auxiliary_heads(network)


def preprocessing(options: ModelOptions) -> Preprocessing:
    """Return the preprocessing of the named weights, else of the default ones."""
    weights = _find_member(options) or models.get_model_weights(options.backbone).DEFAULT
    preset = weights.transforms()
    return Preprocessing(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def class_names(options: ModelOptions) -> tuple[str, ...]:
    """Return the classes of the named weights, in the order of the outputs."""
    return tuple(_find_member(options).meta.get("categories", ()))


def find_weights(options: ModelOptions) -> tuple[Path | None, str]:
    """Return the local file of the named weights, None before their download, and their URL."""
    return find_in_hub_cache(_find_member(options).url)


def _find_member(options: ModelOptions) -> Any:
    """Return a member of the backbone's weights enum, or None for no weights or a file."""
    known = models.list_models(module=models)
    if options.backbone not in known:
        raise ParameterError(
            f"model.backbone: torchvision has no classifier '{options.backbone}'"
            f"{did_you_mean(options.backbone, known)} (possible: {', '.join(known)}; timm/NAME for"
            " timm's networks; package.module:Factory for your own)."
        )
    if options.weights == "none" or is_weights_file(options.weights):
        return None
    enum = models.get_model_weights(options.backbone)
    if options.weights == "default":
        return enum.DEFAULT
    if options.weights not in enum.__members__:
        raise ParameterError(
            f"model.weights: '{options.weights}' is not known for {options.backbone} (possible:"
            f" default, none, {', '.join(enum.__members__)}, or a file ending in"
            f" {', '.join(WEIGHT_FILES)})."
        )
    return enum[options.weights]


def _remove_auxiliary_heads(network: Any) -> nn.Module:
    """Remove the second classifier of Inception and GoogLeNet, which only trains on ImageNet."""
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for name in {"AuxLogits", "aux1", "aux2"} & dict(network.named_children()).keys():
            setattr(network, name, None)
    return network
