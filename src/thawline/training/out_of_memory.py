"""If the device runs out of memory, repeat an epoch on fewer images at once, or say what to do."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from thawline.errors import TrainingError, first_line
from thawline.training.data_parallel import world_size
from thawline.training.progress import TrainingProgress
from thawline.training.setup import MIN_IMAGES, PhaseContext, TrainingContext
from thawline.training.state import restore_state

logger = logging.getLogger(__name__)


def retry_on_smaller_micro_batches(
    epoch: Callable[[], None],
    start: dict[str, Any],
    run: TrainingContext,
    current: PhaseContext,
    progress: TrainingProgress,
) -> None:
    """Run an epoch; if the device runs out of memory, repeat it with half the micro-batch.

    It begins again from the state `start`, with the same weights, moments and random numbers, and
    accumulates the gradients of its micro-batches, so that the optimizer sees the same batches.
    Batch norm in training and dropout see the micro-batches.

    Raises:
        TrainingError: if the smallest micro-batch does not fit, or other workers wait for this one.
    """
    while progress.micro_batch > MIN_IMAGES and world_size() == 1:
        try:
            epoch()
            return
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        # Not above: there the error still holds what did not fit.
        progress.micro_batch = max(MIN_IMAGES, progress.micro_batch // 2)
        clear_device_cache(garbage_collection=True)
        restore_state(start, run, current)
        logger.warning(
            "Out of device memory in epoch %d: repeating it with micro-batches of %d images, whose"
            " gradients are accumulated. The optimizer sees the same batches; batch norm in"
            " training sees the micro-batches",
            progress.epoch,
            progress.micro_batch,
        )
    parts = f"micro-batches of {progress.micro_batch} images"
    with explain_out_of_memory(f"in epoch {progress.epoch} with {parts}", run):
        epoch()


@contextmanager
def explain_out_of_memory(when: str, run: TrainingContext) -> Iterator[None]:
    """Say what to do if the device runs out of memory.

    Raises:
        TrainingError: instead of the device's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        ema = ", set training.ema_decay to null" if run.options.ema_decay is not None else ""
        raise TrainingError(
            f"Out of device memory {when} ({first_line(error)}). End other processes that use"
            f" the device, lower transforms.size or training.batch_size{ema}, or choose a smaller"
            " model.backbone or a strategy that freezes more."
        ) from error
