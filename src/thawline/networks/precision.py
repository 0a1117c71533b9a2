"""Keep float32 what it is called: GPUs since Ampere round it to TF32, with 10 bits of mantissa."""

from __future__ import annotations

import torch


def use_full_float32() -> None:
    """Compute float32 in full precision on every GPU for the rest of the process.

    By PyTorch's older switches: if the newer ones (`fp32_precision`) are set as well, whatever
    still reads the older ones raises, such as `torch.export`.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
