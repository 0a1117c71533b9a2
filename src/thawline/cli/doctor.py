"""Check what a run needs, change nothing, and say what to fix.

Heavy libraries are imported where they are used, so that missing ones can be reported.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from thawline.cli.doctor_results import CheckResult, existing_folder
from thawline.cli.doctor_tracking import check_runs, check_tracking
from thawline.errors import DataError, ThawlineError

if TYPE_CHECKING:
    from thawline.options import DatasetOptions, ModelOptions, TrainingOptions

SHOWN = ("torch", "torchvision", "timm", "kedro", "kedro-mlflow", "kedro-viz", "mlflow")
MAX_IMAGES_PER_CLASS = 5  # that are decoded, of at most MAX_CLASSES classes
MAX_CLASSES = 20
MIN_IMAGES_PER_CLASS = 20  # below which figures on the test split say little
MIN_MEMORY_BYTES = 2e9
SHARED_MEMORY = Path("/dev/shm")
PREFETCH_FACTOR = 2  # batches per decoding process, as in PyTorch's DataLoader
DEFAULT_SIZE = 224  # px


def examine(
    project: Path | None, env: str | None = None, params: str = ""
) -> Iterator[CheckResult]:
    """Run all checks, in the order in which problems should be fixed.

    Args:
        project: root of a Kedro project; None: check the machine only.
        env: environment of the configuration, as of `kedro run`.
        params: as of `kedro run --params`.
    """
    versions = check_versions("thawline")
    yield from versions
    if any(finding.state == "problem" for finding in versions):
        yield CheckResult("the rest", "warning", "not checked; fix these first")
        return
    yield from check_extras("thawline")
    from thawline.options import TrainingOptions

    if project is None:
        yield from check_device(TrainingOptions())
        missing = f"none in {Path.cwd()} or above it; go to the folder with Thawline's conf/"
        yield CheckResult("project", "problem", missing)
        return
    yield from _examine_project(project, env, params)


def _examine_project(project: Path, env: str | None, params: str) -> Iterator[CheckResult]:
    """Check all that a project's configuration names."""
    from kedro.config import MissingConfigException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from thawline.hooks.configuration import read_configuration
    from thawline.options import validate_parameters

    try:
        configuration = read_configuration(project, env, params)
        parameters = validate_parameters(configuration["parameters"])
        catalog, mlflow = configuration["catalog"], configuration["mlflow"]
        images, store = (catalog[name]["filepath"] for name in ("raw_images", "activations"))
    except (
        ThawlineError,
        MissingConfigException,
        OmegaConfBaseException,
        YAMLError,
        ValueError,  # Kedro's, of a key that two files hold
    ) as error:
        yield CheckResult("configuration", "problem", str(error))
        return
    yield CheckResult("configuration", "ok", f"{project / 'conf'}, environment {env or 'local'}")
    yield from check_device(parameters.training)
    size = parameters.transforms.size or DEFAULT_SIZE
    yield from check_shared_memory(parameters.training, size)
    yield from check_weights(parameters.model)
    seed = parameters.data_seed
    yield from check_data(parameters.dataset, seed, project, project / images)
    yield from check_activations(project / store, parameters.activations.max_gb)
    uri = (mlflow.get("server") or {}).get("mlflow_tracking_uri")
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "mlruns")
    tracking = check_tracking(uri, project)
    yield from tracking
    if tracking[0].state == "ok":
        experiment = (mlflow.get("tracking") or {}).get("experiment") or {}
        yield from check_runs(uri, experiment.get("name", "thawline"))


def check_versions(package: str) -> list[CheckResult]:
    """Check the versions of Python and of the packages that an installed package requires."""
    try:
        needed = SpecifierSet(metadata(package)["Requires-Python"] or "")
    except PackageNotFoundError:
        return [CheckResult("versions", "problem", f"{package} is not installed: pip install -e .")]
    python = platform.python_version()
    problems = []
    if not needed.contains(python):
        problems.append(CheckResult("python", "problem", f"{python} is here, {needed} is needed"))
    wanted = [Requirement(text) for text in requires(package) or []]
    problems += _unmet([r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})])
    if not problems:
        pair = [Requirement(text) for text in requires("torchvision") or []]
        reason = f"; torchvision {version('torchvision')} was made for it"
        problems = _unmet([r for r in pair if r.name == "torch"], reason)
    shown = ", ".join(f"{name} {version(name)}" for name in SHOWN if not problems)
    return problems or [CheckResult("versions", "ok", f"Python {python}, {shown}")]


def check_extras(package: str) -> list[CheckResult]:
    """Check that the packages of `kedro run --pipeline=export` are installed."""
    wanted = [Requirement(text) for text in requires(package) or []]
    extra = [r for r in wanted if r.marker and r.marker.evaluate({"extra": "onnx"})]
    missing = _unmet([r for r in extra if not r.marker.evaluate({"extra": ""})])  # type: ignore[union-attr]
    if not missing:
        return [CheckResult("extra onnx", "ok", "installed")]
    names = ", ".join(finding.name for finding in missing)
    advice = f"without {names}; pip install 'thawline[onnx]' if you want --pipeline=export"
    return [CheckResult("extra onnx", "ok", advice)]


def check_device(options: TrainingOptions) -> list[CheckResult]:
    """Name the device and precision of training, and check the free memory."""
    import joblib
    import psutil
    import torch

    from thawline.thaw.device import make_accelerator

    try:
        accelerator = make_accelerator(options)
    except ThawlineError as error:
        return [CheckResult("device", "problem", str(error))]
    device, dtype = accelerator.device, str(accelerator.dtype).removeprefix("torch.")
    cores = joblib.cpu_count()  # that affinity and the container allow
    free = psutil.virtual_memory().available
    name = f"{device.type}, {cores} cores"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[0] / 1e9:.1f} GB free"
    found = [CheckResult("device", "ok", f"{name}; trains in {dtype}")]
    if free < MIN_MEMORY_BYTES:
        advice = f"{free / 1e9:.1f} GB are free; close something, or lower training.batch_size"
        return [*found, CheckResult("memory", "warning", advice)]
    return [*found, CheckResult("memory", "ok", f"{free / 1e9:.1f} GB are free")]


def check_shared_memory(
    options: TrainingOptions, size: int, folder: Path = SHARED_MEMORY
) -> list[CheckResult]:
    """Check that shared memory holds the batches of decoding processes; nothing if there is none.

    Args:
        options: batch size and number of decoding processes.
        size: px, side of the images.
        folder: where shared memory is, as a file system.
    """
    import joblib

    from thawline.data.loading import MAX_WORKERS

    workers = options.num_workers
    if workers is None:
        workers = min(joblib.cpu_count(), MAX_WORKERS)
    if not workers or not folder.is_dir():
        return []
    total = shutil.disk_usage(folder).total
    needed = (PREFETCH_FACTOR * workers + 1) * options.batch_size * 3 * size**2
    if total >= needed:
        return [CheckResult("shared memory", "ok", f"{total / 1e6:.0f} MB in {folder}")]
    advice = (
        f"{total / 1e6:.0f} MB in {folder}, but {workers} decoding processes need"
        f" {needed / 1e6:.0f} MB; start the container with --shm-size=1g, or lower"
        f" training.num_workers"
    )
    return [CheckResult("shared memory", "warning", advice)]


def check_weights(options: ModelOptions) -> list[CheckResult]:
    """Check that the weights that `model` names are on this machine."""
    from thawline.networks import timm_backbones, torchvision_backbones
    from thawline.networks.checkpoints import describe_checkpoint, is_weights_file

    name, weights = "weights", options.weights
    try:
        if is_weights_file(weights):
            described = describe_checkpoint(Path(weights).expanduser())
            if "imports" in described and not options.trust_pickle:
                advice = f"{weights} is {described['kind']}; see thawline inspect {weights}"
                return [CheckResult(name, "problem", advice)]
            return [CheckResult(name, "ok", f"{weights}: {described['kind']}")]
        if weights == "none" or ":" in options.backbone:
            return [CheckResult(name, "ok", f"none; {options.backbone} starts at random")]
        from_timm = options.backbone.startswith("timm/")
        library = timm_backbones if from_timm else torchvision_backbones
        file, source = library.find_weights(options)
    except ThawlineError as error:
        return [CheckResult(name, "problem", str(error))]
    if file is None:
        advice = (
            f"those of {options.backbone} are not here; the first run downloads them from {source}."
            " Without a network: download them elsewhere and give model.weights=FILE"
        )
        return [CheckResult(name, "warning", advice)]
    return [CheckResult(name, "ok", f"{options.backbone}: {file.name} in {file.parent}")]


def check_data(
    options: DatasetOptions, seed: int, base: Path, packaged_folder: Path
) -> list[CheckResult]:
    """Check that every class has readable images, enough of them to split.

    Args:
        options: `root` and how it is split.
        seed: of the splits.
        base: folder that a relative `root` is relative to.
        packaged_folder: where data sets of a package are kept.
    """
    from thawline.data.sources import find_images
    from thawline.data.splitting import split_dataset

    library, _, name = options.root.partition(":")
    if library in ("sklearn", "torchvision") and not (packaged_folder / name).is_dir():
        if library == "torchvision":
            advice = f"{options.root} is not here; the first run downloads it to {packaged_folder}"
            return [CheckResult("data", "warning", advice)]
        if name == "digits":
            return [CheckResult("data", "ok", f"{options.root} comes with scikit-learn")]
    try:
        manifest = find_images(options.root, base, packaged_folder, options.allow_external_paths)
        splits = split_dataset(manifest, options.fractions, seed)
    except (DataError, OSError) as error:
        return [CheckResult("data", "problem", str(error))]
    counts = manifest["label"].value_counts()
    sizes = splits["split"].value_counts()
    parts = ", ".join(f"{sizes[split]} {split}" for split in ("train", "val", "test"))
    found = f"{options.root}: {len(manifest)} images of {len(counts)} classes ({parts});"
    fewest = f"{counts.index[-1]} has {counts.iloc[-1]}, the fewest"
    if counts.iloc[-1] < MIN_IMAGES_PER_CLASS:
        few = f"{found} {fewest}: add images, or expect accuracies that are partly luck"
        return [CheckResult("data", "warning", few), *_unreadable(manifest)]
    return [CheckResult("data", "ok", f"{found} {fewest}"), *_unreadable(manifest)]


def check_activations(folder: Path, max_gb: float) -> list[CheckResult]:
    """Check that the disk has room for the activation cache at its largest."""
    from thawline.thaw.cache import ActivationCache

    used = ActivationCache(folder, max_gb).contents()["MB"].sum() / 1e3
    free = shutil.disk_usage(existing_folder(folder)).free / 1e9
    size = f"{used:.1f} of at most {max_gb:g} GB"
    if used + free < max_gb:
        advice = f"{size}, but only {free:.1f} GB are free on disk; lower activations.max_gb"
        return [CheckResult("activations", "warning", advice)]
    return [CheckResult("activations", "ok", size)]


def _unreadable(manifest: Any) -> list[CheckResult]:
    """Warn if some of the first images of the first classes cannot be decoded."""
    from thawline.data.screening.file_records import examine
    from thawline.options import ScreeningOptions

    labels = manifest["label"].unique()[:MAX_CLASSES]
    first = (
        manifest[manifest["label"].isin(labels)].groupby("label").head(MAX_IMAGES_PER_CLASS)["path"]
    )
    found = (examine(path, ScreeningOptions()) for path in first)
    problems = [f"{facts.path}: {facts.detail}" for facts in found if facts.problem]
    if not problems:
        return [CheckResult("images", "ok", f"the first {len(first)} that were tried can be read")]
    advice = f"{len(problems)} of {len(first)} that were tried cannot be read and will be left out"
    return [CheckResult("images", "warning", f"{advice}, first {problems[0]}")]


def _unmet(wanted: list[Requirement], reason: str = "") -> list[CheckResult]:
    """Return a problem for each requirement that is not installed in a version that fits."""
    problems = []
    for requirement in wanted:
        name, needed = requirement.name, requirement.specifier
        repair = f'pip install "{name}{needed}"'
        try:
            found = version(name)
        except PackageNotFoundError:
            problems.append(CheckResult(name, "problem", f"not installed: {repair}"))
            continue
        if not needed.contains(found, prereleases=True):
            message = f"{found} is here, {needed} is needed: {repair}{reason}"
            problems.append(CheckResult(name, "problem", message))
    return problems
