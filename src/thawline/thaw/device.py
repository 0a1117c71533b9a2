"""Choose the device and the precision to compute in, and keep its memory."""

import ctypes
import logging
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thawline.errors import ParameterError
from thawline.options import TrainingOptions

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # numbers of mallopt's parameters, from malloc.h
# Tables of the features of 100,000 images take more, and would leave holes in the heap.
MAX_KEPT_TENSOR_BYTES = 2**28
MAX_KEPT_BYTES = 2**31 - 1  # the most that mallopt takes

# The same for a process that is yet to start, and that computes in a thread of its own: threads
# share one heap, since the heaps of others than the first take tensors of up to 64 MB only.
MALLOC_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(MAX_KEPT_TENSOR_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(MAX_KEPT_BYTES),
}


class Accelerator(NamedTuple):
    """The device that computes, and the dtype that most of a network computes in."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """Return a context in which a network computes in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def as_input(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return tensors that may be in a reduced precision as this network takes them."""
        is_reduced = self.dtype != torch.float32
        return tensors if is_reduced else tuple(tensor.float() for tensor in tensors)


def make_accelerator(options: TrainingOptions) -> Accelerator:
    """Return the device and the precision; `auto` is bf16 if the hardware has it, else fp32.

    Raises:
        ParameterError: when the device is not available.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available = [*(name for name, is_there in found.items() if is_there), "cpu"]
    device = available[0] if options.device == "auto" else options.device
    if device not in available:
        possible = ", ".join(["auto", *available])
        raise ParameterError(
            f"training.device: '{device}' is not available here (possible: {possible})."
        )
    if device == "cpu":
        keep_freed_memory()
    use_full_float32()
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if _computes_bf16(device) else "fp32"
    if (device, precision) == ("cpu", "fp16"):
        logger.warning("training.precision: CPUs compute fp16 slowly; bf16 or fp32 is faster.")
    return Accelerator(torch.device(device), DTYPES[precision])


def use_full_float32() -> None:
    """Compute float32 in full precision on every GPU for the rest of the process.

    By PyTorch's older switches: if the newer ones (`fp32_precision`) are set as well, whatever
    still reads the older ones raises, such as `torch.export`.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def synchronized_time() -> float:
    """Return `time.perf_counter()` once an accelerator has done what it was asked for."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free on the CPU instead of returning it to the system.

    By default glibc returns blocks over 32 MB at once. Mapping and clearing them again in every
    step takes as long as computing. See mallopt(3) and PyTorch's performance tuning guide.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    mallopt(MMAP_THRESHOLD, MAX_KEPT_TENSOR_BYTES)
    mallopt(TRIM_THRESHOLD, MAX_KEPT_BYTES)


def _computes_bf16(device: str) -> bool:
    """Return whether the hardware itself computes bf16."""
    if device == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
