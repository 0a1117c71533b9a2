"""Entries of an activation cache that are told apart by a number."""

from collections.abc import Sequence

import torch
from torch import Tensor

from thawline.data.loading import ImageView
from thawline.thaw.partition import CachePartition

FULL = 10.0  # GB


def keys_of(numbers: list[int]) -> list[bytes]:
    return [ImageView("", f"{number:064x}", number % 3 or None).key for number in numbers]


def tensors_of(numbers: list[int]) -> tuple[Tensor, Tensor]:
    """Return two tensors a number that tell it from any other."""
    values = torch.tensor(numbers, dtype=torch.float32)
    images = values[:, None, None, None].expand(-1, 2, 3, 3).contiguous()
    return images, values[:, None].to(torch.bfloat16)


def write(
    partition: CachePartition, numbers: list[int], tensors: Sequence[Tensor] | None = None
) -> None:
    """Write entries of these numbers to the disk, with their own tensors or with others."""
    partition.add(keys_of(numbers), tensors or tensors_of(numbers))
    partition.flush()


def assert_read(partition: CachePartition, numbers: list[int]) -> None:
    is_known, tensors = partition.read(keys_of(numbers))
    assert is_known.all()
    for found, expected in zip(tensors, tensors_of(numbers), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
