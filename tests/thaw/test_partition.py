"""A partition gives back what was put there, from as many shards as it takes."""

import errno
import logging
import os
import random
import re
import resource
import stat
import tracemalloc
from io import FileIO
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.numbered_entries import FULL, assert_read, keys_of, tensors_of, write
from thawline.data.loading import ImageView
from thawline.thaw import partition as shards
from thawline.thaw.cache import ActivationCache


@pytest.fixture
def store(tmp_path: Path) -> ActivationCache:
    return ActivationCache(tmp_path / "activations", FULL)


@given(
    st.lists(st.lists(st.integers(0, 200), min_size=1, unique=True), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_entries_come_back_in_any_order_and_in_another_process_too(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], order: random.Random
) -> None:
    store = ActivationCache(tmp_path_factory.mktemp("store"), FULL)
    partition = store.partition({"holds": "numbers"})
    for batch in batches:
        write(partition, batch)
    known = sorted({number for batch in batches for number in batch})
    order.shuffle(known)
    for one in (partition, ActivationCache(store.folder, FULL).partition({"holds": "numbers"})):
        assert one.contains(keys_of(known)).all()
        assert_read(one, known)
    unknown = ImageView("", "f" * 64).key
    assert not partition.contains([unknown]).any()
    is_known, tensors = partition.read([unknown, *keys_of(known[:1])])
    assert is_known.tolist() == [False, True] and len(tensors[0]) == 1


def test_more_than_ten_tensors_keep_their_order(store: ActivationCache) -> None:
    partition = store.partition({"holds": "many"})
    write(partition, [1], [torch.full((1,), idx) for idx in range(12)])
    assert [tensor.item() for tensor in partition.read(keys_of([1]))[1]] == [*range(12)]


def test_a_damaged_shard_is_removed_and_the_rest_still_read(
    store: ActivationCache, caplog: pytest.LogCaptureFixture
) -> None:
    partition = store.partition({"holds": "numbers"})
    for number in (1, 2):
        write(partition, [number])
    damaged = sorted(store.folder.glob("*/*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        reopened = store.partition({"holds": "numbers"})
    assert f"Removing {damaged}, which is damaged (Error while deserializing" in caplog.text
    assert not damaged.exists() and reopened.contains(keys_of([1, 2])).sum() == 1


def test_a_disk_that_cannot_be_written_to_costs_time_but_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way of the folder")
    partition = ActivationCache(tmp_path / "file", FULL).partition({"holds": "numbers"})
    partition.add(keys_of([1]), tensors_of([1]))
    with caplog.at_level(logging.WARNING):
        partition.flush()
    (said,) = caplog.messages
    wanted = r"Cannot write \w+\.safetensors \(.+\): its entries will be recomputed"
    assert re.fullmatch(wanted, said) and not partition.contains(keys_of([1])).any()


@pytest.mark.parametrize("limit", [5 * 80, 10**6])
def test_entries_wait_until_there_are_enough_of_them(
    store: ActivationCache, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", limit)
    partition = store.partition({"holds": "numbers"})
    partition.add(keys_of([1]), tensors_of([1]))  # 80 bytes per entry
    partition.add(keys_of([2, 3]), tensors_of([2, 3]))
    assert store.contents()["entries"].sum() == 0
    partition.add(keys_of([4, 5]), tensors_of([4, 5]))
    assert store.contents()["entries"].sum() == (5 if limit == 5 * 80 else 0)
    partition.flush()
    partition.flush()
    assert len([*store.folder.glob("*/*")]) == 1
    assert_read(store.partition({"holds": "numbers"}), [5, 1, 4, 2, 3])


def test_entries_of_another_process_are_found_after_a_refresh(store: ActivationCache) -> None:
    partition, again = (store.partition({"holds": "numbers"}) for _ in range(2))
    write(partition, [5, 1])
    assert not again.contains(keys_of([5])).any()
    again.refresh()
    assert_read(again, [5, 1])


def test_entries_that_wait_can_be_read_and_writing_to_their_tensors_does_not_change_them(
    store: ActivationCache,
) -> None:
    partition = store.partition({"holds": "numbers"})
    tensors = tensors_of([1, 2])
    partition.add(keys_of([1, 2]), tensors)
    for tensor in (*tensors, *partition.read(keys_of([1, 2]))[1]):
        tensor.zero_()  # as an operation in place above the line does
    assert partition.contains(keys_of([3, 2, 1])).tolist() == [False, True, True]
    assert_read(partition, [2, 1, 2])
    partition.flush()
    partition.add(keys_of([3]), tensors_of([3]))
    assert_read(partition, [3, 1, 3, 2])


def test_the_index_takes_at_most_64_bytes_per_entry(store: ActivationCache) -> None:
    count = 50_000
    keys = [ImageView("", f"{number:064x}").key for number in range(count)]
    store.partition({"holds": "bytes"}).add(keys, [torch.zeros(count, 1, dtype=torch.uint8)])
    writer = store.partition({"holds": "bytes"})
    writer.add(keys, [torch.arange(count)])
    writer.flush()
    tracemalloc.start()
    reader = store.partition({"holds": "bytes"})
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 64 * count
    assert reader.contains(keys).all()
    assert reader.read(keys[-3:])[1][0].tolist() == [count - 3, count - 2, count - 1]


def test_more_shards_than_may_be_open_are_all_read(
    store: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_OPEN_SHARDS", 2)
    partition = store.partition({"holds": "numbers"})
    for number in range(7):
        write(partition, [number])
    assert_read(partition, [6, 0, 5, 1, 4, 2, 3])
    assert_read(partition, [0, 1, 2, 3, 4, 5, 6])


def test_a_process_that_may_open_few_files_reads_all_and_forgets_none(
    store: ActivationCache,
) -> None:
    partition = store.partition({"holds": "few files"})
    for number in range(20):
        write(partition, [number])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = max(int(file.name) for file in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 5, limits[1]))
    try:
        for _ in range(2):
            assert_read(partition, [*range(20)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert partition.contains(keys_of([*range(20)])).all()


def test_a_shard_that_a_network_file_system_lost_is_as_one_that_was_evicted(
    store: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stale(FileIO):
        def readinto(self, _: object) -> int:
            raise OSError(errno.ESTALE, "Stale file handle")

    partition = store.partition({"holds": "stale"})
    write(partition, [1])
    monkeypatch.setattr(shards, "FileIO", Stale)
    assert not partition.read(keys_of([1]))[0].any()
    assert not partition.contains(keys_of([1])).any()


def test_files_have_the_mode_that_the_umask_gives_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write(ActivationCache(tmp_path, FULL).partition({"holds": "numbers"}), [1])
    finally:
        os.umask(before)
    (shard,) = tmp_path.glob("*/*.safetensors")
    assert stat.S_IMODE(shard.stat().st_mode) == 0o644
