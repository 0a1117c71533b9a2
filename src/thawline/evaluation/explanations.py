"""Show what in an image speaks for the class that a network sees in it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from thawline.data.sources import describe_problem
from thawline.data.transforms import Preprocessing, evaluation_view, normalize
from thawline.errors import DataError, ParameterError
from thawline.evaluation.metrics import as_arrays, worst_mistakes
from thawline.networks.classifier import Classifier, probabilities
from thawline.networks.stages import find_stages
from thawline.options import AttributionMethod, TrainingOptions
from thawline.thaw.device import make_accelerator

STEPS = 32  # of the path that integrated gradients follow
AT_ONCE = 8  # of these steps


class Explanations(NamedTuple):
    """Images, what a classifier says of them, and what in them speaks for that.

    Attributes:
        table: path, label (empty where unknown), prediction, probability (of the prediction, 0 to
            1); a row an image.
        views: (N, 3, size, size) uint8, as the network sees them.
        maps: (N, size, size) float32, see `attribute`.
    """

    table: pd.DataFrame
    views: Tensor
    maps: Tensor


def choose_worst(predictions: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return path and label of the most confident mistakes, most confident first.

    Where there are fewer than `count`, the least certain of the right answers follow.

    Args:
        predictions: the table of `evaluation.predict_split`.
        count: of images, at most.
    """
    table, _, is_right = as_arrays(predictions)
    right = predictions.assign(confidence=table.max(axis=1))[is_right]
    least_certain = right.sort_values("confidence", kind="stable")
    rows = pd.concat([worst_mistakes(predictions), least_certain])
    return rows[["path", "label"]].head(count).reset_index(drop=True)


def explain(
    classifier: Classifier,
    images: pd.DataFrame,
    method: AttributionMethod,
    training: TrainingOptions,
) -> Explanations:
    """Return what the classifier says of images, and what in each speaks for it; in fp32.

    Args:
        classifier: stays as it is.
        images: path and label.
        method: see `attribute`.
        training: what device it computes on.

    Raises:
        DataError: when an image cannot be read.
        ParameterError: see `attribute`.
    """
    device = make_accelerator(training).device
    network = copy.deepcopy(classifier.network).eval().to(device)
    views = torch.stack([_view(path, classifier.preprocessing) for path in images["path"]])
    inputs = normalize(views.to(device), classifier.preprocessing)
    with torch.inference_mode():
        answers = torch.cat([probabilities(network(image[None])).cpu() for image in inputs])
    top, idx = answers.max(dim=1)
    table = images[["path", "label"]].reset_index(drop=True)
    table["prediction"] = [classifier.class_names[i] for i in idx]
    table["probability"] = top.tolist()
    return Explanations(table, views, attribute(network, inputs, idx.tolist(), method).cpu())


def attribute(
    network: nn.Module, images: Tensor, targets: Sequence[int], method: AttributionMethod
) -> Tensor:
    """Return for each image where the evidence for a class lies: (N, size, size) float32, from 0.

    All works on a copy of the network. `grad_cam` (Selvaraju et al. 2017, arXiv:1610.02391) is
    coarse, the last spatial stage's maps weighted by their gradients; `guided_grad_cam` multiplies
    it by the size of guided backpropagation's gradient, in a network without ReLU the plain one;
    `integrated_gradients` (Sundararajan et al. 2017, arXiv:1703.01365) go from the mean color to
    the image. The latter two are added up over the colors; what speaks against the class is 0.

    Args:
        network: from images to logits (N, C).
        images: (N, 3, size, size) float32, normalized, on the network's device.
        targets: index of a class for each image.
        method: how.

    Raises:
        ParameterError: when a method needs a spatial stage and the network has none.
    """
    from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam

    twin = _copy_without_inplace(network)
    if method == "integrated_gradients":
        integrated = IntegratedGradients(twin)
        maps = [
            integrated.attribute(image, target=target, n_steps=STEPS, internal_batch_size=AT_ONCE)
            for image, target in _one_by_one(images, targets)
        ]
    else:
        tap = _tap_maps(twin, find_spatial_module(twin, images[:1]))
        if method == "grad_cam":
            cam = LayerGradCam(twin, tap)
            coarse = [
                cam.attribute(image, target=target, relu_attributions=True)
                for image, target in _one_by_one(images, targets)
            ]
            size = (images.shape[2], images.shape[3])
            maps = [LayerAttribution.interpolate(m, size, "bilinear") for m in coarse]
        else:
            maps = _guided(twin, tap, images, targets)
    return torch.cat(maps).detach().sum(dim=1).clamp_min(0)


def find_spatial_module(network: nn.Module, image: Tensor) -> str:
    """Return the last module of a stage that yields more than one place of the image to its head.

    That is a map (N, C, H, W) or (N, H, W, C), or tokens (N, L, C), the output depends on at more
    than a class token: of a transformer that reads its class token alone, the last block's other
    tokens go nowhere, and it is the block before.

    Args:
        network: in evaluation mode, without operations in place.
        image: (1, 3, size, size), normalized.

    Raises:
        ParameterError: when there is none.
    """
    outputs: dict[str, Tensor] = {}
    modules = [name for stage in find_stages(network).values() for name in stage.modules]
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output})
        )
        for name in modules
    ]
    try:
        answer = network(image.detach().clone().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    reached = {
        name: output
        for name, output in outputs.items()
        if isinstance(output, Tensor) and _as_maps(output, network) is not None
    }
    gradients = torch.autograd.grad(
        answer.square().sum(), [*reached.values()], allow_unused=True
    ) if reached else ()  # fmt: skip
    for name, gradient in reversed([*zip(reached, gradients, strict=True)]):
        maps = None if gradient is None else _as_maps(gradient, network)
        if maps is not None and maps.any():
            return name
    shapes = ", ".join(
        f"{name} {tuple(output.shape[1:])}" if isinstance(output, Tensor) else name
        for name, output in outputs.items()
    )
    raise ParameterError(
        f"explain.method: {type(network).__name__} has no stage that yields a map of the image"
        f" of {image.shape[2]} px, as Grad-CAM needs; found {shapes}. Take"
        " explain.method=integrated_gradients, or larger images (transforms.size)."
    )


class _GuidedReLU6(nn.ReLU):
    """ReLU6 as a kind of ReLU, so that Captum's guided backpropagation sees it."""

    def forward(self, values: Tensor) -> Tensor:
        return functional.relu6(values)


def _copy_without_inplace(network: nn.Module) -> nn.Module:
    """Return a copy for evaluation whose modules overwrite nothing that a gradient needs."""
    twin = copy.deepcopy(network).eval().requires_grad_(False)
    for module in twin.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010
    return twin


def _guided(
    twin: nn.Module, tap: nn.Module, images: Tensor, targets: Sequence[int]
) -> list[Tensor]:
    from captum.attr import GuidedGradCam

    for name, module in [*twin.named_modules()]:
        if isinstance(module, nn.ReLU6):
            twin.set_submodule(name, _GuidedReLU6())
    guided = GuidedGradCam(twin, tap)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
        return [
            guided.attribute(image, target=target, interpolate_mode="bilinear").abs()
            for image, target in _one_by_one(images, targets)
        ]


def _one_by_one(images: Tensor, targets: Sequence[int]) -> list[tuple[Tensor, int]]:
    singles = [image.detach().clone().requires_grad_() for image in images.split(1)]
    pairs = [*zip(singles, targets, strict=True)]
    return track(pairs, "Explaining", transient=True)  # type: ignore[return-value]


def _tap_maps(twin: nn.Module, name: str) -> nn.Module:
    """Return a module through which a module's output flows as maps (N, C, H, W)."""
    tap = nn.Identity()
    twin.get_submodule(name).register_forward_hook(
        lambda _, __, output: _put_back(tap(_as_maps(output, twin)), output)
    )
    return tap


def _as_maps(output: Tensor, network: nn.Module) -> Tensor | None:
    """Return as (N, C, H, W) what has more than one place, or None."""
    maps = None
    if output.ndim == 4:  # noqa: PLR2004
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        maps = output.permute(0, 3, 1, 2) if channels_last else output
    elif output.ndim == 3:  # noqa: PLR2004
        length = output.shape[1]
        patches = length - getattr(network, "num_prefix_tokens", 0)  # of timm's networks
        side = math.isqrt(patches)
        if side**2 != patches:  # class tokens come before the patches
            side = math.isqrt(length)
        tokens = output[:, length - side**2 :]
        maps = tokens.transpose(1, 2).unflatten(2, (side, side))
    return maps if maps is not None and maps.shape[2] * maps.shape[3] > 1 else None


def _put_back(maps: Tensor, output: Tensor) -> Tensor:
    """Return maps in the shape of the output that they were taken from, with its class tokens."""
    if output.ndim == 3:  # noqa: PLR2004
        tokens = maps.flatten(2).transpose(1, 2)
        return torch.cat([output[:, : output.shape[1] - tokens.shape[1]], tokens], dim=1)
    return maps if maps.shape == output.shape else maps.permute(0, 2, 3, 1)


def _view(path: str, preprocessing: Preprocessing) -> Tensor:
    try:
        return evaluation_view(path, preprocessing)
    except Exception as error:  # a damaged file can make a decoder raise anything
        problem = describe_problem(error, path)
        raise DataError(f"explain.images: '{path}' cannot be read: {problem}.") from error
