"""Hash the content of image files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from thawline.data.decoding import became_unreadable, map_threads, read_bytes


def hash_files(paths: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each file's content, as 64 hexadecimal digits.

    Raises:
        DataError: if a file cannot be read.
    """
    return list(map_threads(_hash, paths, "Hashing images"))


def _hash(path: str) -> str:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except OSError as error:
        raise became_unreadable(path, error) from error
