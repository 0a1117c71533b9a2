"""Share each batch of a training among the workers of `torch.distributed`, which may be one."""

import hashlib
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import fx, nn
from torch.nn.parallel import DistributedDataParallel

from thawline.networks.all_stages import find_all_stages


def world_size() -> int:
    """Return the number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this worker, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_slice(positions: np.ndarray) -> np.ndarray:
    """Return this worker's share of some images: every nth one."""
    return positions[rank() :: world_size()]


def all_reduce_sum(*values: float, device: torch.device) -> tuple[float, ...]:
    """Return the sums of some numbers over the workers."""
    if world_size() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return tuple(sums.tolist())


def wrap_for_workers(above: nn.Module, sync_batch_norm: bool) -> nn.Module:
    """Return the part above the thaw line such that workers average their gradients.

    A traced graph uses all of its parameters in every pass; an untraced network need not.
    """
    if world_size() == 1:
        return above
    # Of a whole network it would replace modules whose outputs a head on all stages reads by hooks.
    has_hooks = not isinstance(above, fx.GraphModule) and find_all_stages(above)
    if sync_batch_norm and next(above.parameters()).is_cuda and not has_hooks:
        above = convert_sync_batchnorm(above)
    return DistributedDataParallel(
        above,
        broadcast_buffers=False,  # averaged once per epoch
        find_unused_parameters=not isinstance(above, fx.GraphModule),
    )


def sync_gradients(above: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """Return a context in which workers average gradients if `wanted`, else keep their own."""
    if isinstance(above, DistributedDataParallel) and not wanted:
        return above.no_sync()
    return nullcontext()


@torch.no_grad()
def average_batch_norm_stats(network: nn.Module, ema: ModelEmaV3 | None) -> None:
    """Replace running statistics, of this worker's images alone, by their mean over the workers."""
    if world_size() == 1:
        return
    in_training = [name for name, module in network.named_modules() if module.training]
    for part in (network, ema.module) if ema else (network,):
        for name in in_training:
            for buffer in part.get_submodule(name).buffers(recurse=False):
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer.div_(world_size())


def seed_own_dropout(seed: int, epoch: int) -> None:
    """Give every worker but the first, whose state alone is saved, random numbers of its own."""
    if rank():
        digest = hashlib.sha256(f"{seed} {rank()} {epoch}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
