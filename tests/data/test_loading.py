"""Views come in the order in which they are asked for, whoever decodes them."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from thawline.data import loading
from thawline.data.loading import ImageView, ViewLoader
from thawline.data.transforms import build_transforms, evaluation_view, training_view
from thawline.errors import DataError
from thawline.networks.building import IMAGENET
from thawline.options import TransformOptions

SHA256 = "0" * 64
TRANSFORMS = build_transforms(TransformOptions(size=32), IMAGENET)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_was_asked_for_epoch_after_epoch(
    splits: pd.DataFrame, workers: int
) -> None:
    loader, paths = ViewLoader(TRANSFORMS, workers), splits["path"].tolist()
    for epoch in range(3):
        asked = [
            [ImageView(p, SHA256, epoch) for p in paths[:3]],
            [ImageView(paths[3], SHA256)],
            [ImageView(paths[4], SHA256, 7)],
        ]
        turned = asked[epoch:] + asked[:epoch]
        for found, batch in zip([*loader.load(turned)], turned, strict=True):
            assert torch.equal(found, torch.stack([_view(view) for view in batch]))
    assert list(loader.load([])) == []


def test_an_epoch_that_was_left_early_does_not_spill_into_the_next(splits: pd.DataFrame) -> None:
    loader, paths = ViewLoader(TRANSFORMS, workers=2), splits["path"].tolist()
    next(loader.load([[ImageView(path, SHA256)] for path in paths]))
    (only,) = loader.load([[ImageView(paths[-1], SHA256)]])
    assert torch.equal(only[0], _view(ImageView(paths[-1], SHA256)))


def test_as_many_processes_decode_as_a_container_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(
        loading, "DataLoader", lambda *_, num_workers, **__: started.append(num_workers)
    )
    for allowed in ("1", "3", "1000"):
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", allowed)
        ViewLoader(TRANSFORMS, workers=None)
    assert started[0] == 1 and started[1] == min(3, started[2]) and started[2] <= 32


def test_an_image_that_is_too_narrow_is_named_with_the_reason(tmp_path: Path) -> None:
    Image.new("RGB", (4, 600_000)).save(tmp_path / "strip.png")
    loader = ViewLoader(TRANSFORMS, 0)
    with pytest.raises(DataError, match=r"strip\.png: .*4 × 600000 px would be resized"):
        list(loader.load([[ImageView(str(tmp_path / "strip.png"), SHA256)]]))


def test_decoding_takes_no_randomness_from_training(splits: pd.DataFrame) -> None:
    for workers in (0, 2):
        torch.manual_seed(0)
        state = torch.random.get_rng_state()
        list(ViewLoader(TRANSFORMS, workers).load([[ImageView(splits["path"][0], SHA256, 3)]]))
        assert torch.equal(torch.random.get_rng_state(), state)


def _view(image: ImageView) -> torch.Tensor:
    if image.view is None:
        return evaluation_view(image.path, TRANSFORMS.preprocessing)
    return training_view(image.path, TRANSFORMS, image.seed(TRANSFORMS))
