"""Is the precision that training takes the fastest? Each way beside the one that is chosen.

    python -m benchmarks.precision [--backbones resnet18 vit_b_16] [--batch-size 32] [--steps 5]
        [--no-compile]

Networks have random weights and are trained as a whole at the size of their pretrained weights.
Seconds are those of the fastest of `--steps` forward and backward passes. Each network runs in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import time

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import common
from thawline.options import TrainingOptions
from thawline.thaw.device import DTYPES, Accelerator, keep_freed_memory, make_accelerator
from thawline.training.fastest import Way, computed, find_fastest, possible_precisions

BACKBONES = (
    "resnet18", "resnet50", "timm/tf_efficientnet_lite0", "mobilenet_v3_large", "convnext_tiny",
    "timm/vit_small_patch16_224",
)  # fmt: skip
LONG = 10**6  # steps, so that a compiler pays


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbones", nargs="*", default=BACKBONES)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave PyTorch's compiler out")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = ["--batch-size", arguments.batch_size, "--steps", arguments.steps]
    sizes += ["--no-compile"] * arguments.no_compile
    if arguments.one:
        print(json.dumps(measure(arguments.backbones[0], arguments)))
        return
    rows = [
        common.in_a_process_of_its_own("benchmarks.precision", *sizes, "--backbones", backbone)
        for backbone in track(arguments.backbones, "Measuring", console=Console(stderr=True))
    ]
    print(common.markdown(pd.DataFrame(rows)))


def measure(backbone: str, arguments: argparse.Namespace) -> dict[str, str]:
    """Return the seconds of a step in each way, what is chosen, and how it compares to the best."""
    keep_freed_memory()
    options = TrainingOptions(compile=False if arguments.no_compile else "auto")
    accelerator = make_accelerator(options)
    network, transforms = common.build(backbone, "full")
    network.to(accelerator.device).to(memory_format=torch.channels_last).train()
    size = transforms.preprocessing.size
    images = torch.randn(arguments.batch_size, 3, size, size, device=accelerator.device)
    images = images.contiguous(memory_format=torch.channels_last)
    chosen = find_fastest(network, (images,), accelerator, options, LONG, folder=None)
    ways = [Way(p, c) for c in (False, True) for p in possible_precisions(options, accelerator)]
    ways = [way for way in ways if not (way.is_compiled and arguments.no_compile)]
    seconds = {way: step_seconds(network, images, accelerator, way, arguments) for way in ways}
    shown = {str(way): f"{each:.2f}" for way, each in seconds.items()}
    ratio = seconds[chosen] / min(seconds.values())
    return {"network": backbone, **shown, "chosen": str(chosen), "chosen / fastest": f"{ratio:.2f}"}


def step_seconds(
    network: nn.Module,
    images: torch.Tensor,
    accelerator: Accelerator,
    way: Way,
    arguments: argparse.Namespace,
) -> float:
    """Return the seconds of the fastest forward and backward pass."""
    part, times = computed(network, way), []
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    for _ in range(arguments.steps + 1):
        start = time.perf_counter()
        with accelerator._replace(dtype=DTYPES[way.precision]).autocast():
            logits = part(images).float()
        cross_entropy(logits, labels).backward()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
        network.zero_grad()
    return min(times[1:])


if __name__ == "__main__":
    main()
