"""A batch that does not fit is computed in parts, down to one image, and then given up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thawline.training.micro_batches import add_gradients


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_without_memory_for_one_image_the_error_is_raised(count: int) -> None:
    network, sizes = nn.Linear(4, 3), []

    def no_memory(images: Tensor) -> Tensor:
        sizes.append(len(images))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    images, targets = torch.zeros(count, 4), torch.zeros(count, dtype=torch.long)
    with pytest.raises(torch.OutOfMemoryError):
        add_gradients(
            network, [*network.parameters()], no_memory, nn.CrossEntropyLoss(), (images,), targets,
            count, Tensor.backward,
        )  # fmt: skip
    assert sizes[0] == count and sizes[-1] == 1
    assert sizes == sorted(set(sizes), reverse=True)
