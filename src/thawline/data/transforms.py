"""Turn image files into views, and views into what the network sees."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from thawline.data.decoding import Source, open_image, to_rgb, upright_size
from thawline.errors import ParameterError
from thawline.options import (
    AugmentationOptions,
    BitDepth,
    Channels,
    Interpolation,
    Options,
    TransformOptions,
)

# Raise it with every change of how files become views: cached views of before are then not read.
# tests/data/test_transforms.py holds it to the views that it stands for.
DECODING_VERSION = 1

BatchMixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Preprocessing(Options):
    """What a trained network expects of its input; stored with every classifier."""

    size: int
    resize: int
    interpolation: Interpolation
    mean: Channels
    std: Channels
    bit_depth: BitDepth = "auto"  # as of classifiers of format 2, which do not name it


class Transforms(NamedTuple):
    """How files become views.

    Attributes:
        preprocessing: of every image.
        options: of the random views for training.
        seed: of the random views; trainings that share it see, and keep, the same ones.
    """

    preprocessing: Preprocessing
    options: TransformOptions
    seed: int = 0


def build_transforms(
    options: TransformOptions, pretrained: Preprocessing, seed: int = 0
) -> Transforms:
    """Return the transforms for training and evaluation.

    Args:
        options: what to change of `pretrained`, and the augmentation.
        pretrained: the preprocessing that the weights were trained with.
        seed: of the random views.

    Raises:
        ParameterError: when the center crop would be larger than the resized image.
    """
    own = {name: getattr(options, name) for name in Preprocessing.model_fields}
    changes = {name: value for name, value in own.items() if value is not None}
    if "size" in changes and "resize" not in changes:  # keep the share that the crop leaves over
        changes["resize"] = round(pretrained.resize * changes["size"] / pretrained.size)
    preprocessing = pretrained.model_copy(update=changes)
    if preprocessing.resize < preprocessing.size:
        raise ParameterError(
            f"transforms.resize: {preprocessing.resize} px is smaller than the center crop of"
            f" {preprocessing.size} px (transforms.size, from the weights where null)."
        )
    return Transforms(preprocessing, options, seed)


def training_view(source: Source, transforms: Transforms, seed: int) -> Tensor:
    """Return a random crop, rotated and perhaps mirrored, (3, size, size) uint8 RGB.

    The same file and seed always give the same view. The crop is drawn before the file is decoded,
    so that a large JPEG is decoded no larger than the crop needs.

    Raises:
        OSError: when the file cannot be read or is not an image.
    """
    preprocessing, options, _ = transforms
    size, interpolation = preprocessing.size, InterpolationMode(preprocessing.interpolation)
    augmentation = v2.Compose(
        [
            v2.RandomRotation(options.rotation, interpolation=InterpolationMode.BILINEAR),
            v2.RandomHorizontalFlip(options.horizontal_flip),
            v2.PILToTensor(),
        ]
    )
    with open_image(source) as file, torch.random.fork_rng(devices=[]):
        width, height = upright_size(file)
        torch.default_generator.manual_seed(seed)  # the CPU's alone; 0.4 ms cheaper
        crop = v2.RandomResizedCrop(size, scale=(options.min_crop_scale, 1.0))
        box = crop.make_params([torch.empty(0, height, width)])
        scale = size / min(box["height"], box["width"])
        image = to_rgb(file, scale, preprocessing.bit_depth)
        across, down = image.width / width, image.height / height  # below 1 where decoded smaller
        left, right = (round(x * across) for x in (box["left"], box["left"] + box["width"]))
        top, bottom = (round(y * down) for y in (box["top"], box["top"] + box["height"]))
        view = functional.resized_crop(
            image, top, left, bottom - top, right - left, [size, size], interpolation
        )
        return augmentation(view)


def evaluation_view(source: Source, preprocessing: Preprocessing) -> Tensor:
    """Return the image resized and cropped at its center, (3, size, size) uint8 RGB.

    Raises:
        OSError: when the file cannot be read or is not an image.
        DecompressionBombError: when it is so long and narrow that it would become enormous.
    """
    with open_image(source) as file:
        size = upright_size(file)
        resized = [round(side * preprocessing.resize / min(size)) for side in size]
        if resized[0] * resized[1] > (limit := 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)):
            raise Image.DecompressionBombError(
                f"{size[0]} × {size[1]} px would be resized to {resized[0]} × {resized[1]}, more"
                f" than {limit} px"
            )
        image = to_rgb(file, preprocessing.resize / min(size), preprocessing.bit_depth)
    transform = v2.Compose(
        [
            v2.Resize(
                preprocessing.resize, interpolation=InterpolationMode(preprocessing.interpolation)
            ),
            v2.CenterCrop(preprocessing.size),
            v2.PILToTensor(),
        ]
    )
    return transform(image)


def normalize(views: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return views (N, 3, size, size) uint8 as the network sees them: float32, channels last."""
    views = views.contiguous(memory_format=torch.channels_last)  # while a value is one byte
    images = functional.to_dtype(views, torch.float32, scale=True)
    mean, std = list(preprocessing.mean), list(preprocessing.std)
    return functional.normalize(images, mean, std, inplace=True)


def make_mix(options: AugmentationOptions, classes: int) -> BatchMixer | None:
    """Return what blends the images of a batch, or None where nothing is to be blended.

    It takes images (N, 3, H, W) float and labels (N,) int64, and returns mixed images and each
    class's share in them (N, classes): mixup (Zhang et al. 2018, arXiv:1710.09412), CutMix (Yun et
    al. 2019, arXiv:1905.04899), or for each batch one of the two.
    """
    mixes: list[BatchMixer] = []
    if options.mixup:
        mixes.append(v2.MixUp(alpha=options.mixup, num_classes=classes))
    if options.cutmix:
        mixes.append(v2.CutMix(alpha=options.cutmix, num_classes=classes))
    return v2.RandomChoice(mixes) if len(mixes) > 1 else mixes[0] if mixes else None
