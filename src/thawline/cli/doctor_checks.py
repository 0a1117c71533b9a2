"""The checks of `thawline doctor`.

Each returns what it found, raises `Advice` if a run works but something should be known, and
another error if a run would fail.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import mlflow
import pandas as pd
import psutil
import torch
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from thawline.api import find_place, read_place
from thawline.cli.doctor import Advice, CheckResult, run_check
from thawline.data.loading import MAX_WORKERS
from thawline.data.screening.file_records import examine
from thawline.data.sources import find_images
from thawline.data.splitting import split_dataset
from thawline.errors import CheckpointError, TrackingError, first_line
from thawline.hooks.configuration import UNREADABLE
from thawline.networks.checkpoints import describe_checkpoint
from thawline.networks.files import is_weights_file
from thawline.networks.libraries import find_weights
from thawline.options import (
    DatasetOptions,
    ModelOptions,
    ScreeningOptions,
    TrainingOptions,
    validate_parameters,
)
from thawline.thaw.cache import ActivationCache
from thawline.thaw.device import make_accelerator
from thawline.tracking.connection import find_server_problem, is_server
from thawline.tracking.process_context import find_stale_runs
from thawline.tracking.redaction import mask

MAX_IMAGES_PER_CLASS = 5  # that are decoded, of at most MAX_CLASSES classes
MAX_CLASSES = 20
MIN_IMAGES_PER_CLASS = 20  # below which figures on the test split say little
MIN_FREE_BYTES = 2e9  # of memory, and of disk
SHARED_MEMORY = Path("/dev/shm")
PREFETCH_FACTOR = 2  # batches per decoding process, as in PyTorch's DataLoader
DEFAULT_SIZE = 224  # px


def examine_project(env: str | None, params: str) -> Iterator[CheckResult]:
    """Check the machine and all that the configuration names, of a project or of the package."""
    place = find_place()
    project, env = place.project, env or place.env
    base = project if place.is_project else Path.cwd()  # of a relative dataset.root
    try:
        configuration = read_place(place, env, params)
        options = validate_parameters(configuration["parameters"])
        config = KedroMlflowConfig.model_validate(configuration["mlflow"])
        catalog = configuration["catalog"]
        images, store = (project / catalog[n]["filepath"] for n in ("raw_images", "activations"))
    except (OSError, ValueError, *UNREADABLE) as error:
        yield run_check("device", check_device, TrainingOptions())
        yield CheckResult("configuration", "problem", str(error))
        return
    found = f"{place.configuration}, environment {env or 'local'}"
    yield CheckResult("configuration", "ok", found)
    uri, experiment = config.server.mlflow_tracking_uri or "mlruns", config.tracking.experiment.name
    free_memory = psutil.virtual_memory().available
    free_disk = shutil.disk_usage(_existing(project)).free
    planned: list[tuple[Any, ...]] = [
        ("device", check_device, options.training),
        ("memory", check_room, free_memory, "", "close something, or lower training.batch_size"),
        ("shared memory", check_shared_memory, options.training, options.transforms.size),
        ("weights", check_weights, options.model),
        ("data", check_data, options.dataset, options.data_seed, base, images),
        ("activations", check_activations, store, options.activations.max_gb),
        ("tracking", check_tracking, uri, experiment),
        ("disk", check_room, free_disk, f" in {project}", "each run logs its model"),
    ]
    results = (run_check(*check) for check in planned)
    yield from (result for result in results if result.message)


def check_device(options: TrainingOptions) -> str:
    """Return the device and precision of training."""
    accelerator = make_accelerator(options)
    name = f"{accelerator.device.type}, {joblib.cpu_count()} cores"  # that the container allows
    if accelerator.device.type == "cuda":
        name = f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[0] / 1e9:.1f} GB free"
    return f"{name}; trains in {str(accelerator.dtype).removeprefix('torch.')}"


def check_room(free: float, where: str, advice: str) -> str:
    """Return how many bytes are free, if they are enough for a run."""
    found = f"{free / 1e9:.1f} GB are free{where}"
    if free < MIN_FREE_BYTES:
        raise Advice(f"{found}; {advice}")
    return found


def check_shared_memory(
    options: TrainingOptions, size: int | None, folder: Path = SHARED_MEMORY
) -> str:
    """Return how large shared memory is, which holds the batches of decoding processes.

    Nothing is returned if there are no such processes, or no shared memory as a folder. `size` is
    the side of the images in px; None: that of the weights, unknown here.
    """
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
    used = ActivationCache(folder, max_gb).contents()["MB"].sum() / 1e3
    free = shutil.disk_usage(_existing(folder)).free / 1e9
    size = f"{used:.1f} of at most {max_gb:g} GB"
    if used + free < max_gb:
        raise Advice(f"{size}, but only {free:.1f} GB are free on disk; lower activations.max_gb")
    return size


def check_tracking(uri: str, experiment: str) -> str:
    """Return where MLflow's store is, if it can be opened and no run in it has lost its process.

    The password in its URI is not shown.
    """
    shown = mask(uri)
    if uri.startswith("databricks"):
        raise Advice(f"{uri} is not checked here")
    if problem := find_server_problem(uri):
        raise TrackingError(f"{problem}; start it, or correct the URI")
    if not is_server(uri) and not _has_tables(uri):
        return f"{shown} will be created by the first run"
    client = mlflow.MlflowClient(uri)
    try:
        found = client.get_experiment_by_name(experiment)
        dead = find_stale_runs(client, found.experiment_id) if found else []
    except MlflowException as error:  # such as a wrong password
        raise TrackingError(f"{shown} cannot be read: {mask(first_line(error))}") from error
    if dead:
        names = ", ".join(f"{run.info.run_name} ({run.info.run_id})" for run in dead)
        raise Advice(f"{names}: RUNNING, but the process is gone; the next run marks it as KILLED")
    return shown


def _has_tables(uri: str) -> bool:
    """Return whether a database has tables, which must be those of the installed MLflow."""
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
