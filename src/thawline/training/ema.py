"""Keep a moving average of what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightEma:
    """An exponential moving average of tensors that an optimizer moves.

    The decay of update t is at most (1 + t) / (10 + t), as in timm's ModelEmaV3, so that the
    average of a short training is not mostly its beginning (Polyak and Juditsky 1992).

    Attributes:
        averages: of the tensors, in their order.
        updates: made so far.
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float) -> None:
        """Take floating-point tensors, at whose values the averages begin, and a decay below 1."""
        self._tensors, self._decay = list(tensors), decay
        self.averages = [tensor.detach().clone() for tensor in tensors]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards what the tensors are now."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, self._tensors, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the tensors, in place."""
        for average, tensor in zip(self.averages, self._tensors, strict=True):
            kept = tensor.clone()
            tensor.copy_(average)
            average.copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the tensors hold the averages for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
