"""Images of a split come in batches of a new order, and are told apart by content and label."""

import torch

from conftest import train_set_of


def batch_sizes(images: int, batch_size: int, fewest: int) -> list[int]:
    labels = torch.arange(images) % 2
    batches = train_set_of(labels).shuffle(torch.Generator(), batch_size, False, fewest)
    return [len(batch) for batch in batches]


def test_a_last_batch_of_too_few_images_is_dropped_unless_it_is_the_only_one() -> None:
    assert batch_sizes(9, 4, fewest=2) == [4, 4]
    assert batch_sizes(5, 4, fewest=2) == [4]
    assert batch_sizes(10, 4, fewest=2) == [4, 4, 2]
    assert batch_sizes(10, 4, fewest=3) == [4, 4]
    assert batch_sizes(1, 4, fewest=2) == [1]


def test_a_digest_tells_labels_and_images_apart() -> None:
    one, swapped, more = ([0, 1, 0], [1, 0, 0], [0, 1, 0, 1])
    digests = {train_set_of(torch.tensor(labels)).digest() for labels in (one, swapped, more)}
    assert len(digests) == 3
    images = train_set_of(torch.tensor(one))
    assert images.digest() == train_set_of(torch.tensor(one)).digest()
    assert images._replace(rows=images.rows[::-1]).digest() not in digests
