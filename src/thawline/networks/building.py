"""Build a network: backbone, pretrained weights and a new head."""

import inspect
import logging
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thawline.data.transforms import Preprocessing
from thawline.errors import ParameterError, ThawlineError, first_line
from thawline.networks import libraries
from thawline.networks.all_stages import AllStages
from thawline.networks.checkpoints import read_checkpoint
from thawline.networks.files import is_weights_file
from thawline.networks.heads import (
    PretrainedHead,
    head_name,
    head_position,
    make_head,
    replace_head,
    reuse_head,
)
from thawline.networks.weights import LoadReport, load_backbone
from thawline.options import ModelOptions

logger = logging.getLogger(__name__)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Preprocessing(size=224, resize=256, interpolation="bilinear", mean=MEAN, std=STD)


def build_network(
    options: ModelOptions, classes: int, size: int, seed: int, class_names: Sequence[str] = ()
) -> tuple[nn.Module, LoadReport]:
    """Build a network for images of `size` px with a new head, and report which weights it has.

    The new head reuses the pretrained weights of `class_names`, the outputs in order, if known.

    Raises:
        ParameterError: if the backbone or its weights do not exist, or it classifies no images.
        CheckpointError: if a weights file does not fit or cannot be downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build_backbone(options, classes)
        report, pretrained = _load_weights(network, options)
        if options.head != "builtin":
            name = replace_head(network, options, classes)
            if options.head == "all_stages":
                _read_all_stages(network, name, options, classes, size)
    if options.reuse_head and pretrained.tensors:
        kept = reuse_head(network, options, pretrained, class_names)
        report = replace(report, kept_rows=kept, replaced=() if kept == "all" else report.replaced)
    _check_outputs(network, options, classes, size)
    return network, report


def build_on_meta_device(options: ModelOptions) -> nn.Module | None:
    """Build a library's network without values, or return None if its constructor needs them.

    Raises:
        ParameterError: if the backbone does not exist or cannot have this head.
    """
    if ":" in options.backbone:
        return None
    options = options.model_copy(update={"weights": "none"})
    try:
        with torch.device("meta"):
            network = _build_backbone(options, classes=2)
            replace_head(network, options, classes=2)
            return network
    except ParameterError as error:
        if isinstance(error.__cause__, RuntimeError):
            return None
        raise


def _read_all_stages(
    network: nn.Module, name: str, options: ModelOptions, classes: int, size: int
) -> None:
    """Replace the classifier by one that reads the pooled outputs of all stages."""
    features = AllStages(network)
    network.set_submodule(name, features)
    with torch.no_grad(), _refusing_size(options.backbone, size):
        width = network.eval()(torch.zeros(1, 3, size, size)).shape[1]
    network.set_submodule(name, nn.Sequential(features, make_head(width, options, classes)))


def pretrained_preprocessing(options: ModelOptions) -> Preprocessing:
    """Return the preprocessing of the pretrained weights; for a file, of the default ones."""
    if ":" in options.backbone:
        return IMAGENET
    return libraries.find_weights(options).preprocessing


def _build_backbone(options: ModelOptions, classes: int) -> nn.Module:
    """Return the backbone with its original head, and a library's weights if they are named."""
    try:
        return _build_own(options, classes) if ":" in options.backbone else libraries.build(options)
    except ThawlineError:
        raise
    except Exception as error:  # a constructor may raise anything for the user's arguments
        raise ParameterError(
            f"model.backbone_kwargs: {options.backbone} cannot be built with"
            f" {options.backbone_kwargs!r} ({type(error).__name__}: {first_line(error)})."
        ) from error


def _build_own(options: ModelOptions, classes: int) -> nn.Module:
    """Return the network that ``package.module:Factory`` makes; a builtin head gets `classes`."""
    libraries.check_weights_name(options)
    if options.weights == "default":
        logger.warning(
            "model.weights: default means random weights for your own network %s. Give a file, or"
            " set none to silence this warning.",
            options.backbone,
        )
    factory = _import_factory(options.backbone)
    kwargs = dict(options.backbone_kwargs)
    if options.head == "builtin":
        signature = inspect.signature(factory)
        if "num_classes" not in signature.parameters:
            raise ParameterError(
                f"model.head: builtin needs a parameter num_classes of {options.backbone}, which"
                f" takes {signature}. Add it, or set model.head=linear or mlp."
            )
        if "num_classes" in kwargs:
            raise ParameterError(
                f"model.backbone_kwargs.num_classes: {kwargs['num_classes']!r} is given, but with"
                " model.head=builtin it comes from the data. Delete it."
            )
        kwargs["num_classes"] = classes
    network = factory(**kwargs)
    if not isinstance(network, nn.Module):
        raise ParameterError(
            f"model.backbone: {options.backbone} returned a {type(network).__name__}, expected an"
            " nn.Module."
        )
    return network


def _import_factory(backbone: str) -> Any:
    """Import ``package.module:Factory`` from installed packages or the current folder."""
    if "" not in sys.path:  # last, so that no file in the project hides an installed module
        sys.path.append("")
    try:
        return pkgutil.resolve_name(backbone)
    except (ImportError, AttributeError, ValueError) as error:
        raise ParameterError(
            f"model.backbone: '{backbone}' cannot be imported ({error}). Give"
            " package.module:Factory, importable from the folder that you run the command in."
        ) from error


def _load_weights(network: nn.Module, options: ModelOptions) -> tuple[LoadReport, PretrainedHead]:
    """Load a weights file, and return the report and the head of the pretrained weights."""
    position = head_name(network) if options.head == "builtin" else head_position(network)
    if is_weights_file(options.weights):
        checkpoint = read_checkpoint(Path(options.weights).expanduser(), options.trust_pickle)
        return load_backbone(network, position, checkpoint, options.min_loaded)
    if options.weights == "none" or ":" in options.backbone:
        return LoadReport(options.weights), PretrainedHead({})
    names = libraries.find_weights(options).class_names
    pretrained = PretrainedHead(network.get_submodule(position).state_dict(), names)
    replaced = tuple(f"{position}.{name}" for name in pretrained.tensors)
    return LoadReport(options.weights, replaced=replaced), pretrained


@contextmanager
def _refusing_size(backbone: str, size: int) -> Iterator[None]:
    """Say that a network cannot process images of this size, such as a transformer."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ParameterError(
            f"model.backbone: {backbone} cannot process images of {size} px (transforms.size):"
            f" {first_line(error)}"
        ) from error


@torch.no_grad()
def _check_outputs(network: nn.Module, options: ModelOptions, classes: int, size: int) -> None:
    """Refuse a network whose outputs are not (N, classes), or not what the loss expects."""
    backbone = options.backbone
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with _refusing_size(backbone, size):
        outputs = network.eval()(images)
    network.train()
    shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if shape != (2, classes):
        raise ParameterError(
            f"model.backbone: {backbone} returned {shape} for 2 images and {classes} classes,"
            f" expected {(2, classes)}."
        )
    ones = torch.ones(2)
    if bool((outputs >= 0).all()) and torch.allclose(outputs.sum(1), ones, atol=1e-4):
        raise ParameterError(
            f"model.backbone: {backbone} ends in a softmax, but cross-entropy expects logits."
            " Remove the softmax layer."
        )
    if options.log_probabilities and not torch.allclose(outputs.exp().sum(1), ones, atol=1e-4):
        raise ParameterError(
            f"model.log_probabilities: true, but {backbone} does not return log-probabilities. End"
            " its head with nn.LogSoftmax(dim=1), or set this parameter to false."
        )
