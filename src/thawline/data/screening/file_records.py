"""Examine image files one by one, and name the problem of each."""

import errno
import hashlib
import logging
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

import pandas as pd
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from thawline.data import decoding
from thawline.data.atomic_write import write_atomic
from thawline.data.decoding import ImageError, open_image, to_rgb
from thawline.data.shards import ESCAPED_BYTE, printable, read_bytes, stat_file
from thawline.options import ScreeningOptions

logger = logging.getLogger(__name__)

# Camera JPEGs may hold several pictures: the first is the image and the others are previews.
STILL_FORMATS = ("JPEG", "MPO")


class Problem(StrEnum):
    """Why an image is left out or, for the last three, noted and kept."""

    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    UNREADABLE = "unreadable"
    DECOMPRESSION_BOMB = "decompression_bomb"
    FILE_TOO_LARGE = "file_too_large"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    ANIMATED = "animated"
    PERMISSION_DENIED = "permission_denied"
    SYMLINK_LOOP = "symlink_loop"
    BROKEN_LINK = "broken_link"
    LINK_TO_FOLDER = "link_to_folder"
    NOT_A_FILE = "not_a_file"
    UNUSABLE_NAME = "unusable_name"
    NAME_TOO_LONG = "name_too_long"
    VANISHED = "vanished"
    CONFLICTING_LABELS = "conflicting_labels"
    CLASS_TOO_SMALL = "class_too_small"
    WRONG_EXTENSION = "wrong_extension"
    DUPLICATE = "duplicate"
    CASE_CLASH = "case_clash"


# Problems that follow from a file's content alone; all others are checked in every screening.
CONTENT_PROBLEMS = (
    Problem.NOT_AN_IMAGE,
    Problem.TRUNCATED,
    Problem.UNREADABLE,
    Problem.DECOMPRESSION_BOMB,
    Problem.ANIMATED,
)
ERRNO_PROBLEMS = {
    errno.ENOENT: Problem.VANISHED,
    errno.ELOOP: Problem.SYMLINK_LOOP,
    errno.EACCES: Problem.PERMISSION_DENIED,
    errno.EPERM: Problem.PERMISSION_DENIED,
    errno.ENAMETOOLONG: Problem.NAME_TOO_LONG,
}


@dataclass(frozen=True)
class FileRecord:
    """What is known about a file; unknown numbers are 0 and unknown texts are empty."""

    path: str
    size: int = 0  # bytes
    mtime_ns: int = 0
    sha256: str = ""
    width: int = 0  # px, of the upright image
    height: int = 0
    format: str = ""  # Pillow's name
    mode: str = ""  # Pillow's name of the pixel type
    bits: int = 0  # that the values of a deep grayscale image need
    problem: str = ""
    detail: str = ""  # the problem in a sentence

    def with_problem(self, problem: Problem, detail: str) -> Self:
        """Add a problem."""
        return replace(self, problem=problem.value, detail=detail)


COLUMNS = [field.name for field in fields(FileRecord)]


def read_records(file: Path) -> dict[str, FileRecord]:
    """Return by path the records of the last screening, none if the file is missing or damaged."""
    try:
        table = pd.read_parquet(file, columns=COLUMNS)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, pa.ArrowException) as error:
        logger.warning("%s cannot be read and will be rebuilt (%s)", file, error)
        return {}
    columns = (table[name].tolist() for name in COLUMNS)
    return {row[0]: FileRecord(*row) for row in zip(*columns, strict=True)}


def examine_all(
    paths: Sequence[str], options: ScreeningOptions, cache: Path | None
) -> list[FileRecord]:
    """Return the record of each file, in order; the Parquet file `cache` keeps them."""
    known = read_records(cache) if cache else {}

    def examine_one(path: str) -> FileRecord:
        return examine(path, options, known.get(path))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's; only failures to decode matter here
        records = list(decoding.map_threads(examine_one, paths, "Opening images"))
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(records, columns=COLUMNS)
        write_atomic(cache, lambda path: table.to_parquet(path, index=False))
    return records


def examine(path: str, options: ScreeningOptions, known: FileRecord | None = None) -> FileRecord:
    """Return the record of a file. Nothing is raised, whatever the file is.

    The `known` record is reused if the file's size and time of change are the same.
    """
    try:
        size, mtime_ns, mode = stat_file(path)
        record = _check_entry(FileRecord(path, size, mtime_ns), mode, options)
        if record.problem:
            return record
        unchanged = known and (known.size, known.mtime_ns) == (size, mtime_ns)
        if not (known and unchanged and known.problem in ("", *CONTENT_PROBLEMS)):
            known = _decode(record, options)
        return known if known.problem else _check_pixels(known, options)
    except OSError as error:
        return _explain_access(FileRecord(path), error)


def _check_entry(record: FileRecord, mode: int, options: ScreeningOptions) -> FileRecord:
    """Check what is known before the file is opened."""
    if stat.S_ISDIR(mode):
        return _check_folder(record)
    if not stat.S_ISREG(mode):
        return record.with_problem(Problem.NOT_A_FILE, "a pipe, a socket or a device")
    if not record.size:
        return record.with_problem(Problem.EMPTY, "an empty file")
    if record.size > options.max_mb * 1e6:
        detail = f"{record.size / 1e6:.4g} MB; screening.max_mb is {options.max_mb:g}"
        return record.with_problem(Problem.FILE_TOO_LARGE, detail)
    return record


def _check_folder(record: FileRecord) -> FileRecord:
    """Explain why a folder is in the manifest in place of its files."""
    path = Path(record.path)
    if path.resolve() in path.absolute().parents:
        return record.with_problem(Problem.SYMLINK_LOOP, "a link to a folder that contains it")
    if path.is_symlink():
        detail = "links to folders are not followed; link each file"
        return record.with_problem(Problem.LINK_TO_FOLDER, detail)
    return record.with_problem(Problem.PERMISSION_DENIED, "the folder cannot be listed")


def _check_pixels(record: FileRecord, options: ScreeningOptions) -> FileRecord:
    """Check the limits of width and height."""
    size = f"{record.width} x {record.height} px"
    if record.width * record.height > options.max_megapixels * 1e6:
        detail = f"{size}; screening.max_megapixels is {options.max_megapixels:g}"
        return record.with_problem(Problem.TOO_MANY_PIXELS, detail)
    if 0 < min(record.width, record.height) < options.min_side:
        detail = f"{size}; screening.min_side is {options.min_side}"
        return record.with_problem(Problem.TOO_SMALL, detail)
    return record


def _explain_access(record: FileRecord, error: OSError) -> FileRecord:
    """Explain why the operating system refuses a file."""
    if error.errno == errno.ENOENT and ESCAPED_BYTE in record.path:
        detail = "its name is not UTF-8 or has a carriage return; rename it"
        return record.with_problem(Problem.UNUSABLE_NAME, detail)
    path = Path(record.path)
    if error.errno == errno.ENOENT and path.is_symlink():
        detail = f"a link to {printable(str(path.readlink()))}, which does not exist"
        return record.with_problem(Problem.BROKEN_LINK, detail)
    problem = ERRNO_PROBLEMS.get(error.errno or 0, Problem.UNREADABLE)
    return record.with_problem(problem, error.strerror or str(error))


def _decode(record: FileRecord, options: ScreeningOptions) -> FileRecord:
    """Add what the content tells: hash, size, format, and whether the pixels can be decoded.

    Raises:
        OSError: if the file cannot be read.
    """
    content = read_bytes(record.path)
    record = replace(record, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    try:
        with open_image(content) as image:
            width, height = image.size
            record = replace(record, width=width, height=height, format=image.format or "")
            if width * height > options.max_megapixels * 1e6:
                return record
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format not in STILL_FORMATS:
                detail = f"{frames} frames or pages, of which none is marked as the image"
                return record.with_problem(Problem.ANIMATED, detail)
            width, height = decoding.upright_size(image)
            to_rgb(image, scale=1 / 16)  # a JPEG at an eighth of its size, but all of its data
            depth = decoding.find_bit_depth(image) if decoding.is_deep(image) else "auto"
            bits = 0 if depth == "auto" else depth
            record = replace(record, width=width, height=height, mode=image.mode, bits=bits)
    except ImageError as error:
        return record.with_problem(_classify(error), error.problem)
    return record


def _classify(error: ImageError) -> Problem:
    """Return the problem behind an exception of Pillow's."""
    cause, text = error.__cause__, error.problem.lower()
    if isinstance(cause, UnidentifiedImageError):
        return Problem.NOT_AN_IMAGE
    if isinstance(cause, Image.DecompressionBombError) or "decompressed data too large" in text:
        return Problem.DECOMPRESSION_BOMB
    if isinstance(cause, EOFError) or "truncated" in text or "not enough" in text:
        return Problem.TRUNCATED
    return Problem.UNREADABLE
