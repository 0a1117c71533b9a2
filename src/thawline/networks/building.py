"""Build a network: backbone, pretrained weights and a new head."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from thawline.data.transforms import Preprocessing
from thawline.errors import ParameterError, ThawlineError, first_line
from thawline.networks import custom_backbones, timm_backbones, torchvision_backbones
from thawline.networks.checkpoints import is_weights_file, read_checkpoint
from thawline.networks.heads import (
    PretrainedHead,
    head_name,
    head_position,
    replace_head,
    reuse_head,
)
from thawline.networks.weights import LoadReport, load_backbone
from thawline.options import ModelOptions

logger = logging.getLogger(__name__)

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
    """Build a network with a new head, and report which weights it has.

    Args:
        options: backbone, weights and head.
        classes: number of outputs.
        size: px, side of the network's input.
        seed: for all random weights.
        class_names: of the outputs in order, if known. The new head reuses their weights.

    Raises:
        ParameterError: if the backbone or its weights do not exist, or it classifies no images.
        CheckpointError: if a weights file does not fit or cannot be downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build_backbone(options, classes)
        report, pretrained = _load_weights(network, options)
        if options.head != "builtin":
            replace_head(network, options, classes)
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
    except ParameterError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        logger.debug("%s cannot be built on the meta device (%s)", options.backbone, error)
        return None
    return network


def pretrained_preprocessing(options: ModelOptions) -> Preprocessing:
    """Return the preprocessing of the pretrained weights; for a file, of the default ones."""
    if ":" in options.backbone:
        return IMAGENET
    if options.backbone.startswith("timm/"):
        return timm_backbones.preprocessing(options)
    return torchvision_backbones.preprocessing(options)


def _build_backbone(options: ModelOptions, classes: int) -> nn.Module:
    """Return the backbone with its original head, and a library's weights if they are named."""
    if is_weights_file(options.weights):
        options = options.model_copy(update={"weights": "none"})
    try:
        if ":" in options.backbone:
            return custom_backbones.build(options, classes)
        if options.backbone.startswith("timm/"):
            return timm_backbones.build(options)
        return torchvision_backbones.build(options)
    except ThawlineError:
        raise
    except Exception as error:  # a constructor may raise anything for the user's arguments
        raise ParameterError(
            f"model.backbone_kwargs: {options.backbone} cannot be built with"
            f" {options.backbone_kwargs!r} ({type(error).__name__}: {first_line(error)})."
        ) from error


def _load_weights(network: nn.Module, options: ModelOptions) -> tuple[LoadReport, PretrainedHead]:
    """Load a weights file, and return the report and the head of the pretrained weights."""
    head = head_name(network)
    if is_weights_file(options.weights):
        checkpoint = read_checkpoint(Path(options.weights).expanduser(), options.trust_pickle)
        position = head if options.head == "builtin" else head_position(network)
        return load_backbone(network, position, checkpoint, options.min_loaded)
    if options.weights == "none" or ":" in options.backbone:
        return LoadReport(options.weights), PretrainedHead({})
    from_timm = options.backbone.startswith("timm/")
    names = () if from_timm else torchvision_backbones.class_names(options)
    pretrained = PretrainedHead(network.get_submodule(head).state_dict(), names)
    replaced = tuple(f"{head}.{name}" for name in pretrained.tensors)
    return LoadReport(options.weights, replaced=replaced), pretrained


@torch.no_grad()
def _check_outputs(network: nn.Module, options: ModelOptions, classes: int, size: int) -> None:
    """Refuse a network whose outputs are not (N, classes), or not what the loss expects."""
    backbone = options.backbone
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        outputs = network.eval()(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ParameterError(
            f"model.backbone: {backbone} cannot process images of {size} px (transforms.size):"
            f" {first_line(error)}"
        ) from error
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
