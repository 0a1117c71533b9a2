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
from torch.autograd.function import once_differentiable
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
                return _SyncedBatchNorm.apply(*call.arguments.values())
        return func(*args, **(kwargs or {}))


class _SyncedBatchNorm(torch.autograd.Function):
    """Batch norm in training of all workers' inputs (N, C, …), this one's part.

    Each worker adds up over its own images with PyTorch's kernels. All of them then exchange three
    numbers a channel forwards and two backwards, once each, since they wait for the slowest there.
    """

    @staticmethod
    def forward(
        context: Any,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        dtype = torch.promote_types(input.dtype, torch.float32)
        zeros = torch.zeros(input.shape[1], dtype=dtype, device=input.device)
        mean, var = zeros, zeros
        if len(input):  # a last batch may have fewer images than there are workers
            # It moves the two vectors by 0, and returns the images' statistics in their precision.
            mean, var = torch.ops.aten.batch_norm_update_stats(input, zeros, zeros + 1, 0.0)
        # In float64, where the difference of squares below does not cancel what float32 has.
        moments = torch.stack([zeros + 1, mean, var + mean.square()]).double()
        moments *= input.numel() // input.shape[1]
        dist.all_reduce(moments)
        count = moments[0]
        mean, square = moments[1:] / count
        var = square - mean.square()
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
        mean, var = mean.to(dtype), var.to(dtype)
        context.save_for_backward(input, weight, mean, var, count.to(dtype))
        context.eps = eps
        return batch_norm(input, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, var, count = context.saved_tensors
        sums = torch.zeros(2, len(mean), dtype=mean.dtype, device=mean.device)
        if len(input):  # sums of the gradient times the normalized input, and of the gradient
            _, *both = torch.ops.aten.native_batch_norm_backward(
                gradient, input, weight, mean, var, None, None, False, context.eps,
                [False, True, True],
            )  # fmt: skip
            sums = torch.stack(both).to(sums.dtype)
        wanted = context.needs_input_grad[3:5]  # of weight and bias, from this worker's images
        own = [of if want else None for of, want in zip(sums.clone(), wanted, strict=True)]
        dist.all_reduce(sums)
        # weight / deviation * (gradient - its mean - normalized input * the mean of their product),
        # as two passes over the images: gradient * scale + (input * slope + constant)
        inverse = (var + context.eps).rsqrt()
        mean_product, mean_gradient = sums / count
        scale = inverse if weight is None else inverse * weight
        slope = -scale * inverse * mean_product
        constant = -scale * mean_gradient - slope * mean
        shape = [1, -1] + [1] * (input.ndim - 2)
        of_input = torch.addcmul(constant.view(shape), input, slope.view(shape))
        of_input.addcmul_(gradient, scale.view(shape))
        return of_input.to(input.dtype), None, None, *own, None, None


def _reduce(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over the workers, sent as one."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))
