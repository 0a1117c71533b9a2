"""Measure each part of Thawline on a GPU, beside a plain training loop and the bare network.

    python -m benchmarks.gpu [--sections line epochs] [--json gpu.json] [--dry-run]

All images are generated JPEG files. Weights are random if they would have to be downloaded: speed
depends on neither. It takes some minutes on one GPU. `--dry-run` takes every step on the CPU, at
sizes that take seconds; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks import common, tutorial
from benchmarks.memory import generate
from thawline.data.loading import MAX_WORKERS, ImageView, ViewLoader
from thawline.data.transforms import Transforms, build_transforms, normalize
from thawline.networks.libraries import BUNDLED_BACKBONE
from thawline.options import EngineOptions, TransformOptions
from thawline.thaw.cache import ActivationCache
from thawline.thaw.device import Accelerator, use_full_float32
from thawline.thaw.features import FeatureLoader
from thawline.thaw.line import ThawLine, split_at_thaw_line
from thawline.training import ray_engine
from thawline.training.loop import train
from thawline.training.setup import prepare

ROOT = Path(__file__).parents[1]
PIXELS = (500, 375)  # width and height of a generated image, about those of ImageNet
PRECISIONS = {
    "fp32": torch.float32,
    "TF32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
ROUNDS = 3  # of which the fastest counts
Rows = list[dict[str, Any]]


@dataclass
class Scale:
    """Device and sizes of all measurements.

    Attributes:
        device: the device that computes.
        folder: for generated files.
        splits: table of the images, 9 in 10 for training.
        backbones: that are measured.
        batch: images per training step.
        large_batch: images per forward pass that occupies the whole device.
        size: px, side of the network's input; None: that of its weights.
        epochs: per training.
        workers: decoding processes.
        compiler: backend of torch.compile.
        repeats: timed passes, after as many to warm up.
    """

    device: torch.device
    folder: Path
    splits: pd.DataFrame
    backbones: Sequence[str] = ("resnet18", "resnet50", BUNDLED_BACKBONE)
    batch: int = 64
    large_batch: int = 256
    size: int | None = None
    epochs: int = 3
    workers: int = min(joblib.cpu_count(), MAX_WORKERS)
    compiler: str = "inductor"
    repeats: int = 10

    def build(self, backbone: str, strategy: str) -> tuple[nn.Module, Transforms]:
        """Return a frozen network on the device, and its transforms."""
        network, transforms = common.build(backbone, strategy)
        if self.size:
            options = TransformOptions(size=self.size)
            transforms = build_transforms(options, transforms.preprocessing)
        return network.to(self.device), transforms

    def split(self, backbone: str, strategy: str) -> tuple[nn.Module, ThawLine, Transforms]:
        """Return a frozen network, its two parts and its transforms."""
        network, transforms = self.build(backbone, strategy)
        line = split_at_thaw_line(network, transforms.preprocessing.size)
        return network, line, transforms

    def views(self, transforms: Transforms) -> Tensor:
        """Return a large batch of noise, (N, 3, size, size) uint8 on the CPU."""
        generator, size = torch.Generator().manual_seed(0), transforms.preprocessing.size
        shape = (self.large_batch, 3, size, size)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    def loader(
        self, line: ThawLine, transforms: Transforms, store: ActivationCache
    ) -> FeatureLoader:
        """Return a loader of features in bf16, whose views come from memory."""
        views = self.views(transforms)
        ready = ReadyViews(views.pin_memory() if self.device.type == "cuda" else views)
        return FeatureLoader(
            line,
            transforms,
            ready,
            store,
            Accelerator(self.device, torch.bfloat16),
            len(self.splits),
        )

    def rate(self, function: Callable[[], Any], images: int) -> float:
        """Return images/s of a function that processes `images`, called many times."""
        for _ in range(self.repeats):
            function()
        return (
            images * self.repeats / self.seconds(lambda: [function() for _ in range(self.repeats)])
        )

    def best_rate(self, batches: Callable[[], Iterator[Any]], images: int) -> float:
        """Return images/s of the fastest of a few passes over batches of `images` in total."""
        return images / min(self.seconds(lambda: [*map(type, batches())]) for _ in range(ROUNDS))

    def seconds(self, function: Callable[[], Any]) -> float:
        """Return how long a function takes, and all that it starts on the device."""
        self.synchronize()
        start = time.perf_counter()
        function()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class ReadyViews(ViewLoader):
    """Returns the same views for every request, without decoding."""

    def __init__(self, views: Tensor) -> None:
        """Store views (N, 3, size, size) uint8."""
        self.views = views

    def load(self, batches: Sequence[list[ImageView]]) -> Iterator[Tensor]:
        """Yield as many views as each batch requests."""
        return (self.views[: len(batch)] for batch in batches)


def main() -> None:
    """Measure, and print a table per section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--images", type=int, default=6000, help="number of generated images")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    arguments = parser.parse_args()
    logging.getLogger("thawline").setLevel(logging.ERROR)
    name = "a CPU, dry run" if arguments.dry_run else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, {joblib.cpu_count()} cores", flush=True)
    results: dict[str, Any] = {"device": name, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.dry_run:
            torch.set_num_threads(1)  # more would wait for one another on a busy machine
            scale = Scale(
                torch.device("cpu"), folder, generate(folder, 20), ["timm/test_resnet"],
                batch=4, large_batch=8, size=32, epochs=2, workers=0, compiler="eager", repeats=1,
            )  # fmt: skip
        else:
            splits = generate(folder, arguments.images, PIXELS)
            scale = Scale(torch.device("cuda"), folder, splits)
        for section in arguments.sections:
            rows = results[section] = SECTIONS[section](scale)
            print(f"\n{section}\n\n{common.markdown(pd.DataFrame(rows))}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=2))


@torch.no_grad()
def measure_line(scale: Scale) -> Rows:
    """Return images/s of the layers that head_only freezes, as used and as bare networks."""
    rows = []
    for backbone in scale.backbones:
        network, line, transforms = scale.split(backbone, "head_only")
        count = scale.large_batch * scale.repeats
        images = normalize(scale.views(transforms).to(scale.device), transforms.preprocessing)
        network.eval()
        plain = scale.rate(lambda: network(images.contiguous()), scale.large_batch)  # noqa: B023
        network.to(memory_format=torch.channels_last)
        with torch.autocast(scale.device.type, torch.bfloat16):
            bare = scale.rate(lambda: network(images), scale.large_batch)  # noqa: B023
        loader = scale.loader(line, transforms, ActivationCache(Path(), max_gb=0))
        batches = name_images(count, scale.large_batch)
        used = scale.best_rate(lambda: loader.load(batches), count)  # noqa: B023
        rows.append(
            {
                "backbone": backbone,
                "network, fp32": round(plain),
                "network, bf16, channels last": round(bare),
                "frozen layers, copy to the device included": round(used),
                "of the bare network": f"{used / bare:.0%}",
            }
        )
    return rows


@torch.no_grad()
def measure_precision(scale: Scale) -> Rows:
    """Return images/s and relative error of the frozen layers in each precision."""
    rows = []
    for backbone in scale.backbones:
        _, line, transforms = scale.split(backbone, "head_only")
        images = normalize(scale.views(transforms).to(scale.device), transforms.preprocessing)
        assert line.below is not None
        (exact,) = copy.deepcopy(line.below).double()(images[:16].double())
        for name, dtype in PRECISIONS.items():
            below = copy.deepcopy(line.below).to(dtype).to(memory_format=torch.channels_last)
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "TF32"
            inputs = images.to(dtype)
            with torch.autocast(scale.device.type, dtype, enabled=dtype != torch.float32):
                speed = scale.rate(lambda: below(inputs), scale.large_batch)  # noqa: B023
                (found,) = below(inputs[:16])
            error = ((found.double() - exact).norm() / exact.norm()).item()
            rows.append(
                {
                    "backbone": backbone,
                    "precision": name,
                    "images/s": round(speed),
                    "relative error": f"{error:.1e}",
                }
            )
        use_full_float32()
    return rows


def measure_decoding(scale: Scale) -> Rows:
    """Return images/s of decoding random training views, by the number of processes."""
    _, transforms = scale.build(scale.backbones[0], "full")
    paths = scale.splits["path"].tolist()
    rows = []
    for workers in sorted({min(1, scale.workers), min(4, scale.workers), scale.workers}):
        loader = ViewLoader(transforms, workers, scale.device.type == "cuda")
        count = min(len(paths), 500 * max(1, workers))
        views = [ImageView(path, "", view) for view, path in enumerate(paths[:count])]
        batches = [views[at : at + scale.batch] for at in range(0, count, scale.batch)]
        for _ in loader.load(batches[: max(1, workers)]):
            pass  # the processes have started
        speed = scale.best_rate(lambda: loader.load(batches), count)  # noqa: B023
        rows.append({"processes": workers, "images/s": round(speed)})
    return rows


def measure_store(scale: Scale) -> Rows:
    """Return images/s of reading cached activations to the device."""
    rows = []
    pairs = (scale.backbones[-1], "head_only"), (scale.backbones[0], "freeze_to_layer3")
    for backbone, strategy in pairs:
        _, line, transforms = scale.split(backbone, strategy)
        store = ActivationCache(scale.folder / "store", max_gb=100)
        loader = scale.loader(line, transforms, store)
        count = len(scale.splits)
        batches = name_images(count, scale.batch)
        for tensors in loader.load(batches):
            bytes_per_image = sum(tensor[0].nbytes for tensor in tensors)
        speed = scale.best_rate(lambda: loader.load(batches), count)  # noqa: B023
        store.clear()
        rows.append(
            {
                "backbone": backbone,
                "strategy": strategy,
                "kB per image": f"{bytes_per_image / 1e3:.1f}",
                "images/s": round(speed),
                "MB/s": round(speed * bytes_per_image / 1e6),
            }
        )
    return rows


def measure_epochs(scale: Scale) -> Rows:
    """Return training images/s of whole epochs, validation included, beside a plain loop."""
    rows = []
    images = int((scale.splits["split"] == "train").sum())
    for backbone in scale.backbones:
        for strategy, phase in common.PHASES.items():
            plain = images / _seconds_of_plain_epoch(scale, backbone, strategy)
            network, transforms = scale.build(backbone, strategy)
            store = ActivationCache(scale.folder / "store", max_gb=100)
            chosen = common.parameters(
                batch_size=scale.batch, device=scale.device.type, num_workers=scale.workers,
                precision="bf16",
            )  # fmt: skip
            run = prepare(chosen, network, scale.splits, transforms, store)
            history = train(run, [phase.model_copy(update={"epochs": scale.epochs})]).history
            store.clear()
            first, later = images / history["seconds"].iloc[0], images / history["seconds"].min()
            rows.append(
                {
                    "backbone": backbone,
                    "strategy": strategy,
                    "plain loop": round(plain),
                    "first epoch": round(first),
                    "faster": f"{first / plain:.1f}x",
                    "later epochs": round(later),
                    "later, faster": f"{later / plain:.1f}x",
                }
            )
    return rows


def _seconds_of_plain_epoch(scale: Scale, backbone: str, strategy: str) -> float:
    """Return the mean of two epochs with PyTorch's defaults: TF32 in convolutions."""
    network, transforms = scale.build(backbone, strategy)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    start = time.perf_counter()
    tutorial.train(
        network, scale.splits, transforms.preprocessing, common.PHASES[strategy].lr, 2, scale.batch,
        device=scale.device.type, workers=scale.workers,
    )  # fmt: skip
    return (time.perf_counter() - start) / 2


def measure_workers(scale: Scale) -> Rows:
    """Return training images/s of one process, and of two Ray workers that share the device."""
    rows = []
    images = int((scale.splits["split"] == "train").sum())
    backbone, phase = scale.backbones[0], common.PHASES["freeze_to_layer3"]
    gpus_each = 0.5 if scale.device.type == "cuda" else 0
    engine = EngineOptions(name="ray", workers=2, gpus_per_worker=gpus_each)
    chosen = common.parameters(
        batch_size=scale.batch, device=scale.device.type, num_workers=scale.workers // 2,
        precision="bf16",
    ).model_copy(update={"engine": engine})  # fmt: skip
    phases = [phase.model_copy(update={"epochs": scale.epochs})]
    for name in ("one process", "two workers"):
        network, transforms = scale.build(backbone, "freeze_to_layer3")
        store = ActivationCache(scale.folder / name, max_gb=100)
        arguments = (chosen, network.cpu(), scale.splits, transforms, store)
        if name == "one process":
            history = train(prepare(*arguments), phases).history
        else:
            history = ray_engine.train(arguments, phases).history
        store.clear()
        rows.append({"computed by": name, "images/s": round(images / history["seconds"].min())})
    return rows


def measure_compilation(scale: Scale) -> Rows:
    """Return images/s of training steps above the line, eager and compiled."""
    rows = []
    backbone = scale.backbones[min(1, len(scale.backbones) - 1)]
    for strategy in ("freeze_to_layer3", "full"):
        _, line, transforms = scale.split(backbone, strategy)
        views = scale.views(transforms)[: scale.batch]
        boundary = (normalize(views.to(scale.device), transforms.preprocessing),)
        if line.below is not None:
            with torch.no_grad():
                boundary = line.below(*boundary)
        labels = torch.arange(scale.batch, device=scale.device) % 2
        above = line.above_train.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW([p for p in above.parameters() if p.requires_grad], 1e-4)

        def step(part: Callable[..., Tensor]) -> None:
            with torch.autocast(scale.device.type, torch.bfloat16):
                outputs = part(*boundary).float()  # noqa: B023
            nn.functional.cross_entropy(outputs, labels).backward()  # noqa: B023
            optimizer.step()  # noqa: B023
            optimizer.zero_grad()  # noqa: B023

        eager = scale.rate(lambda: step(above), scale.batch)  # noqa: B023
        compiled = torch.compile(above, backend=scale.compiler)
        seconds = scale.seconds(lambda: step(compiled))  # noqa: B023
        rows.append(
            {
                "backbone": backbone,
                "strategy": strategy,
                "images/s": round(eager),
                "compiled": round(scale.rate(lambda: step(compiled), scale.batch)),  # noqa: B023
                "seconds to compile": f"{seconds:.1f}",
            }
        )
    return rows


def run_checks(_: Scale) -> Rows:
    """Return how many tests of a GPU passed, failed and were skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", "tests/test_gpu.py"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?)", said.splitlines()[-1])
    return [{"tests": what, "number": int(count)} for count, what in found]


SECTIONS: dict[str, Callable[[Scale], Rows]] = {
    "line": measure_line,
    "precision": measure_precision,
    "decoding": measure_decoding,
    "store": measure_store,
    "epochs": measure_epochs,
    "workers": measure_workers,
    "compilation": measure_compilation,
    "checks": run_checks,
}


def name_images(count: int, batch: int) -> list[list[ImageView]]:
    """Return batches of images that have no files."""
    images = [ImageView(f"{idx}.jpg", f"{idx:064x}") for idx in range(count)]
    return [images[at : at + batch] for at in range(0, count, batch)]


if __name__ == "__main__":
    main()
