"""Images reach the network as its weights were trained, whatever is not overridden."""

import hashlib
import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from thawline.data.decoding import read_image
from thawline.data.transforms import (
    DECODING_VERSION,
    Transforms,
    build_transforms,
    evaluation_view,
    normalize,
    training_view,
)
from thawline.errors import ParameterError
from thawline.networks.building import pretrained_preprocessing
from thawline.options import AugmentationOptions, ModelOptions, TransformOptions


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
FILE = encoded(NOISE)
CROP = v2.RandomResizedCrop(224, scale=(0.5, 1))


def transforms_for(backbone: str, **changes: object) -> Transforms:
    pretrained = pretrained_preprocessing(ModelOptions(backbone=backbone))
    return build_transforms(TransformOptions(**changes), pretrained)


def seen(source: bytes, transforms: Transforms) -> Tensor:
    views = evaluation_view(source, transforms.preprocessing)[None]
    return normalize(views, transforms.preprocessing)[0]


def test_evaluation_equals_torchvisions_own_preset() -> None:
    ours = seen(FILE, transforms_for("resnet50"))
    theirs = ResNet50_Weights.DEFAULT.transforms()(NOISE)
    assert ours.shape == theirs.shape == (3, 224, 224)
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)


def test_evaluation_equals_timms_own_transform() -> None:
    import timm

    config = timm.data.resolve_data_config({}, model=timm.create_model("tf_efficientnet_lite0"))
    theirs = timm.data.create_transform(**config)(NOISE)
    ours = seen(FILE, transforms_for("timm/tf_efficientnet_lite0"))
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)


def augmented(**changes: object) -> Transforms:
    return transforms_for("resnet18")._replace(augmentation=AugmentationOptions(**changes))


AUGMENTATIONS = (
    {}, {"policy": "trivial"}, {"policy": "rand"}, {"color_jitter": 0.4}, {"random_erasing": 1},
    {"policy": "rand", "color_jitter": 0.4, "random_erasing": 1},
)  # fmt: skip


@given(st.sampled_from(AUGMENTATIONS), st.integers(0, 2**56))
@settings(max_examples=30)
def test_a_seed_names_a_view_and_leaves_other_randomness_alone(
    changes: dict[str, object], seed: int
) -> None:
    both = augmented(**changes)
    state = torch.random.get_rng_state()
    view = training_view(FILE, both, seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(view, training_view(FILE, both, seed))
    assert not torch.equal(view, training_view(FILE, both, seed + 1))
    assert view.shape == (3, 224, 224) and view.dtype == torch.uint8


def test_every_augmentation_changes_views_and_unused_ones_change_none() -> None:
    views = [
        torch.stack([training_view(FILE, augmented(**changes), seed) for seed in range(8)])
        for changes in AUGMENTATIONS
    ]
    for one, other in itertools.combinations(views, 2):
        assert not torch.equal(one, other)
    unused = augmented(views_per_image=None, mixup=0.2)
    assert torch.equal(views[0][0], training_view(FILE, unused, 0))


def test_a_policy_is_torchvisions_own_after_the_flip() -> None:
    plain = transforms_for("resnet18", rotation=0, horizontal_flip=1)
    for name, policy in (("trivial", v2.TrivialAugmentWide), ("rand", v2.RandAugment)):
        ours = plain._replace(augmentation=AugmentationOptions(policy=name))
        steps = [CROP, v2.RandomRotation(0), v2.RandomHorizontalFlip(1)]
        theirs = v2.Compose([*steps, policy(interpolation="bilinear"), v2.PILToTensor()])
        for seed in range(10):
            torch.manual_seed(seed)
            assert torch.equal(training_view(FILE, ours, seed), theirs(NOISE))


def test_random_erasing_leaves_a_rectangle_that_is_zero_for_the_network() -> None:
    both = augmented(random_erasing=1)
    view = training_view(FILE, both, 3)
    erased = (view != training_view(FILE, transforms_for("resnet18"), 3)).any(dim=0)
    rows, columns = erased.any(dim=1).nonzero(), erased.any(dim=0).nonzero()
    inside = view[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert 0.02 < inside[0].numel() / 224**2 < 0.34
    assert normalize(inside[None], both.preprocessing).abs().max() < 0.01


def test_a_training_view_is_torchvisions_random_resized_crop() -> None:
    plain = transforms_for("resnet18", rotation=0, horizontal_flip=0)
    for seed in range(10):
        torch.manual_seed(seed)
        assert torch.equal(training_view(FILE, plain, seed), v2.PILToTensor()(CROP(NOISE)))


@pytest.mark.parametrize("size", [32, 64, 100])
def test_a_jpeg_decoded_smaller_looks_the_same(size: int) -> None:
    both = transforms_for("resnet18", size=size)

    def views(source: bytes) -> Tensor:
        random = [training_view(source, both, seed) for seed in range(10)]
        return torch.stack([evaluation_view(source, both.preprocessing), *random]).float()

    differences: list[float] = []
    for pixels in load_sample_images().images:
        jpeg = encoded(Image.fromarray(pixels), "JPEG")
        full = encoded(read_image(jpeg))  # as PNG, which cannot be decoded smaller
        differences += (views(jpeg) - views(full)).abs().mean(dim=(1, 2, 3)).tolist()
    assert max(differences) > 0  # some were in fact decoded smaller
    assert np.mean(differences) < 2


def test_overrides_hold_and_the_resize_keeps_its_share() -> None:
    changed = transforms_for("resnet50", size=64, mean=(0, 0, 0), std=(1, 1, 1))
    assert changed.preprocessing.resize == round(232 * 64 / 224)
    pixels = seen(FILE, changed)
    assert pixels.shape == (3, 64, 64)
    assert pixels.min() >= 0 and pixels.max() <= 1


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"transforms\.resize: 100 px is smaller"):
        transforms_for("resnet50", resize=100)


def test_no_augmentation_is_possible() -> None:
    still = transforms_for("resnet18", min_crop_scale=1, rotation=0, horizontal_flip=0)
    square = encoded(NOISE.resize((256, 256)))
    views = [training_view(square, still, seed) for seed in range(5)]
    assert all(torch.equal(view, views[0]) for view in views)


def test_the_bit_depth_is_kept_with_the_preprocessing() -> None:
    ramp = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))
    for depth, brightest in (("auto", 16), (12, 255)):
        whole = {"size": 64, "resize": 64, "min_crop_scale": 1, "rotation": 0}
        both = transforms_for("resnet18", bit_depth=depth, **whole)
        assert both.preprocessing.bit_depth == depth
        views = (evaluation_view(encoded(ramp), both.preprocessing),
                 training_view(encoded(ramp), both, seed=0))  # fmt: skip
        assert all(0.9 * brightest < view.max() <= brightest for view in views)


# What becomes of files under each version of decoding. Another hash needs another version: cached
# views of before are not read then.
VIEWS = {1: "fc3c5b0e980007c4be90dfdb43ea0ba1aaa7e06222182c07ab9473fbd6b89b50"}


def test_a_change_of_decoding_has_another_version() -> None:
    gray = np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30
    rgb = np.stack([gray % 251, gray // 230, gray % 83], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    transparent = Image.fromarray(rgb)
    transparent.putalpha(Image.fromarray(rgb[..., 2] * 3))
    sources = [
        encoded(Image.fromarray(rgb), exif=exif),
        encoded(Image.fromarray(gray)),
        encoded(Image.fromarray(gray.astype(np.float32) / 60_000), "TIFF"),
        encoded(transparent),
        encoded(Image.fromarray(rgb).convert("P")),
        encoded(Image.fromarray(rgb).convert("CMYK"), "TIFF"),
        encoded(Image.fromarray(rgb), "PPM"),
    ]
    digest = hashlib.sha256()
    for interpolation in ("nearest", "bilinear", "bicubic"):
        options = {"size": 32, "interpolation": interpolation, "min_crop_scale": 0.08}
        both = transforms_for("resnet18", **options)
        for source in sources:
            digest.update(evaluation_view(source, both.preprocessing).numpy().tobytes())
            digest.update(training_view(source, both, 7).numpy().tobytes())
    assert VIEWS[DECODING_VERSION] == digest.hexdigest()


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (8, 8)])
def test_images_of_odd_shapes_become_views_too(shape: tuple[int, int]) -> None:
    both = transforms_for("resnet18", size=32)
    for kind in ("PNG", "JPEG"):
        source = encoded(NOISE.resize(shape), kind)
        assert training_view(source, both, 0).shape == (3, 32, 32)
        assert evaluation_view(source, both.preprocessing).shape == (3, 32, 32)
