"""The checks of `thawline doctor`.

Each returns what it found, raises `Advice` if a run works but something should be known, and
another error if a run would fail. Heavy libraries are imported where they are used, so that missing
ones can be reported.
"""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from thawline.errors import CheckpointError, ThawlineError, TrackingError, first_line
from thawline.tracking.redaction import mask

if TYPE_CHECKING:
    import pandas as pd

    from thawline.options import DatasetOptions, ModelOptions, TrainingOptions

SHOWN = ("torch", "torchvision", "timm", "kedro", "kedro-mlflow", "kedro-viz", "mlflow")
MAX_IMAGES_PER_CLASS = 5  # that are decoded, of at most MAX_CLASSES classes
MAX_CLASSES = 20
MIN_IMAGES_PER_CLASS = 20  # below which figures on the test split say little
MIN_FREE_BYTES = 2e9  # of memory, and of disk
SHARED_MEMORY = Path("/dev/shm")
PREFETCH_FACTOR = 2  # batches per decoding process, as in PyTorch's DataLoader
DEFAULT_SIZE = 224  # px


class Advice(Exception):
    """A run works, but something should be known."""


def check_versions() -> str:
    """Return the versions of Python and of the main packages, if all fit together."""
    if problems := _unmet("thawline") or _unmet("torchvision"):
        raise ThawlineError("\n".join([*problems, "The rest was not checked."]))
    shown = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    return f"Python {platform.python_version()}, {shown}"


def check_extra() -> str:
    """Return whether the packages of `kedro run --pipeline=export` are installed."""
    if problems := _unmet("thawline", "onnx"):
        names = ", ".join(problem.partition(":")[0] for problem in problems)
        return f"without {names}; pip install 'thawline[onnx]' if you want --pipeline=export"
    return "installed"


def check_device(options: TrainingOptions) -> str:
    """Return the device and precision of training."""
    import joblib
    import torch

    from thawline.thaw.device import make_accelerator

    accelerator = make_accelerator(options)
    name = f"{accelerator.device.type}, {joblib.cpu_count()} cores"  # that the container allows
    if accelerator.device.type == "cuda":
        name = f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[0] / 1e9:.1f} GB free"
    return f"{name}; trains in {str(accelerator.dtype).removeprefix('torch.')}"


def check_memory() -> str:
    """Return the free memory."""
    import psutil

    free = psutil.virtual_memory().available
    found = f"{free / 1e9:.1f} GB are free"
    if free < MIN_FREE_BYTES:
        raise Advice(f"{found}; close something, or lower training.batch_size")
    return found


def check_shared_memory(
    options: TrainingOptions, size: int | None, folder: Path = SHARED_MEMORY
) -> str:
    """Return how large shared memory is, which holds the batches of decoding processes.

    Nothing is returned if there are no such processes, or no shared memory as a folder.

    Args:
        options: batch size and number of decoding processes.
        size: px, side of the images; None: that of the weights, unknown here.
        folder: where shared memory is, as a file system.
    """
    import joblib

    from thawline.data.loading import MAX_WORKERS

    workers = options.num_workers
    if workers is None:
        workers = min(joblib.cpu_count(), MAX_WORKERS)
    if not workers or not folder.is_dir():
        return ""
    total = shutil.disk_usage(folder).total
    needed = (PREFETCH_FACTOR * workers + 1) * options.batch_size * 3 * (size or DEFAULT_SIZE) ** 2
    found = f"{total / 1e6:.0f} MB in {folder}"
    if total < needed:
        raise Advice(
            f"{found}, but {workers} decoding processes need {needed / 1e6:.0f} MB; start the"
            " container with --shm-size=1g, or lower training.num_workers"
        )
    return found


def check_weights(options: ModelOptions) -> str:
    """Return where on this machine the weights are that `model` names."""
    from thawline.networks.checkpoints import describe_checkpoint, is_weights_file
    from thawline.networks.libraries import find_weights

    weights, backbone = options.weights, options.backbone
    if is_weights_file(weights):
        described = describe_checkpoint(Path(weights).expanduser())
        found = f"{weights} is {described['kind']}"
        if "imports" in described and not options.trust_pickle:
            raise CheckpointError(f"{found}; see thawline inspect {weights}")
        return found
    if weights == "none" or ":" in backbone:
        return f"none; {backbone} starts at random"
    source, file, *_ = find_weights(options)
    if file is None or not file.is_file():
        raise Advice(
            f"those of {backbone} are not here; the first run downloads them from {source}."
            " Without a network: download them elsewhere and give model.weights=FILE"
        )
    return f"{backbone}: {file.name} in {file.parent}"


def check_data(options: DatasetOptions, seed: int, base: Path, packaged_folder: Path) -> str:
    """Return how many images there are, if every class has enough of them and they can be read.

    Data sets of a package are in `packaged_folder`; a relative `root` is relative to `base`.
    """
    from thawline.data.sources import find_images
    from thawline.data.splitting import split_dataset

    library, _, name = options.root.partition(":")
    if library in ("sklearn", "torchvision") and not (packaged_folder / name).is_dir():
        if library == "torchvision":
            raise Advice(f"{options.root} is not here; the first run downloads it")
        if name == "digits":
            return f"{options.root} comes with scikit-learn"
    manifest = find_images(options.root, base, packaged_folder, options.allow_external_paths)
    splits = split_dataset(manifest, options.fractions, seed)
    counts = manifest["label"].value_counts()
    sizes = splits["split"].value_counts()
    parts = ", ".join(f"{sizes[split]} {split}" for split in ("train", "val", "test"))
    found = (
        f"{options.root}: {len(manifest)} images of {len(counts)} classes ({parts});"
        f" {counts.index[-1]} has {counts.iloc[-1]}, the fewest"
    )
    advice = _find_unreadable(manifest)
    if counts.iloc[-1] < MIN_IMAGES_PER_CLASS:
        advice += ". Add images, or expect accuracies that are partly luck"
    if advice:
        raise Advice(found + advice)
    return f"{found}; all that were tried can be read"


def check_activations(folder: Path, max_gb: float) -> str:
    """Return the size of the activation cache, if the disk has room for it at its largest."""
    from thawline.thaw.cache import ActivationCache

    used = ActivationCache(folder, max_gb).contents()["MB"].sum() / 1e3
    free = shutil.disk_usage(_existing(folder)).free / 1e9
    size = f"{used:.1f} of at most {max_gb:g} GB"
    if used + free < max_gb:
        raise Advice(f"{size}, but only {free:.1f} GB are free on disk; lower activations.max_gb")
    return size


def check_disk(project: Path) -> str:
    """Return how much room the disk has for what runs log."""
    free = shutil.disk_usage(project).free
    found = f"{free / 1e9:.1f} GB are free in {project}"
    if free < MIN_FREE_BYTES:
        raise Advice(f"{found}; each run logs its model")
    return found


def check_tracking(uri: str, experiment: str) -> str:
    """Return where MLflow's store is, if it can be opened and no run in it has lost its process.

    The password in its URI is not shown.
    """
    from mlflow import MlflowClient

    from thawline.tracking.connection import find_server_problem, is_server
    from thawline.tracking.process_context import find_stale_runs

    shown = mask(uri)
    if uri.startswith("databricks"):
        raise Advice(f"{uri} is not checked here")
    if problem := find_server_problem(uri):
        raise TrackingError(f"{problem}; start it, or correct the URI")
    if not is_server(uri) and not _has_tables(uri):
        return f"{shown} will be created by the first run"
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if dead := find_stale_runs(client, found.experiment_id) if found else []:
        names = ", ".join(f"{run.info.run_name} ({run.info.run_id})" for run in dead)
        raise Advice(f"{names}: RUNNING, but the process is gone; the next run marks it as KILLED")
    return shown


def _has_tables(uri: str) -> bool:
    """Return whether a database has tables, which must be those of the installed MLflow."""
    import mlflow
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    shown = mask(uri)
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"MLflow no longer writes runs to a folder, {uri}; set sqlite:///mlflow.db as"
            " server.mlflow_tracking_uri"
        )
    try:
        url = make_url(uri)
        file = Path(url.database or "")
        if url.drivername == "sqlite" and not file.exists():
            if os.access(_existing(file.parent), os.W_OK):
                return False
            raise TrackingError(f"{shown} cannot be created; set another URI in mlflow.yml")
        with create_engine(url).connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
            has_tables = bool(inspect(connection).get_table_names())
    except (SQLAlchemyError, ImportError) as error:
        raise TrackingError(
            f"{shown} cannot be opened: {mask(first_line(error))}. Correct it in mlflow.yml, start"
            " the server, or install its driver"
        ) from error
    scripts = Path(mlflow.__file__).parent / "store" / "db_migrations"
    wanted = ScriptDirectory(str(scripts)).get_current_head()
    if has_tables and found != wanted:
        raise TrackingError(
            f"{shown} has tables of another MLflow ({found}, not {wanted}); make a copy, then"
            " mlflow db upgrade URI"
        )
    return has_tables


def _find_unreadable(manifest: pd.DataFrame) -> str:
    """Return how many of the first images of the first classes cannot be decoded, if any."""
    from thawline.data.screening.file_records import examine
    from thawline.options import ScreeningOptions

    rows = manifest[manifest["label"].isin(manifest["label"].unique()[:MAX_CLASSES])]
    tried = rows.groupby("label").head(MAX_IMAGES_PER_CLASS)["path"]
    records = (examine(path, ScreeningOptions()) for path in tried)
    problems = [f"{record.path}: {record.detail}" for record in records if record.problem]
    if not problems:
        return ""
    return (
        f"; {len(problems)} of {len(tried)} that were tried cannot be read and will be left out,"
        f" first {problems[0]}"
    )


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _unmet(package: str, extra: str = "") -> list[str]:
    """Return what is missing or does not fit of what a package, or its extra, requires."""
    problems = []
    for needed in map(Requirement, requires(package) or []):
        if needed.marker and not needed.marker.evaluate({"extra": extra}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            found = "nothing"
        if found == "nothing" or not needed.specifier.contains(found, prereleases=True):
            repair = f'pip install "{needed.name}{needed.specifier}"'
            problems.append(f"{needed.name}: {found} is here, {package} needs another: {repair}")
    return problems
