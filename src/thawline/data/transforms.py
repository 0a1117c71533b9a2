"""Turn image files into views, and views into the input of the network."""

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
    Tta,
)

# Increase it whenever files become other views, so that old cached views are not read.
# tests/data/test_transforms.py compares it with the hashes of some views.
DECODING_VERSION = 1

POLICIES = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}
NO_AUGMENTATION = AugmentationOptions()

BatchMixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Preprocessing(Options):
    """The input that a trained network expects; saved with every classifier."""

    size: int
    resize: int
    interpolation: Interpolation
    mean: Channels
    std: Channels
    bit_depth: BitDepth = "auto"  # classifiers of format 2 do not save it


class Transforms(NamedTuple):
    """How files become views."""

    preprocessing: Preprocessing
    options: TransformOptions  # of the random training views
    seed: int = 0  # of the same; runs with equal seeds share cached views
    augmentation: AugmentationOptions = NO_AUGMENTATION  # of the same, by `of_views`

    def resized(self, size: int) -> "Transforms":
        """Return the same for another side of the input, in px."""
        before = self.preprocessing
        resize = round(before.resize * size / before.size)
        preprocessing = before.model_copy(update={"size": size, "resize": resize})
        return self._replace(preprocessing=preprocessing)


def build_transforms(
    options: TransformOptions,
    pretrained: Preprocessing,
    seed: int = 0,
    augmentation: AugmentationOptions = NO_AUGMENTATION,
) -> Transforms:
    """Combine the user's options with the preprocessing that the weights were trained with.

    Raises:
        ParameterError: if the center crop would be larger than the resized image.
    """
    changes = options.model_dump(include={*Preprocessing.model_fields}, exclude_none=True)
    if "size" in changes and "resize" not in changes:  # keep the ratio of crop and image
        changes["resize"] = round(pretrained.resize * changes["size"] / pretrained.size)
    preprocessing = pretrained.model_copy(update=changes)
    if preprocessing.resize < preprocessing.size:
        raise ParameterError(
            f"transforms.resize: {preprocessing.resize} px is smaller than the center crop of"
            f" {preprocessing.size} px (transforms.size, which the weights decide if it is null)."
        )
    return Transforms(preprocessing, options, seed, augmentation)


def training_view(source: Source, transforms: Transforms, seed: int) -> Tensor:
    """Return a random crop, augmented by `augment`, (3, size, size) uint8 RGB.

    Equal files and seeds give equal views. The crop is drawn before decoding, so a large JPEG is
    decoded no larger than the crop requires.

    Raises:
        ImageError: if the file cannot be decoded.
    """
    preprocessing, options, *_ = transforms
    size = preprocessing.size
    with open_image(source) as file, torch.random.fork_rng(devices=[]):
        width, height = upright_size(file)
        torch.default_generator.manual_seed(seed)  # of the CPU only, which saves 0.4 ms
        crop = v2.RandomResizedCrop(size, scale=(options.min_crop_scale, 1.0))
        box = crop.make_params([torch.empty(0, height, width)])
        scale = size / min(box["height"], box["width"])
        image = to_rgb(file, scale, preprocessing.bit_depth)
        across, down = image.width / width, image.height / height  # below 1 if decoded smaller
        left, right = (round(x * across) for x in (box["left"], box["left"] + box["width"]))
        top, bottom = (round(y * down) for y in (box["top"], box["top"] + box["height"]))
        interpolation = InterpolationMode(preprocessing.interpolation)
        view = functional.resized_crop(
            image, top, left, bottom - top, right - left, [size, size], interpolation
        )
        return augment(view, transforms)


def augment(view: Image.Image, transforms: Transforms) -> Tensor:
    """Return a crop, randomly rotated, mirrored and more as the options say, (3, H, W) uint8.

    Policies are TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158) and RandAugment (Cubuk et
    al. 2020, arXiv:1909.13719), in the place that torchvision's training recipes give them. Random
    erasing (Zhong et al. 2017, arXiv:1708.04896) leaves the mean color, 0 for the network.
    """
    preprocessing, options, _, chosen = transforms
    bilinear, strength = InterpolationMode.BILINEAR, chosen.color_jitter
    steps = [
        v2.RandomRotation(options.rotation, bilinear),
        v2.RandomHorizontalFlip(options.horizontal_flip),
    ]
    if strength:
        steps.append(v2.ColorJitter(strength, strength, strength))
    if chosen.policy in POLICIES:
        steps.append(POLICIES[chosen.policy](interpolation=bilinear))
    steps.append(v2.PILToTensor())
    if chosen.random_erasing:
        mean = [round(255 * channel) for channel in preprocessing.mean]
        steps.append(v2.RandomErasing(chosen.random_erasing, value=mean))
    return v2.Compose(steps)(view)


def evaluation_view(source: Source, preprocessing: Preprocessing) -> Tensor:
    """Return the image, resized and center-cropped, (3, size, size) uint8 RGB.

    Raises:
        ImageError: if the file cannot be decoded, or is so narrow that resizing makes it enormous.
    """
    return evaluation_views(source, preprocessing)[0]


def evaluation_views(source: Source, preprocessing: Preprocessing, tta: Tta = "none") -> Tensor:
    """Return all views that are predicted together, (views, 3, size, size) uint8 RGB.

    The first is the `evaluation_view`. With `flip`, its mirror image follows, with `five_crop` the
    four corners of the resized image.

    Raises:
        ImageError: as `evaluation_view`.
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
    interpolation = InterpolationMode(preprocessing.interpolation)
    image = functional.resize(image, [preprocessing.resize], interpolation)
    crop = [preprocessing.size]
    views = [functional.center_crop(image, crop)]
    if tta == "flip":
        views.append(functional.horizontal_flip(views[0]))
    if tta == "five_crop":
        views += functional.five_crop(image, crop)[:4]  # the fifth is the center
    return torch.stack([functional.pil_to_tensor(view) for view in views])


def normalize(views: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalize views (N, 3, size, size) uint8 to the network's input: float32, channels last."""
    views = views.contiguous(memory_format=torch.channels_last)  # cheaper as uint8
    images = functional.to_dtype(views, torch.float32, scale=True)
    mean, std = list(preprocessing.mean), list(preprocessing.std)
    return functional.normalize(images, mean, std, inplace=True)


def make_mix(options: AugmentationOptions, classes: int) -> BatchMixer | None:
    """Return the function that mixes the images of a batch, or None without mixup and CutMix.

    It maps images (N, 3, H, W) float and labels (N,) int64 to mixed images and class shares
    (N, classes). It applies mixup (Zhang et al. 2018, arXiv:1710.09412), CutMix (Yun et al. 2019,
    arXiv:1905.04899), or one of the two per batch.
    """
    kinds = ((v2.MixUp, options.mixup), (v2.CutMix, options.cutmix))
    mixers = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
    return v2.RandomChoice(mixers) if len(mixers) > 1 else next(iter(mixers), None)
