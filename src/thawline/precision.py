"""Keep float32 what it is called: GPUs since Ampere round it to TF32, with 10 bits of mantissa."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

FULL = "ieee"


def _rounding() -> tuple[Any, ...]:
    """Return what rounds float32: cuDNN does so by default, matrix products where asked to."""
    cudnn: Any = torch.backends.cudnn
    return cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul


def use_full_float32() -> None:
    """Compute float32 in full precision on every GPU for the rest of the process."""
    for backend in _rounding():
        backend.fp32_precision = FULL


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 in full precision on every GPU for a while."""
    before = [backend.fp32_precision for backend in _rounding()]
    use_full_float32()
    try:
        yield
    finally:
        for backend, precision in zip(_rounding(), before, strict=True):
            backend.fp32_precision = precision
