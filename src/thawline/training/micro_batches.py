"""Compute a batch in parts where the device has no memory for all of its images at once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thawline.errors import TrainingError
from thawline.thaw.cache import Tensors

logger = logging.getLogger(__name__)

Loss = nn.CrossEntropyLoss | nn.NLLLoss
Answer = Callable[..., Tensor]
Backward = Callable[[Tensor], None]


def add_gradients(
    network: nn.Module,
    trained: Sequence[nn.Parameter],
    answer: Answer,
    loss_function: Loss,
    inputs: Tensors,
    targets: Tensor,
    whole: Any,
    backward: Backward,
    size: int | None = None,
    may_divide: bool = True,
) -> tuple[Tensor, Tensor, int | None]:
    """Add the gradients of a batch's mean loss to those there are, in parts if need be.

    To the optimizer parts are the same as the batch, but batch norm in training takes the
    statistics of each part, and those it keeps have seen the part that did not fit as well.

    Args:
        network: of which some is trained.
        trained: its parameters that have gradients.
        answer: the outputs (N, C) float32 for `inputs`.
        loss_function: a mean over the images.
        inputs: of `answer`, (N, …) each.
        targets: (N,) class indices, or (N, C) shares of the classes.
        whole: what the mean divides by: `loss_weight` of the batch that this is, or is a share of.
        backward: computes gradients of a loss; takes the summand of each part.
        size: images that the device has memory for at once; None: all.
        may_divide: whether parts can do; not where workers wait for each other in every layer.

    Returns:
        The mean loss, or this share's summand of it, the outputs (N, C), and the size for the next
        batch.

    Raises:
        RuntimeError: when there is no memory for the smallest part.
    """
    before = [p.grad.clone() if p.grad is not None else None for p in trained]
    while True:
        parts = count_parts(network, len(targets), size)
        try:
            loss, outputs = _add_in_parts(
                answer, loss_function, inputs, targets, whole, parts, backward
            )
            return loss, outputs, size
        except RuntimeError as error:
            if not may_divide or not should_reduce_batch_size(error):
                raise
            at_once = math.ceil(len(targets) / parts)
            size = at_once // 2
            if count_parts(network, len(targets), size) == parts:
                raise
        # Not above: there the error still holds what did not fit.
        for parameter, gradient in zip(trained, before, strict=True):
            parameter.grad = gradient.clone() if gradient is not None else None
        clear_device_cache(garbage_collection=True)
        logger.warning(
            "The device has no memory for %d images at once: from here on it computes %d at a time"
            " and adds up their gradients. To the optimizer a batch is the same as before; batch"
            " norm in training sees %d images",
            at_once,
            size,
            size,
        )


def count_parts(network: nn.Module, images: int, size: int | None) -> int:
    """Return in how many parts a batch is computed; batch norm cannot train on a single image."""
    if size is None:  # as nearly always; looking through a network would double a short step
        return 1
    trains_norm = any(isinstance(m, _BatchNorm) and m.training for m in network.modules())
    wanted = math.ceil(images / max(1, size))
    return max(1, min(wanted, images // 2 if trains_norm else images))


def loss_weight(loss_function: Loss, targets: Tensor) -> Any:
    """Return what the mean over a batch divides by: images, or the weights of their classes."""
    weights = loss_function.weight
    if weights is None or targets.ndim > 1:
        return len(targets)
    return weights[targets].sum()


@contextmanager
def explain_memory(epoch: int) -> Iterator[None]:
    """Say what to do where the device has no memory even for the smallest part of a batch.

    Raises:
        TrainingError: in place of the device's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise TrainingError(
            f"The device ran out of memory in epoch {epoch}, however small a part of a batch it"
            " computed at once. End what else uses it, or lower transforms.size, or take a smaller"
            f" model.backbone or a strategy that freezes more. ({str(error).splitlines()[0]})"
        ) from error


def _add_in_parts(
    answer: Answer,
    loss_function: Loss,
    inputs: Tensors,
    targets: Tensor,
    whole: Any,
    parts: int,
    backward: Backward,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of so many parts of a batch; return its mean loss and its outputs."""
    loss_sum, outputs = torch.zeros((), device=targets.device), []
    columns = [tensor.tensor_split(parts) for tensor in (*inputs, targets)]
    for *some, wanted in zip(*columns, strict=True):
        answers = answer(*some)
        loss = loss_function(answers, wanted) * (loss_weight(loss_function, wanted) / whole)
        backward(loss)
        loss_sum += loss.detach()
        outputs.append(answers.detach())
    return loss_sum, torch.cat(outputs)
