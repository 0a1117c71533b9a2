"""Read files, also those in WebDataset shards (tar archives), which are not unpacked.

The path of a member is below its shard, `shards/000.tar/ants/0001.jpg`. No other file can have that
path, because a file has no folder below it.
"""

import errno
import io
import json
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thawline.errors import DataError

SUFFIX = ".tar"
ESCAPED_BYTE = "\\udc"  # how `printable` begins a byte that a CSV cannot hold
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LABELS = ("cls", "json")  # extensions of labels; KEY.cls counts if there are both
MAX_INDEXED_SHARDS = 512  # an index takes about 50 bytes per member


class Place(NamedTuple):
    """The bytes of a member in its shard."""

    shard: str
    offset: int
    size: int
    mtime_ns: int  # of the shard


def find_member(path: str | os.PathLike[str]) -> Place | None:
    """Find the member of a shard by its path; return None if no part of the path is a shard.

    Raises:
        DataError: if the shard is damaged.
        OSError: if the shard cannot be read or has no such member.
    """
    file = os.fspath(path)
    shard, name = _parts(file)
    if shard is None:
        return None
    status = os.stat(shard)  # noqa: PTH116 - faster than Path.stat; called for every image
    names, offsets, sizes = _index(shard, status.st_size, status.st_mtime_ns)
    wanted = name.encode("utf-8", "surrogateescape")
    row = int(np.searchsorted(names, wanted))
    if row == len(names) or names[row] != wanted:
        raise FileNotFoundError(errno.ENOENT, f"{shard} has no such member", file)
    return Place(shard, int(offsets[row]), int(sizes[row]), status.st_mtime_ns)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file or of a shard's member.

    Raises:
        OSError: if it cannot be read.
    """
    place = find_member(path)
    if place is None:
        return Path(path).read_bytes()
    with open(place.shard, "rb", buffering=0) as file:  # noqa: PTH123 - as above
        file.seek(place.offset)
        content = file.read(place.size)
    if len(content) < place.size:
        raise OSError(errno.EIO, "the shard has become shorter", place.shard)
    return content


def stat_file(path: str) -> tuple[int, int, int]:
    """Return size in bytes, time of change in ns, and mode; a member has its shard's time.

    Raises:
        OSError: if there is no such file.
    """
    if member := find_member(path):
        return member.size, member.mtime_ns, stat.S_IFREG
    status = os.stat(path)  # noqa: PTH116 - as above
    return status.st_size, status.st_mtime_ns, status.st_mode


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path leads to a file or to a member of a shard.

    Raises:
        DataError: if the shard is damaged.
    """
    try:
        return os.path.isfile(path) or find_member(path) is not None  # noqa: PTH113
    except OSError:
        return False


def printable(path: str) -> str:
    r"""Escape what a CSV cannot hold: bytes that are not UTF-8 as \udcXX, and carriage returns."""
    return path.replace("\r", rf"{ESCAPED_BYTE}0d").encode("utf-8", "backslashreplace").decode()


def find_labeled(shard: str, extensions: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the path and the label of each image in a shard; `extensions` (`.jpg`) are of images.

    An image and its label share a key, the member's name up to the first dot of its last part. The
    label is the text of KEY.cls or the value `label` of KEY.json. Keys with neither are skipped.

    Raises:
        DataError: if an image has no label, a label no image, a key two images, or the shard is
            damaged.
        OSError: if the shard cannot be read.
    """
    samples: dict[str, dict[str, str]] = {}
    status = os.stat(shard)  # noqa: PTH116
    for encoded in _index(shard, status.st_size, status.st_mtime_ns)[0]:
        name = encoded.decode("utf-8", "surrogateescape")
        stem, _, extension = posixpath.basename(name).partition(".")
        if stem:  # a hidden file has no key
            members = samples.setdefault(_key(name), {})
            first = members.setdefault(extension.lower(), name)
            if first != name:
                raise _bad(shard, _key(name), f"occurs twice, as {first} and {name}")
    for key, members in samples.items():
        images = [name for kind, name in members.items() if f".{kind}" in extensions]
        label = next((members[kind] for kind in LABELS if kind in members), None)
        if len(images) > 1:
            raise _bad(shard, key, f"has two images, {images[0]} and {images[1]}")
        if images and label is None:
            raise _bad(shard, key, "has no label, neither .cls nor .json")
        if label is not None and not images:
            raise _bad(shard, key, "has a label and no image")
        if label is not None:
            yield f"{shard}/{images[0]}", _read_label(shard, key, label)


def _read_label(shard: str, key: str, member: str) -> str:
    try:
        label = read_bytes(f"{shard}/{member}").decode()
        if member.lower().endswith(".json"):
            content = json.loads(label)
            value = content.get("label") if isinstance(content, dict) else None
            label = str(value) if isinstance(value, (str, int)) else ""
    except ValueError as error:
        raise _bad(shard, key, f"has no label in {member} ({error!r})") from error
    if not label.strip():
        raise _bad(shard, key, f"has no label in {member}")
    return label.strip()


def _parts(path: str) -> tuple[str | None, str]:
    """Return the shard in a path and the member's name, or None."""
    start = 0
    while (end := path.find(f"{SUFFIX}/", start)) >= 0:
        shard = path[: end + len(SUFFIX)]
        if os.path.isfile(shard):  # noqa: PTH113
            return shard, path[len(shard) + 1 :]
        start = end + 1
    return None, ""


@lru_cache(MAX_INDEXED_SHARDS)
def _index(shard: str, size: int, mtime_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sorted names (M,) as bytes, offsets and sizes of the members of a shard."""
    members: dict[str, tuple[int, int]] = {}
    end, last = 0, "its beginning"
    with open(shard, "rb") as file:  # noqa: PTH123
        for member in _members(shard, file):
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if end > size:
                raise _cut_off(shard, member.name)
            name = posixpath.normpath(member.name).lstrip("/")
            if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse():
                if name in members:
                    raise _bad(shard, _key(name), f"occurs twice, as {name}")
                members[name] = member.offset_data, member.size
            last = member.name
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # an archive ends with zeros
            raise _cut_off(shard, last)
    names = np.array([name.encode("utf-8", "surrogateescape") for name in members], np.bytes_)
    order = names.argsort()
    places = np.array(list(members.values()), np.int64).reshape(-1, 2)[order]
    return names[order], places[:, 0].copy(), places[:, 1].copy()


def _members(shard: str, file: io.BufferedReader) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # saves memory
                yield member
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(
            f"dataset.root: {shard} is not a tar archive, or is compressed or damaged ({error})."
            " Unpack it, or rewrite it without compression."
        ) from error


def _key(name: str) -> str:
    folder, last = posixpath.split(posixpath.normpath(name))
    return posixpath.join(folder, last.partition(".")[0])


def _cut_off(shard: str, name: str) -> DataError:
    return DataError(
        f"dataset.root: {shard} is truncated or damaged after {_key(name)}. Download it again, or"
        " rewrite and close it."
    )


def _bad(shard: str, key: str, what: str) -> DataError:
    return DataError(
        f"dataset.root: in {shard} the key '{key}' {what}. Give each KEY one image and its label as"
        " KEY.cls, or as label in KEY.json."
    )
