"""Batches, losses and mixed images are what the options say."""

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import train_set_of
from helpers.training import options, run
from thawline.data.transforms import make_mix
from thawline.options import AugmentationOptions, Phase
from thawline.training.setup import make_loss


def test_the_loss_fits_what_the_network_yields(splits: pd.DataFrame) -> None:
    uneven = pd.concat([splits, splits[splits["class_index"] == 0]])
    assert isinstance(make_loss(splits, options(), log_probabilities=True), nn.NLLLoss)
    loss = make_loss(uneven, options(class_weights="balanced", label_smoothing=0.1), False)
    assert isinstance(loss, nn.CrossEntropyLoss)
    assert loss.label_smoothing == 0.1
    assert loss.weight.tolist() == pytest.approx([0.75, 1.5])


@given(st.integers(1, 100), st.integers(1, 40), st.integers(0, 2**32))
def test_every_epoch_shows_each_image_once_but_no_batch_of_one(
    length: int, size: int, seed: int
) -> None:
    orders = torch.Generator().manual_seed(seed)
    batches = train_set_of(torch.zeros(length, dtype=torch.int64)).shuffle(orders, size, False, 2)
    seen = [idx for batch in batches for idx in batch]
    assert len(set(seen)) == len(seen) >= length - 1
    assert set(seen) <= set(range(length))
    assert all(1 < len(batch) <= size for batch in batches) or size == 1 or length == 1


def test_soft_labels_and_class_weights_go_together(splits: pd.DataFrame) -> None:
    loss = make_loss(splits, options(class_weights="balanced"), False)
    assert torch.isfinite(loss(torch.zeros(2, 2), torch.tensor([[0.3, 0.7], [1.0, 0.0]])))


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_balanced_sampling_shows_every_class_equally_often(seed: int) -> None:
    labels = torch.tensor([0] * 950 + [1] * 50)
    order = train_set_of(labels).shuffle(torch.Generator().manual_seed(seed), 32, True, 2)
    drawn = labels[[idx for batch in order for idx in batch]]
    assert len(drawn) == 1000
    assert 0.4 < drawn.float().mean() < 0.6


def test_mixed_images_have_shares_of_labels_and_train_without_a_store(
    splits: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 3
    for chosen in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        mix = make_mix(AugmentationOptions(**chosen), 3)
        mixed, shares = mix(images, labels)
        assert mixed.shape == images.shape and shares.shape == (8, 3)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(8))
        # Of each image and its partner, the share that is left equals the label's.
        partners = images.roll(1, 0)
        left = ((mixed - partners) / (images - partners)).mean(dim=(1, 2, 3))
        own = torch.nn.functional.one_hot(labels, 3)
        torch.testing.assert_close(
            shares, left[:, None] * own + (1 - left[:, None]) * own.roll(1, 0), atol=1e-3, rtol=0
        )
    assert make_mix(AugmentationOptions(), 3) is None
    phase = Phase(trainable={"last": 1}, epochs=3, lr=0.01)
    with caplog.at_level("INFO"):
        result = run(splits, phase, mixup=0.2)
    assert "the whole network runs in every step and nothing is cached" in caplog.text
    assert result.history["thaw_line"].unique().tolist() == ["images"]
    assert result.history["val_loss"].iloc[-1] < result.history["val_loss"].iloc[0]
