"""Connect to a Ray cluster, divide it among workers, and run frozen layers on it."""

import logging
import math
import os
import signal
import threading
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from thawline.data.loading import ImageView
from thawline.data.transforms import Transforms
from thawline.errors import DataError, ParameterError
from thawline.options import EngineOptions, Parameters, Phase
from thawline.thaw.cache import ActivationCache
from thawline.thaw.device import MALLOC_ENVIRONMENT
from thawline.thaw.frozen_part import CPU_CHUNK_SIZE
from thawline.training.progress import progress_bar
from thawline.training.setup import prepare, prepare_phase

MAX_TASK_IMAGES = 1024  # between two tasks the decoders of an actor wait
TASKS_PER_WORKER = 4  # at least, so that all are busy until the end
EVALUATION = -1  # number of the evaluation view, since a column cannot lack one

# Of `setup.prepare`, which each process calls with them.
Arguments = tuple[Parameters, nn.Module, pd.DataFrame, Transforms, ActivationCache]


def connect(engine: EngineOptions) -> None:
    """Connect this process to the cluster, or start one on this machine, unless it has been.

    Raises:
        ParameterError: if Ray is not installed or the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    try:
        import ray
    except ImportError as error:
        raise ParameterError("engine: ray is not installed: pip install 'thawline[ray]'") from error
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            engine.address,
            runtime_env={"env_vars": MALLOC_ENVIRONMENT},
            logging_level=logging.WARNING,
            log_to_driver=False,  # workers send their log lines themselves
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ParameterError(
            f"engine.address: no Ray cluster answers at {engine.address} ({error}). Start one"
            " with ray start --head, or leave engine.address out."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # which Ray has replaced


def divide(engine: EngineOptions, device: str) -> Any:
    """Return Ray's `ScalingConfig`: how many workers there are and what each of them has.

    Raises:
        ParameterError: if the cluster has less than that.
    """
    import ray
    from ray.train import ScalingConfig

    there = ray.cluster_resources()
    gpus, cpus = 0 if device == "cpu" else there.get("GPU", 0), there.get("CPU", 0)
    gpus_each = (1.0 if gpus else 0.0) if engine.gpus_per_worker is None else engine.gpus_per_worker
    possible = min(int(cpus), int(gpus / gpus_each) if gpus_each else int(cpus))
    count = engine.workers or max(1, possible)
    if count > possible:
        raise ParameterError(
            f"engine.workers: {count} with a CPU and {gpus_each:g} GPU each, but the cluster has"
            f" {cpus:g} CPU and {gpus:g} GPU, enough for {possible}. Start more machines, or lower"
            " engine.workers or engine.gpus_per_worker."
        )
    resources = {"CPU": 1, "GPU": gpus_each} if gpus_each else {"CPU": 1}
    return ScalingConfig(num_workers=count, use_gpu=gpus_each > 0, resources_per_worker=resources)


def compute_activations(arguments: Arguments, phase: Phase, scaling: Any) -> None:
    """Fill the activation cache for a phase, by actors of Ray Data that hold the frozen layers.

    The `arguments` have hashes in the splits and an absolute cache folder.

    Raises:
        DataError: if an image file cannot be read.
    """
    import ray.data

    parameters, _, splits, *_ = arguments
    splits = splits[["split", "path", "sha256"]]
    train_images = splits[splits["split"] == "train"]
    count = min(parameters.augmentation.views_per_image or phase.epochs, phase.epochs)
    views = [EVALUATION] if phase.optimizer == "lbfgs" else range(count)
    val_images = splits[splits["split"] == "val"].assign(view=EVALUATION)
    rows = pd.concat([val_images, *(train_images.assign(view=number) for number in views)])
    # In parts from the start: to make them later, Ray Data needs a CPU beside those of the actors.
    share = math.ceil(len(rows) / (TASKS_PER_WORKER * scaling.num_workers))
    size = min(max(share, CPU_CHUNK_SIZE), MAX_TASK_IMAGES)
    tables = [rows[at : at + size] for at in range(0, len(rows), size)]
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    done = ray.data.from_pandas(tables).map_batches(
        FrozenLayers,
        fn_constructor_args=(arguments, phase),
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=scaling.num_workers),
        num_cpus=scaling.resources_per_worker["CPU"],
        num_gpus=scaling.resources_per_worker.get("GPU", 0),
    )
    with progress_bar("Frozen layers, images", len(rows)) as update_bar:
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
            update_bar(advance=int(batch["images"].sum()))
            if problems := [problem for problem in batch["problem"] if problem]:
                raise DataError(problems[0])


class FrozenLayers:
    """An actor of Ray Data that puts the activations of images into the cache."""

    def __init__(self, arguments: Arguments, phase: Phase) -> None:
        """Split the network of a phase at its thaw line."""
        untrained = phase.model_copy(update={"epochs": 0})  # so no step is timed
        self._features = prepare_phase(prepare(*arguments), untrained).features

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return how many images there were, or why one of them cannot be read."""
        columns = (rows["path"].tolist(), rows["sha256"].tolist(), rows["view"].tolist())
        images = [ImageView(*row) for row in zip(*columns, strict=True)]
        random = [image for image in images if image.view != EVALUATION]
        plain = [image._replace(view=None) for image in images if image.view == EVALUATION]
        problem, size = "", CPU_CHUNK_SIZE
        try:
            for views in (random, plain):  # in batches: one is decoded while another is computed
                batches = [views[at : at + size] for at in range(0, len(views), size)]
                for _ in self._features.load(batches):
                    pass
        except DataError as error:  # Ray would wrap it into a page of its own
            problem = str(error)
        return {"images": np.array([len(images)]), "problem": np.array([problem])}
