"""Train on the workers of a Ray cluster: the same loop, phases and results as in one process."""

from __future__ import annotations

import itertools
import logging
import logging.handlers
import math
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from thawline.data.hashing import hash_files
from thawline.errors import DataError, ParameterError, ThawlineError, TrainingError
from thawline.options import EngineOptions, Phase
from thawline.thaw.cache import GB, ActivationCache
from thawline.thaw.features import CPU_CHUNK_SIZE
from thawline.thaw.image_set import ImageView
from thawline.training import loop as training
from thawline.training.data_parallel import rank
from thawline.training.loop import OnEpoch, TrainingResult, progress_bar
from thawline.training.memory import ENVIRONMENT
from thawline.training.state import TrainingCheckpoints

logger = logging.getLogger(__name__)

RESTARTS = 3  # of the workers, after one of them has died
IMAGES_A_TASK = 1024  # that an actor computes at a time, at most; between two its decoders wait
TASKS_A_WORKER = 4  # at least, so that all are busy until the end
POLL_SECONDS = 0.2
LOG = "thawline"  # the logger whose lines come from the workers
EVALUATION = -1  # in the place of a random view's number, which a column cannot lack

_connecting = threading.Lock()


class Share(NamedTuple):
    """What each worker has of the cluster."""

    workers: int
    resources: dict[str, float]


class Done(NamedTuple):
    """What the first worker yields, and the states that it saved."""

    result: TrainingResult
    states: TrainingCheckpoints | None


class Mailbox:
    """An actor: what workers tell the process that waits for them, and how often they began."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._began: Counter[int] = Counter()

    def begin(self, worker: int) -> int:
        """Return how often a worker has begun before."""
        self._began[worker] += 1
        return self._began[worker] - 1

    def put(self, item: Any) -> None:
        """Keep an item until `take`."""
        self._items.append(item)

    def take(self) -> list[Any]:
        """Return all items since the last time."""
        items, self._items = self._items, []
        return items


def train(
    arguments: dict[str, Any],
    phases: Sequence[Phase],
    engine: EngineOptions,
    states: TrainingCheckpoints | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainingResult:
    """Train a network on Ray and return what `training.train` does; the network stays as it is.

    Every batch of `training.batch_size` images is shared among the workers, so that losses and
    weights are those of one process up to rounding, as long as `engine.sync_batch_norm` holds and
    nothing is drawn at random above the thaw line (dropout). A worker that dies is replaced, and
    all go on from the last saved state.

    Args:
        arguments: of `training.prepare`, by name. The paths in it must lead to the same files on
            all machines of the cluster.
        phases: what is trainable, for how long and how fast.
        engine: where.
        states: as of `training.train`, in a folder that all machines share.
        on_epoch: as of `training.train`; it is called in this process.

    Raises:
        DataError: when an image file is no longer there.
        ParameterError: when Ray is missing, does not answer, or has not as much as is asked for.
        ThawlineError: what training raises, or when the workers have died too often.
    """
    connect(engine)
    share = divide(engine)
    arguments = _for_workers(arguments, engine)
    store = arguments.get("store")
    if store and store.max_bytes and arguments.get("views") and not arguments.get("mix"):
        compute_activations(arguments, phases[0], share)
    batch = arguments["options"].batch_size * arguments["options"].gradient_accumulation_steps
    logger.info(
        "Ray: the effective batch is %d images, of which each of %d worker(s) computes its share;"
        " the learning rates are those of one worker, since to the optimizer the batch is the same",
        batch,
        share.workers,
    )
    return _fit(arguments, phases, share, states, on_epoch)


def connect(engine: EngineOptions) -> None:
    """Connect this process to the cluster, or start one on this machine; once is enough.

    Raises:
        ParameterError: when Ray is missing or the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    try:
        import ray
    except ImportError as error:
        raise ParameterError("engine: ray is not installed: pip install 'thawline[ray]'") from error
    with _connecting, _own_signals():
        if ray.is_initialized():
            return
        try:
            # What workers log is sent by `_log_to`; Ray's own lines are many.
            ray.init(
                engine.address,
                runtime_env={"env_vars": ENVIRONMENT},
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ParameterError(
                f"engine.address: there is no Ray cluster at {engine.address} ({error})."
            ) from error


def divide(engine: EngineOptions) -> Share:
    """Return how many workers there are and what each of them has.

    Raises:
        ParameterError: when the cluster has less than that.
    """
    import ray

    there = ray.cluster_resources()
    gpus, cpus = there.get("GPU", 0), there.get("CPU", 0)
    gpus_each = (1.0 if gpus else 0.0) if engine.gpus_per_worker is None else engine.gpus_per_worker
    possible = min(int(cpus), int(gpus / gpus_each) if gpus_each else int(cpus))
    workers = engine.workers or max(1, possible)
    if workers > possible:
        raise ParameterError(
            f"engine.workers: {workers} with a CPU and {gpus_each:g} GPU each, but the cluster has"
            f" {cpus:g} CPU and {gpus:g} GPU: that is enough for {possible}. Start more machines,"
            " or lower engine.workers or engine.gpus_per_worker."
        )
    return Share(workers, {"CPU": 1, "GPU": gpus_each} if gpus_each else {"CPU": 1})


def compute_activations(arguments: dict[str, Any], phase: Phase, share: Share) -> None:
    """Fill the store with what the frozen part yields in a phase, by actors that each hold it.

    Ray Data deals out the images; what is in the store already is not computed again.

    Raises:
        DataError: when an image file cannot be read, or is no longer there.
    """
    import ray.data

    splits = arguments["splits"]
    views = [(EVALUATION, splits[splits["split"] == "val"])]
    train_images = splits[splits["split"] == "train"]
    views += [(number, train_images) for number in range(min(arguments["views"], phase.epochs))]
    table = pa.concat_tables(
        pa.table({"path": rows["path"], "sha256": rows["sha256"], "view": [number] * len(rows)})
        for number, rows in views
    )
    # In parts from the start: to make them later, Ray Data needs a CPU beside those of the actors.
    tasks = max(len(table) / IMAGES_A_TASK, TASKS_A_WORKER * share.workers)
    ends = np.linspace(
        0, len(table), math.ceil(min(tasks, len(table) / CPU_CHUNK_SIZE)) + 1, dtype=int
    )
    parts = [table.slice(at, end - at) for at, end in itertools.pairwise(ends)]
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    done = ray.data.from_arrow(parts).map_batches(
        FrozenPart,
        fn_constructor_args=(arguments, phase),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=share.workers),
        num_cpus=share.resources["CPU"],
        num_gpus=share.resources.get("GPU", 0),
    )
    with progress_bar("Frozen part, images") as bar:
        task = bar.add_task("", total=len(table), epoch="", figures="")
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
            bar.update(task, advance=int(batch["images"].sum()))
            if problems := [problem for problem in batch["problem"] if problem]:
                raise DataError(problems[0])


class FrozenPart:
    """An actor of Ray Data that puts the activations of images into the store."""

    def __init__(self, arguments: dict[str, Any], phase: Phase) -> None:
        """Split the network of a phase at its thaw line."""
        setup = training.prepare(**arguments)
        self._activations = training.prepare_phase(setup, phase).activations

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return how many images there were, or why one of them cannot be read."""
        columns = (rows["path"].tolist(), rows["sha256"].tolist(), rows["view"].tolist())
        images = [ImageView(*row) for row in zip(*columns, strict=True)]
        random = [image for image in images if image.view != EVALUATION]
        plain = [image._replace(view=None) for image in images if image.view == EVALUATION]
        problem = ""
        try:
            for some in (random, plain):  # in batches, so that one is decoded while another runs
                batches = [
                    some[at : at + CPU_CHUNK_SIZE] for at in range(0, len(some), CPU_CHUNK_SIZE)
                ]
                for _ in self._activations.load(batches):
                    pass
        except DataError as error:  # Ray would wrap it into a page of its own
            problem = str(error)
        return {"images": np.array([len(images)]), "problem": np.array([problem])}


def _fit(
    arguments: dict[str, Any],
    phases: Sequence[Phase],
    share: Share,
    states: TrainingCheckpoints | None,
    on_epoch: OnEpoch | None,
) -> TrainingResult:
    """Start the workers, pass on what they tell, and return the first one's result."""
    import ray
    from ray.train import TrainingFailedError

    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    config: dict[str, Any] = {
        "arguments": arguments,
        "phases": phases,
        "states": states and states.folder.resolve(),
        "mailbox": mailbox,
        "level": logging.getLogger(LOG).getEffectiveLevel(),
    }
    shared = config["states"] or Path(tempfile.gettempdir())
    folder = shared / f"ray-{uuid.uuid4().hex}"
    trainer = _trainer(config, share, folder)
    epochs, seen = sum(phase.epochs for phase in phases), 0
    with ThreadPoolExecutor(1) as pool, progress_bar("Training on Ray, epoch") as bar:
        task = bar.add_task("", total=epochs, epoch="", figures="")
        future = pool.submit(trainer.fit)
        try:
            for item in _items(mailbox, future.done):
                if isinstance(item, logging.LogRecord):
                    logging.getLogger(item.name).handle(item)
                elif isinstance(item, ThawlineError):
                    raise item
                elif isinstance(item, Done):
                    done = item
                elif item["epoch"] > seen:  # those that replace a worker tell its epochs again
                    seen = item["epoch"]
                    bar.update(task, completed=seen, epoch=f"{seen}/{epochs}")
                    if on_epoch:
                        on_epoch(item, seen)
            future.result()
        except TrainingFailedError as error:
            raise TrainingError(
                f"The workers on Ray failed more than {RESTARTS} times, or could not begin: {error}"
            ) from error
        except BaseException:
            ray.shutdown()  # else the pool waits for the workers
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if states and done.states:
        states.adopt(done.states)
    return done.result


def _trainer(config: dict[str, Any], share: Share, folder: Path) -> Any:
    """Return Ray's trainer, which replaces workers that die and keeps its own notes in a folder."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        _work,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=share.workers,
            use_gpu="GPU" in share.resources,
            resources_per_worker=share.resources,
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )


def _items(mailbox: Any, has_ended: Callable[[], bool]) -> Iterator[Any]:
    """Yield what workers tell, until they have ended."""
    import ray

    ended = False
    while not ended:
        ended = has_ended()  # first: what comes after it is still taken
        yield from ray.get(mailbox.take.remote())
        if not ended:
            time.sleep(POLL_SECONDS)


def _work(config: dict[str, Any]) -> None:
    """Train as one of the workers; tell everyone's errors, and all else of the first one."""
    import ray

    mailbox, arguments, own = config["mailbox"], config["arguments"], rank()
    states = TrainingCheckpoints(config["states"]) if config["states"] else None
    logging.getLogger(LOG).setLevel(config["level"])  # where losses are logged, all add them up
    with _log_to(mailbox, logging.NOTSET if own == 0 else logging.WARNING):
        if ray.get(mailbox.begin.remote(own)):
            resumed = arguments["options"].model_copy(update={"resume": True})
            arguments = {**arguments, "options": resumed}
            if own == 0:
                logger.warning("A worker has died: new ones go on from the last saved state")
        try:
            result = training.train(
                training.prepare(**arguments),
                config["phases"],
                states,
                (lambda row, _: mailbox.put.remote(row)) if own == 0 else None,
            )
        except ThawlineError as error:
            ray.get(mailbox.put.remote(error))
            raise
    if own == 0:  # Ray refuses to return tensors
        ray.get(mailbox.put.remote(Done(result, states)))


@contextmanager
def _log_to(mailbox: Any, level: int) -> Iterator[None]:
    """Send what Thawline logs, from a level on, to the process that waits for the workers."""

    class Handler(logging.handlers.QueueHandler):
        def enqueue(self, record: logging.LogRecord) -> None:
            mailbox.put.remote(record)

    log, handler = logging.getLogger(LOG), Handler(None)  # type: ignore[arg-type]
    handler.setLevel(level)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _for_workers(arguments: dict[str, Any], engine: EngineOptions) -> dict[str, Any]:
    """Return the arguments with hashes of the images, which all would make, and absolute paths."""
    splits: pd.DataFrame = arguments["splits"]
    used = splits[splits["split"] != "test"]
    if "sha256" not in used:
        used = used.assign(sha256=hash_files(used["path"].tolist()))
    store = arguments.get("store")
    return {
        **arguments,
        "splits": used,
        "store": store and ActivationCache(store.folder.resolve(), store.max_bytes / GB),
        "sync_batch_norm": engine.sync_batch_norm,
    }


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers of signals, which Ray would replace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
