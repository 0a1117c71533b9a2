"""Show which parts of an image support the class that a network predicts."""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from thawline.data.decoding import show_progress
from thawline.data.transforms import normalize
from thawline.errors import DataError, ParameterError
from thawline.evaluation.inference import NETWORK_LOCK, predict_batches
from thawline.networks.classifier import Classifier
from thawline.networks.stages import find_stages
from thawline.options import AttributionMethod, TrainingOptions
from thawline.thaw.device import make_accelerator

BATCH_SIZE = 8
INTEGRATION_STEPS = 32
STEPS_PER_BATCH = 8


class Explanations(NamedTuple):
    """Images, their predictions, and where the evidence for these lies."""

    table: pd.DataFrame  # path, label (empty if unknown), prediction, probability (0 to 1)
    views: Tensor  # (N, 3, size, size) uint8, as the network sees them
    maps: Tensor  # (N, size, size) float32, see `attribute`


def explain(
    classifier: Classifier,
    images: pd.DataFrame,
    method: AttributionMethod,
    training: TrainingOptions,
) -> Explanations:
    """Predict images (path, label) in fp32 and attribute each prediction to its pixels.

    Raises:
        DataError: if an image cannot be read.
        ParameterError: see `attribute`.
    """
    device = make_accelerator(training).device
    paths = images["path"].tolist()
    batches = [*predict_batches(classifier, paths, BATCH_SIZE, device)]
    for path, problem in zip(paths, (p for b in batches for p in b.problems), strict=True):
        if problem:
            raise DataError(f"explain.images: '{path}' cannot be read: {problem}.")
    views = torch.cat([batch.views for batch in batches])
    top, idx = torch.cat([batch.probabilities for batch in batches]).max(dim=1)
    table = images[["path", "label"]].reset_index(drop=True)
    table["prediction"] = [classifier.class_names[i] for i in idx]
    table["probability"] = top.tolist()
    inputs = normalize(views.to(device), classifier.preprocessing)
    maps = attribute(classifier.network, inputs, idx.tolist(), method)
    return Explanations(table, views, maps.cpu())


def attribute(
    network: nn.Module, images: Tensor, targets: Sequence[int], method: AttributionMethod
) -> Tensor:
    """Return a map of the evidence for one class per image, without modifying the network.

    Args:
        network: from images to logits (N, C).
        images: (N, 3, size, size) float32, normalized, on the network's device.
        targets: class index per image.
        method: `grad_cam` (Selvaraju et al. 2017, arXiv:1610.02391): the maps of the last spatial
            stage, weighted by their gradients. `guided_grad_cam`: the same times the absolute
            gradient of guided backpropagation, in a network without ReLU the plain gradient.
            `integrated_gradients` (Sundararajan et al. 2017, arXiv:1703.01365) from the mean color
            to the image. The latter two are summed over the colors.

    Returns:
        (N, size, size) float32, from 0; evidence against the class counts as 0.

    Raises:
        ParameterError: if a method needs a spatial stage and the network has none.
    """
    from captum.attr import IntegratedGradients

    twin = _copy_without_inplace(network)
    is_integrated = method == "integrated_gradients"

    def keep_positive(_: nn.Module, gradients: Any, __: object) -> tuple[Tensor]:
        return (gradients[0].relu(),)

    integrated, guided = IntegratedGradients(twin), copy.deepcopy(twin)
    for module in guided.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.register_full_backward_hook(keep_positive)
    stage = "" if is_integrated else find_spatial_stage(twin, images[:1])
    maps = []
    inputs = [image.detach().clone().requires_grad_() for image in images.split(1)]
    pairs = [*zip(inputs, targets, strict=True)]
    for image, target in show_progress(pairs, "Explaining"):
        if is_integrated:
            evidence = integrated.attribute(
                image, target=target, n_steps=INTEGRATION_STEPS, internal_batch_size=STEPS_PER_BATCH
            )
        else:
            evidence = _grad_cam(twin, stage, image, target)
        if method == "guided_grad_cam":
            (gradient,) = torch.autograd.grad(guided(image)[0, target], image)
            evidence = gradient.abs() * evidence
        maps.append(evidence.detach())
    return torch.cat(maps).sum(dim=1).clamp_min(0)


def find_spatial_stage(network: nn.Module, image: Tensor) -> str:
    """Return the last module of a stage whose output has several positions that the logits use.

    Its output is a map (N, C, H, W) or (N, H, W, C), or tokens (N, L, C). In a transformer that
    reads the class token only, the other tokens of the last block are unused, so it is the block
    before.

    Raises:
        ParameterError: if there is none.
    """
    modules = [name for stage in find_stages(network).values() for name in stage.modules]
    image = image.detach().clone().requires_grad_()
    logits, outputs = _record_outputs(network, modules, image)
    for name, output in reversed(outputs.items()):
        has_maps = isinstance(output, Tensor) and output.ndim in (3, 4)
        if has_maps and _as_maps(output, network).shape[2:].numel() > 1:
            (gradient,) = torch.autograd.grad(
                logits.square().sum(), output, retain_graph=True, materialize_grads=True
            )
            if _as_maps(gradient, network).any():
                return name
    shapes = ", ".join(
        f"{name} {tuple(output.shape[1:])}" if isinstance(output, Tensor) else name
        for name, output in outputs.items()
    )
    raise ParameterError(
        f"explain.method: {type(network).__name__} has no stage with spatial resolution for images"
        f" of {image.shape[2]} px, as Grad-CAM needs; found {shapes}. Set"
        " explain.method=integrated_gradients, or raise transforms.size."
    )


def _grad_cam(network: nn.Module, stage: str, image: Tensor, target: int) -> Tensor:
    """Return the positive evidence (1, 1, H, W) of Grad-CAM at a stage."""
    logits, outputs = _record_outputs(network, [stage], image)
    evidence = (outputs[stage], *torch.autograd.grad(logits[0, target], outputs[stage]))
    maps, gradients = (_as_maps(each, network) for each in evidence)
    cam = (maps * gradients.mean(dim=(2, 3), keepdim=True)).sum(dim=1, keepdim=True).relu()
    return functional.interpolate(cam, image.shape[2:], mode="bilinear")


def _copy_without_inplace(network: nn.Module) -> nn.Module:
    """Return a copy for evaluation whose modules overwrite nothing that a gradient needs."""
    with NETWORK_LOCK:
        twin = copy.deepcopy(network).eval().requires_grad_(False)
    for module in twin.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010
    return twin


def _record_outputs(
    network: nn.Module, modules: Sequence[str], image: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits (1, C) of an image, and the outputs of modules on the way to them."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output})
        )
        for name in modules
    ]
    try:
        return network(image), outputs
    finally:
        for hook in hooks:
            hook.remove()


def _as_maps(output: Tensor, network: nn.Module) -> Tensor:
    """Return maps (N, C, H, W) or (N, H, W, C), or tokens (N, L, C), as (N, C, H, W)."""
    if output.ndim == 4:  # noqa: PLR2004
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.permute(0, 3, 1, 2) if channels_last else output
    length = output.shape[1]
    patches = length - getattr(network, "num_prefix_tokens", 0)  # of timm's networks
    side = math.isqrt(patches)
    if side**2 != patches:  # class tokens come before the patches
        side = math.isqrt(length)
    tokens = output[:, length - side**2 :]
    return tokens.transpose(1, 2).unflatten(2, (side, side))
