"""Run the part of a network below the thaw line, a few images at a time."""

import hashlib
import logging

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from thawline.data.transforms import Preprocessing, normalize
from thawline.thaw.device import Accelerator, synchronized_time
from thawline.thaw.freezing import hash_tensors
from thawline.thaw.line import ThawLine
from thawline.thaw.partition import Tensors

logger = logging.getLogger(__name__)

# A CPU always processes 8 images at a time, so results do not depend on which images are cached.
# With 32, activations exceed its own caches: 230 instead of 370 images/s (EfficientNet-Lite0).
CPU_CHUNK_SIZE = 8


class FrozenPart:
    """The part below the line, from views to what crosses it; normalization alone if `is_empty`."""

    def __init__(
        self, line: ThawLine, preprocessing: Preprocessing, accelerator: Accelerator
    ) -> None:
        """Move the part to the device and to the dtype that it computes in."""
        self._below, self.is_empty = line.below, line.below is None
        self._preprocessing, self._accelerator = preprocessing, accelerator
        self._chunk = CPU_CHUNK_SIZE if accelerator.device.type == "cpu" else None
        if self._below is not None:
            self._below.to(*accelerator).to(memory_format=torch.channels_last)

    def __call__(self, views: Tensor) -> Tensors:
        """Return the tensors (N, …) that cross the line for views (N, 3, size, size) uint8."""
        if self._below is None:
            return (self._normalized(views),)
        while True:
            chunk = self._chunk or len(views)
            try:
                return self._run_in_chunks(views, chunk)
            except RuntimeError as error:
                if chunk == 1 or not should_reduce_batch_size(error):
                    raise
            self._chunk = chunk // 2
            clear_device_cache(garbage_collection=True)  # outside `except`, which holds tensors
            said = "Out of device memory for %d images: running the frozen layers on %d at a time"
            logger.warning(said, chunk, self._chunk)

    def fingerprint(self) -> tuple[dict[str, str], int]:
        """Return a fingerprint of the part, and the bytes that cross the line per image.

        Its outputs for noise are included, because they change even with the code of its modules.
        """
        size = self._preprocessing.size
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
        answer = {str(idx): tensor for idx, tensor in enumerate(self(noise))}
        assert self._below is not None
        modules = {name: repr(module) for name, module in self._below.named_modules() if name}
        fingerprint = {
            "weights": hash_tensors(self._below.state_dict()),
            "structure": hashlib.sha256(f"{self._below.code}{modules}".encode()).hexdigest(),
            "precision": str(self._accelerator.dtype),
            "answer": hash_tensors(answer),
        }
        return fingerprint, sum(tensor[0].nbytes for tensor in answer.values())

    def seconds(self, views: Tensor) -> float:
        """Measure how long the part takes for views (N, 3, size, size) uint8."""
        self(views)  # the first pass is slower than any later one
        start = synchronized_time()
        self(views)
        return synchronized_time() - start

    def _run_in_chunks(self, views: Tensor, chunk: int) -> Tensors:
        """Return the tensors that cross the line, computed for `chunk` views at a time."""
        assert self._below is not None
        parts = []
        # Tensors of inference mode could not be saved for the backward pass above the line.
        with torch.no_grad(), self._accelerator.autocast():
            for some in views.split(chunk):
                full = some
                if len(some) < chunk:  # not always: a copy would leave page-locked memory
                    full = torch.cat([some, some[:1].expand(chunk - len(some), -1, -1, -1)])
                tensors = self._below(self._normalized(full).to(self._accelerator.dtype))
                parts.append([tensor[: len(some)] for tensor in tensors])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _normalized(self, views: Tensor) -> Tensor:
        return normalize(views.to(self._accelerator.device, non_blocking=True), self._preprocessing)
