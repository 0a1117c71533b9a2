"""The cache gives back what was put there, whatever other processes and users do to its files."""

import logging
import os
import re
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch

from conftest import child_process
from helpers.numbered_entries import FULL, assert_read, keys_of, write
from thawline.thaw.cache import ActivationCache


@pytest.fixture
def store(tmp_path: Path) -> ActivationCache:
    return ActivationCache(tmp_path / "activations", FULL)


def test_another_description_is_another_partition(store: ActivationCache) -> None:
    write(store.partition({"holds": "numbers", "seed": 0}), [1])
    assert store.partition({"seed": 0, "holds": "numbers"}).contains(keys_of([1])).all()
    assert not store.partition({"seed": 1, "holds": "numbers"}).contains(keys_of([1])).any()


def test_the_least_recently_used_goes_first_and_the_bound_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one = torch.zeros(1, 250_000)  # 1 MB
    store = ActivationCache(tmp_path, max_gb=0.0035)
    partition = store.partition({"holds": "zeros"})
    for number in range(3):
        write(partition, [number], [one])
        time.sleep(0.01)
    again = store.partition({"holds": "zeros"})
    again.read(keys_of([0]))  # now 1 is the oldest
    write(partition, [3], [one])
    left = store.partition({"holds": "zeros"})
    (said,) = [m for m in caplog.messages if "evicting" in m]
    assert re.fullmatch(rf"0\.0035 GB limit: evicting {tmp_path}/.+\.safetensors", said)
    assert left.contains(keys_of([0, 1, 2, 3])).tolist() == [True, False, True, True]
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= store.max_bytes
    assert again.read(keys_of([0, 1, 2]))[0].tolist() == [True, False, True]
    assert not again.contains(keys_of([1])).any()


def test_what_a_killed_process_left_is_never_read_and_later_removed(store: ActivationCache) -> None:
    write(store.partition({"holds": "numbers"}), [1])
    folder = next(store.folder.glob("*"))
    old, new = folder / "old.unfinished", folder / "new.unfinished"
    for file in (old, new):
        file.write_bytes(b"half a shard")
    os.utime(old, (0, 0))
    assert store.partition({"holds": "numbers"}).contains(keys_of([1])).all()
    store.evict()
    assert not old.exists() and new.exists()  # the new one may still be being written


def test_contents_name_what_is_there_and_empty_removes_it(store: ActivationCache) -> None:
    assert store.contents().empty
    partition = store.partition({"holds": "ResNet up to flatten, random views"})
    write(partition, [1, 2])
    (row,) = store.contents().to_dict("records")
    assert (row["holds"], row["entries"]) == ("ResNet up to flatten, random views", 2)
    store.clear()
    assert store.contents().empty and not store.folder.exists()
    write(partition, [3])  # whoever trains goes on
    assert_read(store.partition({"holds": "ResNet up to flatten, random views"}), [3])


def test_contents_say_how_much_there_is_and_when_it_was_last_used(store: ActivationCache) -> None:
    for holds, count in (("zeros", 1), ("ones", 2)):
        partition = store.partition({"holds": holds})
        for number in range(count):
            before = {*store.folder.glob("*/*")}
            write(partition, [number], [torch.zeros(1, 85_000)])  # 0.34 MB
            (new,) = {*store.folder.glob("*/*")} - before
            os.utime(new, (0, 1000.5 + number))
    (store.folder / "a file").touch()
    (store.folder / "an empty folder").mkdir()
    rows = store.contents().set_index("holds")[["entries", "MB", "last used"]]
    assert rows.loc["zeros"].tolist() == [1, 0.3, datetime.fromtimestamp(1000)]
    assert rows.loc["ones"].tolist() == [2, 0.7, datetime.fromtimestamp(1001)]
    folders = {path.parent.name[:8] for path in store.folder.glob("*/*")}
    assert sorted(store.contents()["partition"]) == sorted(folders)


def test_the_disk_is_measured_and_nothing_is_left_on_it(store: ActivationCache) -> None:
    rate = store.bytes_per_second()
    assert 1e5 < rate < 1e12
    assert not [*store.folder.iterdir()]


def _read_as_another_user(store: ActivationCache) -> None:
    os.setuid(65534)
    partition = store.partition({"holds": "numbers"})
    assert_read(partition, [2, 1])
    assert_read(ActivationCache(store.folder, 0).partition({"holds": "numbers"}), [1])
    ActivationCache(store.folder, 0).evict()  # which it may not
    assert_read(store.partition({"holds": "numbers"}), [1, 2])


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become another user"
)
def test_another_user_reads_what_was_stored_and_cannot_remove_it() -> None:
    with tempfile.TemporaryDirectory() as folder:  # that of pytest is closed to others
        Path(folder).chmod(0o755)
        store = ActivationCache(Path(folder), FULL)
        write(store.partition({"holds": "numbers"}), [1, 2])
        child = child_process(_read_as_another_user, store)
        child.start()
        child.join()
        assert child.exitcode == 0
