"""Train on the workers of a Ray cluster: the loop, phases and results of one process."""

import logging
import logging.handlers
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from thawline.data.decoding import hash_files
from thawline.errors import ThawlineError, TrainingError
from thawline.options import Phase
from thawline.thaw.cache import GB, ActivationCache
from thawline.thaw.device import make_accelerator
from thawline.training import loop
from thawline.training.data_parallel import all_reduce_sum, rank
from thawline.training.progress import OnEpoch, TrainingResult, progress_bar
from thawline.training.ray_cluster import Arguments, compute_activations, connect, divide
from thawline.training.setup import prepare
from thawline.training.state import TrainingCheckpoints

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # of the workers, after one of them has died
LOG = "thawline"  # the logger whose lines come from the workers


def train(
    arguments: Arguments,
    phases: Sequence[Phase],
    checkpoints: TrainingCheckpoints | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainingResult:
    """Train a network on Ray and return what `loop.train` does; the network stays as it is.

    Every worker computes its slice of each batch. Losses and weights are those of one process up to
    rounding, unless batch norm in training sees a slice only (see `engine.sync_batch_norm`) or
    random numbers are drawn above the thaw line (dropout, mixup). If a worker dies, all are
    restarted from the last saved state.

    The `arguments` are those of `prepare`. All machines find the same files under their paths, and
    share the folder of `checkpoints`. `on_epoch` is called in this process.

    Raises:
        DataError: if an image file cannot be read.
        ParameterError: if Ray is missing, does not answer, or has less than is asked for.
        ThawlineError: what training raises, or if workers have died too often.
    """
    parameters, options = arguments[0], arguments[0].training
    connect(parameters.engine)
    scaling = divide(parameters.engine, options.device)
    arguments = worker_arguments(arguments)
    cache, augmentation = arguments[-1], parameters.augmentation
    is_mixed = augmentation.mixup or augmentation.cutmix
    if cache.max_bytes and augmentation.views_per_image and not is_mixed:
        compute_activations(arguments, phases[0], scaling)
    logger.info(
        "Ray: each of %d worker(s) computes its share of an effective batch of %d images. Learning"
        " rates are those of one process",
        scaling.num_workers,
        options.batch_size * options.gradient_accumulation_steps,
    )
    return _fit(arguments, phases, scaling, checkpoints, on_epoch)


def worker_arguments(arguments: Arguments) -> Arguments:
    """Return them with hashes of the images, which all workers would compute, and absolute paths.

    Raises:
        DataError: if an image file cannot be read.
    """
    parameters, network, splits, transforms, cache = arguments
    used = splits[splits["split"] != "test"]
    if "sha256" not in used:
        used = used.assign(sha256=hash_files(used["path"].tolist()))
    shared = ActivationCache(cache.folder.resolve(), cache.max_bytes / GB)
    return parameters, network, used, transforms, shared


def _fit(
    arguments: Arguments,
    phases: Sequence[Phase],
    scaling: Any,
    checkpoints: TrainingCheckpoints | None,
    on_epoch: OnEpoch | None,
) -> TrainingResult:
    """Start workers, restart them if one dies, and return the first one's result."""
    import ray
    from ray.train import FailureConfig, RunConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    saved = checkpoints and checkpoints.folder.resolve()
    parent, name = saved or Path(tempfile.gettempdir()), f"ray-{uuid.uuid4().hex}"
    queue = Queue(actor_options={"num_cpus": 0})
    restarts = FailureConfig(max_failures=MAX_RESTARTS)
    shares_gpus = 0 < scaling.resources_per_worker.get("GPU", 0) < 1
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "arguments": arguments,
            "phases": phases,
            "checkpoints": saved,
            "folder": parent / name,  # of Ray's notes
            "queue": queue,
            "level": logging.getLogger(LOG).getEffectiveLevel(),
        },
        torch_config=TorchConfig("gloo" if shares_gpus else None),  # NCCL wants a GPU per worker
        scaling_config=scaling,
        run_config=RunConfig(name=name, storage_path=str(parent), failure_config=restarts),
    )

    def fit() -> None:
        try:
            trainer.fit()
        finally:
            queue.put(None)  # after all that workers send

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fit)
        try:
            done = _pass_on(iter(queue.get, None), phases, on_epoch)
            future.result()
        except TrainingFailedError as error:
            raise TrainingError(
                f"The workers on Ray failed more than {MAX_RESTARTS} times, or could not start:"
                f" {error}"
            ) from error
        finally:
            if not future.done():
                ray.shutdown()  # else the pool waits for the workers
            shutil.rmtree(parent / name, ignore_errors=True)
    if done is None:
        raise TrainingError("The workers on Ray ended without a result.")
    result, keys = done
    if checkpoints:
        checkpoints.keys += keys
    return result


def _pass_on(
    messages: Iterator[Any], phases: Sequence[Phase], on_epoch: OnEpoch | None
) -> tuple[TrainingResult, list[str]] | None:
    """Log, report and raise here what workers send; return the result and its keys."""
    done, seen, epochs = None, 0, sum(phase.epochs for phase in phases)
    with progress_bar("Training on Ray", epochs) as update_bar:
        for message in messages:
            if isinstance(message, logging.LogRecord):
                logging.getLogger(message.name).handle(message)
            elif isinstance(message, ThawlineError):
                raise message
            elif isinstance(message, tuple):
                done = message
            elif message["epoch"] > seen:  # restarted workers report its epochs again
                seen = message["epoch"]
                update_bar(completed=seen, description=f"Training on Ray, epoch {seen}/{epochs}")
                if on_epoch:
                    on_epoch(message, seen)
    return done


def _work(config: dict[str, Any]) -> None:
    """Train as one of the workers; send errors of all, and everything else of the first one."""
    queue, arguments, is_first = config["queue"], config["arguments"], rank() == 0
    checkpoints = TrainingCheckpoints(config["checkpoints"]) if config["checkpoints"] else None
    log, handler = logging.getLogger(LOG), logging.handlers.QueueHandler(queue)
    handler.setLevel(logging.NOTSET if is_first else logging.WARNING)
    log.setLevel(config["level"])  # if losses of steps are logged, all workers add them up
    log.addHandler(handler)
    marker = config["folder"] / "begun"  # all look for it before one of them leaves it
    device = make_accelerator(arguments[0].training).device
    (restarted,) = all_reduce_sum(float(marker.exists()), device=device)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    if restarted:
        parameters, *others = arguments
        training = parameters.training.model_copy(update={"resume": True})
        arguments = (parameters.model_copy(update={"training": training}), *others)
        if is_first:
            logger.warning("A worker died: all were restarted from the last saved state")
    report: OnEpoch | None = (lambda row, _: queue.put(row)) if is_first else None
    try:
        result = loop.train(prepare(*arguments), config["phases"], checkpoints, report)
    except ThawlineError as error:
        queue.put(error)
        raise
    if is_first:  # Ray refuses to return tensors
        queue.put((result, checkpoints.keys if checkpoints else []))
