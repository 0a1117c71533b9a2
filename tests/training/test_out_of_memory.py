"""An epoch that does not fit into memory is repeated on smaller micro-batches, or explained."""

import itertools

import pandas as pd
import pytest
import torch
from torch import nn

from helpers.training import (
    EVERYTHING,
    FROZEN_NORM,
    network_of,
    prepared,
    run,
    same,
    without_dropout,
)
from thawline.errors import TrainingError
from thawline.options import LrFindOptions
from thawline.training import setup, state
from thawline.training.loop import train
from thawline.training.lr_find import find_lr
from thawline.training.progress import TrainingProgress


class Memory:
    """Stands for a device that has memory for so many images in training."""

    def __init__(self, images: int) -> None:
        self.images, self.asked = images, []

    def __call__(self, _: nn.Module, inputs: tuple) -> None:
        if torch.is_grad_enabled():
            self.asked.append(len(inputs[0]))
            if len(inputs[0]) > self.images:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_accumulation_steps": 2}, {"class_weights": "balanced", "label_smoothing": 0.1}],
    ids=str,
)
def test_where_memory_is_short_parts_of_a_batch_give_the_same_weights(
    splits: pd.DataFrame, changes: dict, caplog: pytest.LogCaptureFixture
) -> None:
    uneven = splits.groupby(["split", "label"]).head(8).iloc[1:]
    results = []
    for memory in (Memory(100), Memory(3)):
        network = without_dropout(network_of())
        network.layer2[0].register_forward_pre_hook(memory)
        context = prepared(uneven, network, optimizer="sgd", **changes)
        results.append(train(context, [FROZEN_NORM]))
    assert memory.asked[:5] == [8, 8, 4, 2, 2] and max(memory.asked[4:]) <= 3  # one is timed
    assert "repeating it with micro-batches of 2 images" in caplog.text
    whole, parts = results
    for name, tensor in whole.last.items():
        torch.testing.assert_close(parts.last[name], tensor, rtol=1e-4, atol=1e-5)
    losses = (result.history["train_loss"].tolist() for result in results)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)


def test_a_device_without_memory_for_two_images_is_said_to_be_too_small(
    splits: pd.DataFrame,
) -> None:
    network = network_of()
    network.layer2[0].register_forward_pre_hook(Memory(1))
    with pytest.raises(TrainingError, match=r"Out of device memory in epoch 1.*transforms\.size"):
        train(prepared(splits, network), [EVERYTHING])


def test_a_device_without_memory_for_averages_is_said_to_be_too_small(
    splits: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(setup, "make_ema", run_out)
    with pytest.raises(TrainingError, match=r"while phase 1 is prepared.*training\.ema_decay"):
        run(splits, EVERYTHING, ema_decay=0.9)


def test_a_range_test_without_memory_for_a_batch_says_what_to_lower(splits: pd.DataFrame) -> None:
    network = network_of()
    network.layer2[0].register_forward_pre_hook(Memory(1))
    with pytest.raises(TrainingError, match=r"range test.*training\.batch_size"):
        find_lr(prepared(splits, network), EVERYTHING, LrFindOptions())


def test_an_epoch_is_repeated_as_if_it_had_not_begun(
    splits: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments, averages, running statistics and dropout had moved in two steps."""
    changes = {"ema_decay": 0.9, "clip_norm": 1.0}
    network, calls = network_of(), itertools.count(1)

    def run_out_once(*_: object) -> None:
        if torch.is_grad_enabled() and next(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    network.layer2[0].register_forward_pre_hook(run_out_once)
    repeated = train(prepared(splits, network, **changes), [EVERYTHING])
    monkeypatch.setattr(state, "TrainingProgress", lambda micro_batch: TrainingProgress(4))
    undisturbed = run(splits, EVERYTHING, **changes)
    assert same(repeated.last, undisturbed.last) and same(repeated.best, undisturbed.best)
    assert not same(repeated.last, network_of().state_dict())
