"""Workers that share each batch learn what one process does."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import nn

from conftest import child_process
from helpers.training import (
    EVERYTHING,
    FROZEN_NORM,
    HEAD,
    network_of,
    parameters,
    transforms,
    without_dropout,
)
from thawline.options import Phase
from thawline.thaw.cache import ActivationCache
from thawline.training import data_parallel
from thawline.training.loop import train
from thawline.training.setup import prepare

WORKERS = 2
WEIGHED = {"class_weights": "balanced", "gradient_accumulation_steps": 2}
WEIGHED |= {"clip_norm": 0.5, "ema_decay": 0.9}
SLOW_RESNET = pytest.param("timm/resnet10t", {}, marks=pytest.mark.slow)


def run(splits: pd.DataFrame, folder: Path, backbone: str, phase: Phase, changes: dict) -> Any:
    """Train without dropout, of which every worker draws its own."""
    network, store = without_dropout(network_of(backbone)), ActivationCache(folder / "store", 1)
    chosen = parameters(views=2, **{"batch_size": 10, "optimizer": "sgd", **changes})
    return train(prepare(chosen, network, splits, transforms(), store), [HEAD, phase])


def meet(rank: int, folder: Path) -> None:
    """Become one of the workers."""
    if sys.platform == "linux":  # a machine need not know its own name
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORKERS)


def _work(rank: int, folder: Path, splits: pd.DataFrame, *arguments: Any) -> None:
    logging.disable()
    torch.set_num_threads(1)
    meet(rank, folder)
    result = run(splits, folder, *arguments)
    torch.save((result.last, result.best, result.history.to_dict()), folder / f"{rank}.pt")
    dist.destroy_process_group()


def on_workers(target: Callable[..., None], folder: Path, *arguments: Any) -> list[Any]:
    """Return what each of two processes has saved."""
    processes = [child_process(target, rank, folder, *arguments) for rank in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WORKERS
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


@pytest.mark.parametrize(
    ("backbone", "changes"), [("helpers.networks:SmallNet", WEIGHED), SLOW_RESNET]
)
def test_two_workers_learn_what_one_does(
    splits: pd.DataFrame, tmp_path: Path, backbone: str, changes: dict
) -> None:
    alone = run(splits, tmp_path / "alone", backbone, FROZEN_NORM, changes)
    (last, _, history), other = on_workers(_work, tmp_path, splits, backbone, FROZEN_NORM, changes)
    for name, tensor in alone.last.items():
        torch.testing.assert_close(last[name], tensor, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, other[0][name]) for name, tensor in last.items())
    for column in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
        found = pd.Series(history[column])
        pd.testing.assert_series_equal(found, alone.history[column], check_names=False, atol=1e-5)


def test_where_batch_norm_sees_shares_workers_hold_the_same_network_all_the_same(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    images = int((splits["split"] == "train").sum())
    changes = {"ema_decay": 0.9, "batch_size": images - 3}  # three are too few for two workers
    arguments = (splits, "timm/resnet10t", EVERYTHING, changes)
    (last, best, _), other = on_workers(_work, tmp_path, *arguments)
    assert all(torch.equal(tensor, other[0][name]) for name, tensor in last.items())
    assert all(torch.equal(tensor, other[1][name]) for name, tensor in best.items())


def test_one_process_alone_shares_with_nobody() -> None:
    assert data_parallel.local_slice(np.arange(3)).tolist() == [0, 1, 2]
    assert data_parallel.all_reduce_sum(0.1, 2, device=torch.device("cpu")) == (0.1, 2)
    network = nn.Linear(1, 1)
    assert data_parallel.wrap_for_workers(network, sync_batch_norm=True) is network
