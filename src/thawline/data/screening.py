"""Open every image file before training: what is wrong with it, and which are the same."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import joblib
import pandas as pd
import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from thawline.data.atomic_write import write_atomic
from thawline.data.decoding import (
    ImageError,
    find_bit_depth,
    is_deep,
    open_image,
    read_bytes,
    to_rgb,
)
from thawline.data.shards import find_member
from thawline.errors import DataError
from thawline.options import BitDepth, ScreeningOptions

logger = logging.getLogger(__name__)

# A JPEG of several pictures, as cameras write it, is its first one: the others are previews.
STILL = ("JPEG", "MPO")
# A JPEG is decoded at an eighth of its size: all its data are read all the same.
SCALE = 1 / 16
CHUNK = 64  # files that a thread takes at a time
MAX_NAMES_IN_MESSAGE = 5  # files or pairs that a message names
UNUSABLE = "\\udc"  # begins what stands for such a byte in a path, see thawline.data.sources
SAME_IMAGE = ("exact", "near")  # kinds of pairs that count as one image in two splits
QUARANTINE = ["path", "label", "problem", "detail", "kept"]


class Problem(StrEnum):
    """Why an image is left out or, of the last three, noted and kept."""

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
    CONTRADICTING_LABELS = "conflicting_labels"
    CLASS_TOO_SMALL = "class_too_small"
    WRONG_EXTENSION = "wrong_extension"
    DUPLICATE = "duplicate"
    CASE_CLASH = "case_clash"


class FileRecord(NamedTuple):
    """What is known of a file; numbers are 0 and texts empty where it is not."""

    path: str
    size: int = 0  # bytes
    mtime_ns: int = 0
    sha256: str = ""
    width: int = 0  # px, of the upright image
    height: int = 0
    format: str = ""  # Pillow's name of it
    mode: str = ""  # and of its kind of pixels
    bits: int = 0  # that its values need, of a grayscale image of more than 8 bits per pixel
    problem: str = ""
    detail: str = ""  # the problem in a sentence


# What the content of a file alone tells; all else is found out anew every time.
REMEMBERED = (
    "",
    *(
        problem.value
        for problem in (
            Problem.NOT_AN_IMAGE, Problem.TRUNCATED, Problem.UNREADABLE, Problem.DECOMPRESSION_BOMB,
            Problem.ANIMATED,
        )
    ),
)  # fmt: skip
READABLE = ("", Problem.CONTRADICTING_LABELS.value, Problem.CLASS_TOO_SMALL.value)


class ScreeningCache:
    """A Parquet file with the facts of the last screening."""

    def __init__(self, file: Path) -> None:
        """Take the file, which need not exist."""
        self.file = file

    def read(self) -> dict[str, FileRecord]:
        """Return the facts by path: none where the file is missing or cannot be used."""
        try:
            table = pd.read_parquet(self.file, columns=list(FileRecord._fields))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, pa.ArrowException) as error:
            logger.warning("%s cannot be read and is made anew (%s)", self.file, error)
            return {}
        columns = (table[name].tolist() for name in FileRecord._fields)
        return {row[0]: FileRecord(*row) for row in zip(*columns, strict=True)}

    def write(self, facts: Iterable[FileRecord]) -> None:
        """Replace the facts."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(facts, columns=list(FileRecord._fields))
        write_atomic(self.file, lambda path: table.to_parquet(path, index=False))


def screen_images(
    manifest: pd.DataFrame,
    options: ScreeningOptions,
    cache: ScreeningCache | None = None,
    bit_depth: BitDepth = "auto",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the manifest without the images that cannot be used, and a table of what was noticed.

    Every file is read and decoded once, several at a time; one that the cache knows by path, size
    and time of change is not opened.

    Args:
        manifest: path, label and, if the data brings them, split and group.
        options: limits, and what happens to what exceeds them.
        cache: what earlier screenings found, brought up to date.
        bit_depth: of `transforms`; a warning says where it does not fit the files.

    Returns:
        The manifest with a column `sha256` of each file's content. And the quarantine: path, label,
        problem (a value of `Problem`), detail (a sentence) and kept (whether the image is used all
        the same), a row for each thing that was noticed.

    Raises:
        DataError: when a class has no readable image left; or for any problem where `on_problem` is
            `error`.
    """
    manifest = manifest.drop(columns="sha256", errors="ignore")  # what is read is what counts
    facts = examine_all(manifest["path"].tolist(), options, cache.read() if cache else {})
    if cache:
        cache.write(facts)
    table = manifest.join(pd.DataFrame(facts, index=manifest.index).drop(columns="path"))
    table = _drop_small_classes(_judge_contradictions(table, options), options)
    good = table[table["problem"] == ""]
    _check_bit_depth(good, bit_depth)
    quarantine = table[table["problem"] != ""].assign(kept=False)[QUARANTINE]
    if options.on_problem == "error" and len(quarantine):
        raise DataError(_stopped(quarantine))
    quarantine = pd.concat([quarantine, *_notes(good)], ignore_index=True)
    emptied = sorted(set(manifest["label"]) - set(table["label"][table["problem"].isin(READABLE)]))
    if emptied:
        first = quarantine[quarantine["label"] == emptied[0]].iloc[0]
        raise DataError(
            f"dataset.root: class '{emptied[0]}' has no readable image; {first['path']}:"
            f" {first['detail']}. Mend its images or remove the class."
        )
    return good[[*manifest.columns, "sha256"]].reset_index(drop=True), quarantine


def examine_all(
    paths: Sequence[str], options: ScreeningOptions, known: Mapping[str, FileRecord]
) -> list[FileRecord]:
    """Return the facts of each file, in order; those `known` of unchanged files are taken over."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]

    def examine_chunk(chunk: Sequence[str]) -> list[FileRecord]:
        return [examine(path, options, known.get(path)) for path in chunk]

    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow: what matters here is whether it decodes
        found = pool.map(examine_chunk, chunks)
        return list(chain(*track(found, "Opening images", len(chunks), transient=True)))


def examine(path: str, options: ScreeningOptions, known: FileRecord | None = None) -> FileRecord:
    """Return the facts of a file; whatever it is, nothing is raised.

    Args:
        path: of the file.
        options: its limits.
        known: what an earlier call found; taken over if size and time of change are the same.
    """
    try:
        mode, facts = _look_at(path)
        problem = _problem_from_outside(facts, mode, options)
        if problem is None and known and known[:3] == facts[:3] and _remembered(known):
            facts = known
        elif problem is None:
            facts = _decode(facts, options)
        problem = problem or _problem_of_size(facts, options)
    except OSError as error:  # the file is closed, away, or not there
        facts, problem = FileRecord(path), _problem_of_access(path, error)
    if problem is None or facts.problem:
        return facts
    return facts._replace(problem=problem[0].value, detail=problem[1])


def check_leakage(near_duplicates: pd.DataFrame, options: ScreeningOptions) -> None:
    """Warn, or refuse to go on, where an image of the test split is in another split too.

    Only pairs that are `exact` or `near` count: `uncertain` and `similar` ones may be different
    images that look alike.

    Args:
        near_duplicates: as `near_duplicates.find_cross_split_duplicates` returns it.
        options: whether it is an error.

    Raises:
        DataError: naming the pairs, where `on_leak` is `error`.
    """
    certain = near_duplicates["kind"].isin(SAME_IMAGE)
    leaks = near_duplicates[certain & (near_duplicates["split"] == "test")]
    if leaks.empty:
        return
    pairs = [
        f"  {row.path} ({row.label}) is in {row.other_split} as {row.other_path}"
        f" ({row.other_label}), {row.kind}"
        for row in leaks.head(MAX_NAMES_IN_MESSAGE).itertuples()
    ]
    more = [f"  and {len(leaks) - MAX_NAMES_IN_MESSAGE} more"] * (len(leaks) > MAX_NAMES_IN_MESSAGE)
    message = "\n".join(
        [f"{len(leaks)} image(s) of the test split are in another split too:", *pairs, *more]
    )
    if options.on_leak == "error":
        raise DataError(
            f"{message}\nFigures on such a test split flatter. Remove one of each pair, or give"
            " both the same group in a CSV; screening.on_leak=warn goes on all the same."
        )
    logger.warning("%s", message)


def _remembered(known: FileRecord) -> bool:
    """Return whether what is known was found by decoding the file."""
    return bool(known.sha256) and known.problem in REMEMBERED


def _look_at(path: str) -> tuple[int, FileRecord]:
    """Return the mode of a file and what its folder says of it; that of a shard for a member."""
    if member := find_member(path):
        return stat.S_IFREG, FileRecord(path, member.size, member.mtime_ns)
    status = os.stat(path)  # noqa: PTH116 - 5 times as fast as Path.stat, for 50,000 files
    return status.st_mode, FileRecord(path, status.st_size, status.st_mtime_ns)


def _problem_from_outside(
    facts: FileRecord, mode: int, options: ScreeningOptions
) -> tuple[Problem, str] | None:
    """Return what is wrong with a file that need not be opened to see it."""
    if stat.S_ISDIR(mode):
        return _problem_of_folder(Path(facts.path))
    if not stat.S_ISREG(mode):
        return Problem.NOT_A_FILE, "a pipe, a socket or a device"
    if not facts.size:
        return Problem.EMPTY, "an empty file"
    if facts.size > options.max_mb * 1e6:
        megabytes = f"{facts.size / 1e6:.4g} MB"
        return Problem.FILE_TOO_LARGE, f"{megabytes}; screening.max_mb is {options.max_mb:g}"
    return None


def _problem_of_folder(path: Path) -> tuple[Problem, str]:
    """Return why a folder stands for the files in it."""
    if path.resolve() in path.absolute().parents:
        return Problem.SYMLINK_LOOP, "a link to a folder that it lies in"
    if path.is_symlink():
        return Problem.LINK_TO_FOLDER, "links to folders are not followed; link each file"
    return Problem.PERMISSION_DENIED, "the folder cannot be listed"


def _problem_of_size(facts: FileRecord, options: ScreeningOptions) -> tuple[Problem, str] | None:
    """Return whether an image has too many or too few pixels."""
    size = f"{facts.width} x {facts.height} px"
    if facts.width * facts.height > options.max_megapixels * 1e6:
        limit = f"screening.max_megapixels is {options.max_megapixels:g}"
        return Problem.TOO_MANY_PIXELS, f"{size}; {limit}"
    if 0 < min(facts.width, facts.height) < options.min_side:
        return Problem.TOO_SMALL, f"{size}; screening.min_side is {options.min_side}"
    return None


def _problem_of_access(path: str, error: OSError) -> tuple[Problem, str]:
    """Return why the operating system does not give a file."""
    if error.errno == errno.ENOENT and UNUSABLE in path:
        return Problem.UNUSABLE_NAME, "its name is not UTF-8 or holds a carriage return; rename it"
    if error.errno == errno.ENOENT and Path(path).is_symlink():
        return Problem.BROKEN_LINK, f"a link to {os.readlink(path)}, which does not exist"  # noqa: PTH115
    reasons = {
        errno.ENOENT: Problem.VANISHED,
        errno.ELOOP: Problem.SYMLINK_LOOP,
        errno.EACCES: Problem.PERMISSION_DENIED,
        errno.EPERM: Problem.PERMISSION_DENIED,
        errno.ENAMETOOLONG: Problem.NAME_TOO_LONG,
    }
    return reasons.get(error.errno or 0, Problem.UNREADABLE), error.strerror or str(error)


def _decode(facts: FileRecord, options: ScreeningOptions) -> FileRecord:
    """Return the facts of a file with those that its content tells.

    Raises:
        OSError: when the file cannot be read.
    """
    content = read_bytes(facts.path)
    facts = facts._replace(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    try:
        with open_image(content) as image:
            width, height = image.size
            facts = facts._replace(width=width, height=height, format=image.format or "")
            if width * height > options.max_megapixels * 1e6:
                return facts
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format not in STILL:
                detail = f"{frames} frames or pages; which one is meant is not known"
                return facts._replace(problem=Problem.ANIMATED.value, detail=detail)
            picture = to_rgb(image, SCALE)
            depth = find_bit_depth(image) if is_deep(image) else "auto"
            facts = facts._replace(mode=image.mode, bits=0 if depth == "auto" else depth)
            if width != height and picture.size == image.size[::-1]:  # the camera lay on its side
                facts = facts._replace(width=height, height=width)
    except ImageError as error:
        problem = _problem_of_content(error)
        return facts._replace(problem=problem.value, detail=error.problem)
    return facts


def _problem_of_content(error: ImageError) -> Problem:
    """Return what an error of Pillow's says about a file."""
    cause, text = error.__cause__, error.problem.lower()
    if isinstance(cause, UnidentifiedImageError):
        return Problem.NOT_AN_IMAGE
    if isinstance(cause, Image.DecompressionBombError) or "decompressed data too large" in text:
        return Problem.DECOMPRESSION_BOMB
    if isinstance(cause, EOFError) or "truncated" in text or "not enough" in text:
        return Problem.TRUNCATED
    return Problem.UNREADABLE


def _judge_contradictions(table: pd.DataFrame, options: ScreeningOptions) -> pd.DataFrame:
    """Return the table with a problem for each copy of an image that is in several classes."""
    good = table[table["problem"] == ""]
    contradicted = good[good.groupby("sha256")["label"].transform("nunique") > 1]
    if contradicted.empty or options.conflicting_labels == "keep":
        return table
    table = table.copy()
    for _, copies in contradicted.groupby("sha256"):
        classes = ", ".join(sorted(copies["label"].unique()))
        table.loc[copies.index, "problem"] = Problem.CONTRADICTING_LABELS.value
        table.loc[copies.index, "detail"] = (
            f"copies of it are in the classes {classes}; screening.conflicting_labels=keep"
            f" takes all"
        )
    return table


def _drop_small_classes(table: pd.DataFrame, options: ScreeningOptions) -> pd.DataFrame:
    """Return the table with a problem for each image of a class that has too few of them."""
    good = table[table["problem"] == ""]
    counts = good["label"].value_counts()
    small = counts.index[counts < options.min_images]
    rows = good.index[good["label"].isin(small)]
    table = table.copy()
    table.loc[rows, "problem"] = Problem.CLASS_TOO_SMALL.value
    table.loc[rows, "detail"] = (
        f"its class has fewer than {options.min_images} images (screening.min_images)"
    )
    return table


def _check_bit_depth(good: pd.DataFrame, bit_depth: BitDepth) -> None:
    """Warn if grayscale images of more than 8 bits per pixel would become too dark, or white."""
    shares = good[(good["mode"] == "F") & (good["bits"] == 0)]
    if bit_depth != "auto" and len(shares):
        logger.warning(
            "transforms.bit_depth: %d makes %d image(s) black, first %s, whose values are from 0 to"
            " 1. Set transforms.bit_depth=auto.",
            bit_depth,
            len(shares),
            shares["path"].iloc[0],
        )
    deep = good[good["bits"] > 0]
    if deep.empty:
        return
    needed = int(deep["bits"].max())
    first = deep[deep["bits"] == needed].iloc[0]
    is_float = bit_depth == "auto" and first["mode"] == "F"  # whose values are above 1
    assumed = 0 if is_float else 16 if bit_depth == "auto" else bit_depth
    if needed == assumed:
        return
    fate = "too dark" if needed < assumed else "white where they are bright"
    logger.warning(
        "transforms.bit_depth: %s makes %d image(s) %s, first %s, whose values need %d bits. Set"
        " transforms.bit_depth=%d.",
        bit_depth,
        len(deep),
        fate,
        first["path"],
        needed,
        needed,
    )


def _notes(good: pd.DataFrame) -> list[pd.DataFrame]:
    """Return rows of the quarantine for what is odd about images that are kept."""
    suffixes = Image.registered_extensions()
    named = good["path"].map(lambda path: suffixes.get(Path(path).suffix.lower(), "no format"))
    named = named.mask(named.isin(STILL), STILL[0])
    formats = good["format"].mask(good["format"].isin(STILL), STILL[0])
    odd = good[named != formats]
    folded = good["path"].map(lambda path: unicodedata.normalize("NFC", path).casefold())
    copies = good[good["sha256"].duplicated(keep=False)]
    clashes = good[folded.duplicated(keep=False)]
    return [
        _note(odd, Problem.WRONG_EXTENSION, "its content is " + odd["format"]),
        _note(copies, Problem.DUPLICATE, "the same bytes as " + _others(copies, copies["sha256"])),
        _note(
            clashes,
            Problem.CASE_CLASH,
            "on Windows and macOS the same file as " + _others(clashes, folded[clashes.index]),
        ),
    ]


def _note(rows: pd.DataFrame, problem: Problem, detail: pd.Series) -> pd.DataFrame:
    return rows.assign(problem=problem.value, detail=detail, kept=True)[QUARANTINE]


def _others(rows: pd.DataFrame, key: pd.Series) -> pd.Series:
    """Return for each row the first other path that has the same key."""
    paths = rows["path"].groupby(key)
    return paths.transform("first").where(paths.cumcount() > 0, paths.shift(-1))


def _stopped(quarantine: pd.DataFrame) -> str:
    """Return the message of a run that stops: how many for which reason, and the first of them."""
    counts = quarantine["problem"].value_counts()
    named = [
        f"  {r.path}: {r.problem}, {r.detail}"
        for r in quarantine.head(MAX_NAMES_IN_MESSAGE).itertuples()
    ]
    more = [f"  and {len(quarantine) - MAX_NAMES_IN_MESSAGE} more"] * (
        len(quarantine) > MAX_NAMES_IN_MESSAGE
    )
    reasons = ", ".join(f"{count} {problem}" for problem, count in counts.items())
    return "\n".join(
        [
            f"dataset.root: {len(quarantine)} file(s) cannot be used ({reasons}):",
            *named,
            *more,
            "Mend or remove them, or set screening.on_problem to quarantine to go on without.",
        ]
    )
