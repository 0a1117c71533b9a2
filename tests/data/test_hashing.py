"""Hashes are of the content of files."""

import hashlib
from pathlib import Path

from thawline.data.hashing import hash_files


def test_a_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    first, second, other = hash_files([str(tmp_path / name) for name in "abc"])
    assert first == second == hashlib.sha256(b"one").hexdigest() != other
