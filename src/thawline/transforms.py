"""Turn decoded images into what the network sees, for training and for evaluation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torchvision.transforms import InterpolationMode, v2

from thawline.errors import ParameterError
from thawline.options import Channels, Interpolation, Options, TransformOptions


class Preprocessing(Options):
    """What a trained network expects of its input; stored with every classifier."""

    size: int
    resize: int
    interpolation: Interpolation
    mean: Channels
    std: Channels


class Transforms(NamedTuple):
    """Pipelines from an RGB PIL image to a normalised float32 tensor (3, size, size)."""

    train: v2.Compose
    evaluation: v2.Compose
    preprocessing: Preprocessing


def build_transforms(options: TransformOptions, pretrained: Preprocessing) -> Transforms:
    """Return the transforms for training and evaluation.

    Args:
        options: what to change of `pretrained`, and the augmentation.
        pretrained: the preprocessing that the weights were trained with.

    Raises:
        ParameterError: when the centre crop would be larger than the resized image.
    """
    own = {name: getattr(options, name) for name in Preprocessing.model_fields}
    changes = {name: value for name, value in own.items() if value is not None}
    if "size" in changes and "resize" not in changes:  # keep the share that the crop leaves over
        changes["resize"] = round(pretrained.resize * changes["size"] / pretrained.size)
    preprocessing = pretrained.model_copy(update=changes)
    if preprocessing.resize < preprocessing.size:
        raise ParameterError(
            f"transforms.resize: {preprocessing.resize} px is smaller than the centre crop of"
            f" {preprocessing.size} px (transforms.size, from the weights where null)."
        )
    augmentation = [
        v2.RandomResizedCrop(
            preprocessing.size,
            scale=(options.crop_scale, 1.0),
            interpolation=InterpolationMode(preprocessing.interpolation),
        ),
        v2.RandomRotation(options.rotation, interpolation=InterpolationMode.BILINEAR),
        v2.RandomHorizontalFlip(options.horizontal_flip),
    ]
    return Transforms(
        train=v2.Compose([*augmentation, *_to_normalised_tensor(preprocessing)]),
        evaluation=evaluation_transform(preprocessing),
        preprocessing=preprocessing,
    )


def evaluation_transform(preprocessing: Preprocessing) -> v2.Compose:
    """Return resize, centre crop and normalisation; the same image always gives the same tensor."""
    return v2.Compose(
        [
            v2.Resize(
                preprocessing.resize, interpolation=InterpolationMode(preprocessing.interpolation)
            ),
            v2.CenterCrop(preprocessing.size),
            *_to_normalised_tensor(preprocessing),
        ]
    )


def _to_normalised_tensor(preprocessing: Preprocessing) -> list[v2.Transform]:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(preprocessing.mean, preprocessing.std),
    ]
