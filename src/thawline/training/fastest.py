"""Find out how the part above the thaw line is computed fastest here, by a few steps of each way.

It depends on the network, its shapes and the machine: bf16 makes one network twice as fast as
fp32, and another slower.
"""

import json
import logging
import math
import os
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from thawline.data.atomic_write import write_atomic
from thawline.errors import first_line
from thawline.options import TrainingOptions
from thawline.thaw.cutting import restoring
from thawline.thaw.device import DTYPES, Accelerator, synchronized_time
from thawline.thaw.frozen_part import CPU_CHUNK_SIZE
from thawline.thaw.partition import Tensors

logger = logging.getLogger(__name__)

FILE = "speeds.json"  # in the folder of the cache
MIN_SECONDS = 60  # a shorter phase is computed as the hardware suggests
MIN_COMPILED_SECONDS = 900  # a compiler takes about half a minute
MIN_GAIN = 0.9  # times the seconds without it, for which it is taken
NUM_TIMED_STEPS = 2  # of which the faster counts: the first one allocates, and compiles


class Way(NamedTuple):
    """How a part of a network is computed."""

    precision: str  # a key of DTYPES
    is_compiled: bool = False

    def __str__(self) -> str:
        """Return it for the log."""
        return f"{self.precision} compiled" if self.is_compiled else self.precision


def possible_precisions(options: TrainingOptions, accelerator: Accelerator) -> list[str]:
    """Return the precisions of which the fastest is not known; the first is the hardware's own."""
    usual = next(name for name, dtype in DTYPES.items() if dtype == accelerator.dtype)
    if options.precision != "auto":
        return [usual]
    if accelerator.device.type == "cuda" and usual == "fp32":
        return ["fp32", "fp16"]
    return [usual, "fp32"] if usual == "bf16" else [usual]


def find_fastest(
    above: nn.Module,
    boundary: Tensors,
    accelerator: Accelerator,
    options: TrainingOptions,
    steps: int,
    folder: Path | None,
) -> Way:
    """Return the fastest way that the options allow, timed by steps on `boundary`.

    On a CPU, steps on its first images suffice, since time grows with their number there.

    What is found is kept in a file of `folder`, if there is one, by network, shapes, number of
    steps, device and versions, so that the same is taken again, as by a resumed training. Nothing
    is compared where there is no choice, or `steps` of them take less than a minute. `above` and
    the random generators stay as they are.
    """
    ways = [Way(p, options.compile is True) for p in possible_precisions(options, accelerator)]
    if len(ways) == 1 and options.compile != "auto":
        return ways[0]
    images = len(boundary[0])
    if accelerator.device.type == "cpu":
        boundary = tuple(tensor[:CPU_CHUNK_SIZE] for tensor in boundary)
    steps = math.ceil(steps * images / len(boundary[0]))  # in steps of the timed size
    file = folder / FILE if folder else None
    key = f"{steps} steps, {_describe(above, boundary, accelerator, options)}"
    known = json.loads(file.read_text("utf-8")) if file and file.is_file() else {}
    if key in known:
        return Way(*known[key])
    with restoring(above):
        best = _compare(partial(_time_steps, above, boundary, accelerator), ways, options, steps)
    if file:
        text = json.dumps(known | {key: best}, indent=2)
        with suppress(OSError):  # of which the cache warns: its disk is full or cannot be written
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, lambda path: path.write_text(text, "utf-8"))
    return best


def _compare(
    time_steps: Callable[[Way, int], float], ways: list[Way], options: TrainingOptions, steps: int
) -> Way:
    """Return the fastest way, or the first one if `steps` of it take less than a minute."""
    first = time_steps(ways[0], 1)
    if first * steps < MIN_SECONDS or first == math.inf:
        return ways[0]
    seconds = {way: time_steps(way, NUM_TIMED_STEPS) for way in ways}
    best = min(seconds, key=lambda way: seconds[way])
    is_long = seconds[best] * steps > MIN_COMPILED_SECONDS
    if options.compile == "auto" and is_long and _has_compiler():
        compiled = Way(best.precision, True)
        seconds[compiled] = time_steps(compiled, NUM_TIMED_STEPS)
        best = compiled if seconds[compiled] < MIN_GAIN * seconds[best] else best
    told = ", ".join(f"{way} {each:.2f} s" for way, each in seconds.items())
    logger.debug("A step takes %s. The fastest is taken", told)
    return best


def computed(above: nn.Module, way: Way) -> nn.Module:
    """Return a part as it is or compiled, with the same parameters."""
    return torch.compile(above) if way.is_compiled else above  # type: ignore[return-value]


def _time_steps(
    above: nn.Module, boundary: Tensors, accelerator: Accelerator, way: Way, count: int
) -> float:
    """Return the seconds of the fastest of `count` steps; infinity if they fail."""
    part, seconds = computed(above, way), math.inf
    labels = torch.zeros(len(boundary[0]), dtype=torch.long, device=accelerator.device)
    accelerator = accelerator._replace(dtype=DTYPES[way.precision])
    try:
        for _ in range(count):
            start = synchronized_time()
            with accelerator.autocast():
                inputs = accelerator.as_input(tuple(tensor.clone() for tensor in boundary))
                logits = part(*inputs).float()
            cross_entropy(logits, labels).backward()
            above.zero_grad()
            seconds = min(seconds, synchronized_time() - start)
    except RuntimeError as error:  # also out of memory, and all errors of the compiler
        logger.debug("%s cannot be timed: %s", way, first_line(error))
    finally:
        above.zero_grad()
    return seconds


def _has_compiler() -> bool:
    """Return whether PyTorch can compile: on a CPU it needs a compiler of C++."""
    return torch.cuda.is_available() or any(
        map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))
    )


def _describe(
    above: nn.Module, boundary: Tensors, accelerator: Accelerator, options: TrainingOptions
) -> str:
    """Return all that the speed depends on, as a text."""
    device, threads = platform.machine(), torch.get_num_threads()
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    trained = sum(p.numel() for p in above.parameters() if p.requires_grad)
    shapes = [(*tensor.shape, str(tensor.dtype)) for tensor in boundary]
    wanted = f"precision {options.precision}, compile {options.compile}"
    return (
        f"{sum(1 for _ in above.modules())} modules, {trained} trained parameters, {shapes},"
        f" {device}, {threads} threads, torch {torch.__version__}, {wanted}"
    )
