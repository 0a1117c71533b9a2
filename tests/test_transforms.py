"""Images reach the network as its weights were trained, whatever is not overridden."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights

from thawline.backbones import pretrained_preprocessing
from thawline.errors import ParameterError
from thawline.options import ModelOptions, TransformOptions
from thawline.transforms import build_transforms

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))


def transforms_for(backbone: str, **changes: object):
    pretrained = pretrained_preprocessing(ModelOptions(backbone=backbone))
    return build_transforms(TransformOptions(**changes), pretrained)


def test_evaluation_equals_torchvisions_own_preset() -> None:
    ours = transforms_for("resnet50").evaluation(PHOTO)
    theirs = ResNet50_Weights.DEFAULT.transforms()(PHOTO)
    assert ours.shape == theirs.shape == (3, 224, 224)
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)


def test_evaluation_equals_timms_own_transform() -> None:
    import timm

    config = timm.data.resolve_data_config({}, model=timm.create_model("tf_efficientnet_lite0"))
    theirs = timm.data.create_transform(**config)(PHOTO)
    ours = transforms_for("timm/tf_efficientnet_lite0").evaluation(PHOTO)
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)


def test_training_views_differ_and_evaluation_never_does() -> None:
    both = transforms_for("resnet18")
    assert not torch.equal(both.train(PHOTO), both.train(PHOTO))
    assert torch.equal(both.evaluation(PHOTO), both.evaluation(PHOTO))
    assert both.train(PHOTO).shape == (3, 224, 224)
    assert both.train(PHOTO).dtype == torch.float32


def test_overrides_hold_and_the_resize_keeps_its_share() -> None:
    changed = transforms_for("resnet50", size=64, mean=(0, 0, 0), std=(1, 1, 1))
    assert changed.preprocessing.resize == round(232 * 64 / 224)
    pixels = changed.evaluation(PHOTO)
    assert pixels.shape == (3, 64, 64)
    assert pixels.min() >= 0 and pixels.max() <= 1


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"transforms\.resize: 100 px is smaller"):
        transforms_for("resnet50", resize=100)


def test_no_augmentation_is_possible() -> None:
    still = transforms_for("resnet18", crop_scale=1, rotation=0, horizontal_flip=0)
    square = PHOTO.resize((256, 256))
    views = [still.train(square) for _ in range(5)]
    assert all(torch.equal(view, views[0]) for view in views)
