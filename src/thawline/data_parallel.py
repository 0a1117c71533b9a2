"""Share the batches of a training among workers, so that they learn what one would.

Every worker holds the whole network. It computes its share of each batch, and the gradients of all
shares are added up before the optimizer moves, so that all of them hold the same network after it.
`torch.distributed` says which worker this process is; where it has not been set up, it is the only
one and nothing here does anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

Items = TypeVar("Items", Tensor, np.ndarray, range)

ARGUMENTS = inspect.signature(batch_norm)


def workers() -> int:
    """Return how many processes share the training."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this one, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(items: Items) -> Items:
    """Return those of some items that fall to this worker: every nth one."""
    return items[rank() :: workers()]


def add_up(*values: float, device: torch.device) -> tuple[float, ...]:
    """Return the sums over the workers of some numbers, computed in float64 where there is it."""
    if workers() == 1:
        return values
    dtype = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.tensor(values, dtype=dtype, device=device)
    dist.all_reduce(sums)
    return tuple(sums.tolist())


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of this worker's share by the sums over all shares."""
    if workers() > 1:
        _reduce([p.grad for p in parameters if p.grad is not None])


def average_statistics(network: nn.Module) -> None:
    """Replace what each batch norm in training has seen of its shares by the mean over workers."""
    if workers() == 1:  # as nearly always; looking through a network would double a short step
        return
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
    statistics = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
    _reduce([statistic.div_(workers()) for statistic in statistics])


class SyncedBatchNorm(TorchFunctionMode):
    """While it is entered, batch norm in training takes the statistics of all workers' shares.

    `torch.nn.SyncBatchNorm` does so on GPUs only, and in the place of modules that stages, freeze
    report and thaw line know by their names.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute batch norm in training, and leave all else as it is."""
        if func is batch_norm:
            call = ARGUMENTS.bind(*args, **(kwargs or {}))
            call.apply_defaults()
            if call.arguments.pop("training"):
                return _batch_norm(**call.arguments)
        return func(*args, **(kwargs or {}))


class _Sum(torch.autograd.Function):
    """The sum of the workers' tensors; what each of them adds has the same gradient, likewise."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(tensor: Tensor) -> Tensor:
    whole = tensor.detach().clone()
    dist.all_reduce(whole)
    return whole


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Return `torch.nn.functional.batch_norm` of all workers' inputs (N, C, …), this one's part."""
    dims = [0, *range(2, input.ndim)]
    shape = [1, -1] + [1] * (input.ndim - 2)
    values = input.float()
    count = values.new_tensor([values.numel() // values.shape[1]])
    sums = _Sum.apply(torch.cat([values.sum(dims), count]))
    mean, total = sums[:-1] / sums[-1], sums[-1].detach()
    centred = values - mean.view(shape)
    squares = _Sum.apply(centred.square().sum(dims))
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((squares / (total - 1)).to(running_var.dtype), momentum)
    result = centred * (squares / total + eps).rsqrt().view(shape)
    if weight is not None:
        result = result * weight.view(shape)
    if bias is not None:
        result = result + bias.view(shape)
    return result.to(input.dtype)


def _reduce(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over the workers, sent as one."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))
