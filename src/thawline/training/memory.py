"""Keep the memory of one training step for the next."""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # numbers of mallopt's parameters, from malloc.h
LARGEST = 2**30  # bytes of a tensor whose memory is kept
KEPT = 2**31 - 1  # bytes at the top of the heap that are not given back: the most mallopt takes

# The same for a process that is yet to begin, and that computes in a thread of its own: threads
# share one heap, since the heaps of others than the first take tensors of up to 64 MB only.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(LARGEST),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT),
}


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free on the CPU instead of giving it back to the system.

    By itself it gives back at once what is larger than 32 MB. The system then maps and clears the
    memory of the same activations in every step, which takes as long as computing them. Threads
    that are running already, other C libraries and allocators in glibc's place stay as they are.

    See mallopt(3), and "Switching memory allocator" in PyTorch's performance tuning guide.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    mallopt(MMAP_THRESHOLD, LARGEST)
    mallopt(TRIM_THRESHOLD, KEPT)
