"""Share a training among the workers of `torch.distributed`.

Every worker holds the whole network and computes its slice of each batch. Without
`torch.distributed`, this process is the only worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

Items = TypeVar("Items", Tensor, np.ndarray, range)


def world_size() -> int:
    """Return the number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this worker, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_slice(items: Items) -> Items:
    """Return this worker's share of some items: every nth one."""
    return items[rank() :: world_size()]


def all_reduce_sum(*values: float, device: torch.device) -> tuple[float, ...]:
    """Return the sums of some numbers over the workers, in float64 if the device has it."""
    if world_size() == 1:
        return values
    dtype = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.tensor(values, dtype=dtype, device=device)
    dist.all_reduce(sums)
    return tuple(sums.tolist())


def wrap_for_workers(above: nn.Module, sync_batch_norm: bool) -> nn.Module:
    """Return the part above the thaw line such that workers average their gradients.

    A traced graph uses all of its parameters in every pass; an untraced network need not.
    """
    if world_size() == 1:
        return above
    if sync_batch_norm and next(above.parameters()).is_cuda:
        above = convert_sync_batchnorm(above)
    return DistributedDataParallel(
        above,
        broadcast_buffers=False,  # averaged once per epoch
        find_unused_parameters=not isinstance(above, fx.GraphModule),
    )


@contextmanager
def sync_gradients(above: nn.Module, wanted: bool) -> Iterator[None]:
    """Accumulate the gradients of this worker alone within the context, unless `wanted`."""
    if wanted or not isinstance(above, DistributedDataParallel):
        yield
    else:
        with above.no_sync():
            yield


@torch.no_grad()
def average_batch_norm_stats(network: nn.Module, ema: ModelEmaV3 | None) -> None:
    """Replace running statistics, of this worker's images alone, by their mean over the workers."""
    if world_size() == 1:
        return
    copies = [network, *([ema.module] if ema else [])]
    for name, module in network.named_modules():
        for each in copies if module.training else ():
            for buffer in each.get_submodule(name).buffers(recurse=False):
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer.div_(world_size())


def seed_own_dropout(seed: int, epoch: int) -> None:
    """Give every worker but the first, whose state alone is saved, random numbers of its own."""
    if rank():
        digest = hashlib.sha256(f"{seed} {rank()} {epoch}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
