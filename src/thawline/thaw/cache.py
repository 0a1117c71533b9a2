"""Cache decoded views and frozen-layer activations on disk, within a limit.

A cache is a folder of partitions, one per configuration that entries were computed with. Nothing is
invalidated in place: another configuration is another partition, and old ones are evicted.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import pandas as pd

from thawline.data.decoding import CODEC_VERSIONS
from thawline.data.transforms import DECODING_VERSION, Transforms
from thawline.thaw.partition import KEY_BYTES, CachePartition, read_metadata

logger = logging.getLogger(__name__)

GB = 1e9
CACHE_FORMAT = 2  # part of every description, so that no entry of another format is read
STALE_SECONDS = 3600  # an unfinished file this old was left by a process that was killed
PROBE_BYTES = 8_000_000  # size of the file that measures the disk


def describe_entries(
    transforms: Transforms, random: bool, network: str = "", fingerprint: Mapping[str, str] = {}
) -> dict[str, Any]:
    """Return all that cached entries depend on. When any of it changes, they are not read again.

    The image's content and the view's number are in the entry's key instead. Activations also
    depend on a `network`, by its class and boundary, and its `FrozenPart.fingerprint`.
    """
    kind = "random views" if random else "evaluation views"
    description: dict[str, Any] = {
        "holds": f"{network}, {kind}" if network else kind,
        "preprocessing": transforms.preprocessing.model_dump(mode="json"),
        "packages": {name: version(name) for name in ("torch", "torchvision", "pillow")},
        "decoding": DECODING_VERSION,
        "codecs": CODEC_VERSIONS,
    }
    if random:
        augmentation = transforms.options.model_dump(mode="json")
        augmentation |= transforms.augmentation.of_views()
        description |= {"augmentation": augmentation, "seed": transforms.seed}
    return description | ({"below": fingerprint} if fingerprint else {})


class ActivationCache:
    """A folder of partitions that together hold at most `max_gb`."""

    def __init__(self, folder: Path, max_gb: float) -> None:
        """Open the cache in `folder`, which need not exist; `max_gb` is in GB (10^9 bytes)."""
        self.folder, self.max_bytes = folder, max_gb * GB

    def partition(self, description: dict[str, Any], pin_memory: bool = False) -> CachePartition:
        """Return the partition that is named by the hash of a description of its entries.

        If `pin_memory`, it reads into page-locked memory, for copies to a GPU.
        """
        text = json.dumps({**description, "cache_format": CACHE_FORMAT}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return CachePartition(self.folder / name, text, self.evict, pin_memory)

    def contents(self) -> pd.DataFrame:
        """Return one row per partition: what it holds, entries, MB (10^6 bytes) and last use."""
        rows = []
        for folder in sorted(path for path in self.folder.glob("*") if path.is_dir()):
            shards = sorted(folder.glob("*.safetensors"))
            metadata = [found for found in map(read_metadata, shards) if found]
            if metadata:
                # In hexadecimal digits. Shards of an earlier format have no entries to read.
                entries = sum(len(m.get("keys", "")) // (2 * KEY_BYTES) for m in metadata)
                megabytes = round(sum(int(m["bytes"]) for m in metadata) / 1e6, 1)
                last_used = datetime.fromtimestamp(int(max(p.stat().st_mtime for p in shards)))
                holds = json.loads(metadata[-1]["description"])["holds"]
                rows.append((folder.name[:8], holds, entries, megabytes, last_used))
        return pd.DataFrame(rows, columns=["partition", "holds", "entries", "MB", "last used"])

    def clear(self) -> None:
        """Remove all entries; a process that is training recomputes what it misses."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def evict(self) -> None:
        """Remove the least recently used shards beyond `max_gb`, and what killed processes left.

        Shards that this process may not remove stay, such as those of another user.
        """
        now, shards = time.time(), []
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):  # another process was faster
                status = path.stat()
                if path.suffix == ".safetensors":
                    shards.append((status.st_mtime, status.st_size, path))
                elif path.suffix == ".unfinished" and now - status.st_mtime > STALE_SECONDS:
                    with suppress(OSError):
                        path.unlink()
        excess = sum(size for _, size, _ in shards) - self.max_bytes
        for _, size, path in sorted(shards):
            if excess <= 0:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                excess -= size
                logger.info("%s GB limit: evicting %s", self.max_bytes / GB, path)

    def bytes_per_second(self) -> float:
        """Measure how fast a file is written to the disk and read back once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = os.urandom(PROBE_BYTES)
        with NamedTemporaryFile(dir=self.folder, buffering=0) as probe:
            start = time.perf_counter()
            probe.write(data)
            os.fsync(probe)
            Path(probe.name).read_bytes()
            return len(data) / (time.perf_counter() - start)


NO_CACHE = ActivationCache(Path(), max_gb=0)


class Cost(NamedTuple):
    """What it costs to cache data of an image, and to load it once more."""

    bytes: int
    seconds: float

    def __str__(self) -> str:
        """Return both in units that fit the log."""
        return f"{self.bytes / 1e3:.0f} kB and {self.seconds * 1e3:.2f} ms per image"


def fastest_that_fits(costs: Mapping[str, Cost], entries: int, max_bytes: float) -> str:
    """Return the name of the fastest option of which all entries fit into `max_bytes`."""
    fitting = [name for name, cost in costs.items() if cost.bytes * entries <= max_bytes]
    return min(fitting, key=lambda name: costs[name].seconds)
