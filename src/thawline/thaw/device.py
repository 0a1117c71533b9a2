"""Choose the device and the precision to compute in, and keep its memory."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from thawline.errors import ParameterError
from thawline.options import TrainingOptions

logger = logging.getLogger(__name__)

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # numbers of mallopt's parameters, from malloc.h
MAX_KEPT_TENSOR_BYTES = 2**30
MAX_KEPT_BYTES = 2**31 - 1  # the most that mallopt takes

# The same for a process that is yet to start, and that computes in a thread of its own: threads
# share one heap, since the heaps of others than the first take tensors of up to 64 MB only.
MALLOC_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(MAX_KEPT_TENSOR_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(MAX_KEPT_BYTES),
}


def make_accelerator(options: TrainingOptions) -> Accelerator:
    """Return the device and the precision; `auto` is bf16 if the hardware has it, else fp32.

    Raises:
        ParameterError: when the device is not available.
    """
    available = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[options.device]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ParameterError(
            f"training.device: '{options.device}' is not available here (possible: {there})."
        )
    use_full_float32()
    # accelerate keeps its settings for the life of the process; a notebook or a test may train
    # twice with different ones.
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = options.device == "cpu" or (
        options.device == "auto" and not (available["cuda"] or available["mps"])
    )
    if options.precision == "auto":
        native = _computes_bf16_on_cpu() if on_cpu else _computes_bf16_on_cuda()
        precision = "bf16" if native else "no"
    else:
        precision = {"fp32": "no"}.get(options.precision, options.precision)
    if on_cpu and precision == "fp16":
        logger.warning("training.precision: CPUs compute fp16 slowly; bf16 or fp32 is faster.")
    return Accelerator(cpu=on_cpu, mixed_precision=precision)


def compute_dtype(accelerator: Accelerator) -> torch.dtype:
    """Return what most of a network computes in."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
        accelerator.mixed_precision, torch.float32
    )


def autocast(accelerator: Accelerator) -> torch.autocast:
    """Return a context in which a network computes in `compute_dtype`, also fp16 on a CPU."""
    dtype = compute_dtype(accelerator)
    return torch.autocast(accelerator.device.type, dtype, enabled=dtype != torch.float32)


def use_full_float32() -> None:
    """Compute float32 in full precision on every GPU for the rest of the process.

    By PyTorch's older switches: if the newer ones (`fp32_precision`) are set as well, whatever
    still reads the older ones raises, such as `torch.export`.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free on the CPU instead of returning it to the system.

    By default glibc returns blocks over 32 MB at once. Mapping and clearing them again in every
    step takes as long as computing. See mallopt(3), and PyTorch's performance tuning guide. Other C
    libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    mallopt(MMAP_THRESHOLD, MAX_KEPT_TENSOR_BYTES)
    mallopt(TRIM_THRESHOLD, MAX_KEPT_BYTES)


def _computes_bf16_on_cpu() -> bool:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _computes_bf16_on_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
