"""Whatever lies in a folder has its named outcome, and no good image is lost."""

import os
import shutil
import socket
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from thawline.data.decoding import hash_files
from thawline.data.screening import file_records
from thawline.data.screening.file_records import Problem, examine
from thawline.data.screening.screen import screen_images
from thawline.data.sources import find_images
from thawline.data.splitting import split_dataset
from thawline.errors import DataError
from thawline.options import ScreeningOptions, SplitFractions, TransformOptions

OPTIONS = ScreeningOptions()
LIMITED = ScreeningOptions(max_mb=0.05, max_megapixels=0.5)
ANTS = 4  # good images of each class of every corpus


def picture(seed: int, side: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((side, side))


def save(file: Path, seed: int = 99, side: int = 40, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, side).save(file, **options)
    return file


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder of two classes of good images."""
    for label, first in (("ants", 0), ("bees", 10)):
        for idx in range(ANTS):
            save(tmp_path / "photos" / label / f"{idx}.png", first + idx)
    return tmp_path / "photos"


def find(root: Path) -> pd.DataFrame:
    return find_images(str(root), root, root)


def cut(file: Path, share: float) -> None:
    save(file, side=120)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def damage(file: Path, old: bytes, new: bytes) -> None:
    save(file)
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG whose header says so, whatever its data are."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def text_bomb(file: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "0" * 3_000_000, zip=True)
    picture(0).save(file, pnginfo=info)


def frames(file: Path) -> None:
    picture(1).save(file, save_all=True, append_images=[picture(2), picture(3)])


def socket_at(file: Path) -> None:
    with chdir(file.parent), socket.socket(socket.AF_UNIX) as one:
        one.bind(file.name)  # the path of a socket is at most 107 bytes long


def link_into_itself(file: Path) -> None:
    other = file.with_name(f"other-{file.name}")
    other.symlink_to(file)
    file.symlink_to(other)


def big_endian(file: Path) -> None:
    """A TIFF of 16 bits whose numbers begin with the larger byte, as microscopes write it."""
    pixels = np.random.default_rng(99).integers(0, 2**16, (40, 40)).astype(">u2").tobytes()
    tags = [(256, 40), (257, 40), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 40)]
    entries = [struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags]
    entries.append(struct.pack(">HHII", 279, 4, 1, len(pixels)))
    table = struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4)
    file.write_bytes(b"MM\0*" + struct.pack(">I", 8 + len(pixels)) + pixels + table)


def linked_folder(file: Path) -> None:
    elsewhere = file.parents[2] / "elsewhere"
    save(elsewhere / "0.png")
    file.symlink_to(elsewhere)


def write(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content)


HTML = b"<!DOCTYPE html><title>404 Not Found</title>"
BAD: dict[str, tuple[Problem, str, Callable[[Path], object]]] = {
    "zero bytes": (Problem.EMPTY, "a.jpg", write(b"")),
    "zero bytes, png": (Problem.EMPTY, "a.png", write(b"")),
    "text": (Problem.NOT_AN_IMAGE, "a.jpg", write(b"no image")),
    "an error page": (Problem.NOT_AN_IMAGE, "a.jpg", write(HTML)),
    "one byte": (Problem.NOT_AN_IMAGE, "a.png", write(b"\x89")),
    "only zeros": (Problem.NOT_AN_IMAGE, "a.bmp", write(bytes(4096))),
    "noise": (Problem.NOT_AN_IMAGE, "a.tif", write(bytes(range(256)) * 8)),
    "a zip": (Problem.NOT_AN_IMAGE, "a.webp", write(b"PK\x03\x04" + bytes(100))),
    "svg": (Problem.NOT_AN_IMAGE, "a.png", write(b"<svg xmlns='http://www.w3.org/2000/svg'/>")),
    "pdf": (Problem.NOT_AN_IMAGE, "a.jpg", write(b"%PDF-1.4\n%%EOF")),
    "postscript": (Problem.NOT_AN_IMAGE, "a.jpg", write(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")),
    "a pickle": (Problem.NOT_AN_IMAGE, "a.ppm", write(b"\x80\x04K\x01.")),
    "a video": (Problem.NOT_AN_IMAGE, "a.jpeg", write(b"\0\0\0\x18ftypmp42" + bytes(200))),
    "a pointer of git-lfs": (Problem.NOT_AN_IMAGE, "a.jpg", write(b"version https://git-lfs\n")),
    "the beginning of a jpeg": (Problem.NOT_AN_IMAGE, "a.jpg", write(b"\xff\xd8\xff")),
    "the signature of a png": (Problem.NOT_AN_IMAGE, "a.png", write(b"\x89PNG\r\n\x1a\n")),
    "jpeg cut in half": (Problem.TRUNCATED, "a.jpg", lambda f: cut(f, 0.5)),
    "jpeg cut near its end": (Problem.TRUNCATED, "a.jpg", lambda f: cut(f, 0.97)),
    "png cut in half": (Problem.TRUNCATED, "a.png", lambda f: cut(f, 0.5)),
    "bmp cut in half": (Problem.TRUNCATED, "a.bmp", lambda f: cut(f, 0.5)),
    "ppm cut in half": (Problem.TRUNCATED, "a.ppm", lambda f: cut(f, 0.5)),
    "tiff cut in half": (Problem.TRUNCATED, "a.tif", lambda f: cut(f, 0.5)),
    "webp cut in half": (Problem.UNREADABLE, "a.webp", lambda f: cut(f, 0.5)),
    "png with a broken chunk": (Problem.NOT_AN_IMAGE, "a.png",
                                lambda f: damage(f, b"IDAT", b"I\0AT")),
    "png without pixels": (Problem.TRUNCATED, "a.png", write(png(40, 40))),
    "webp that is none": (Problem.UNREADABLE, "a.webp",
                          write(b"RIFF\x20\0\0\0WEBPVP8 " + b"x" * 99)),
    "png of 4 gigapixels": (Problem.DECOMPRESSION_BOMB, "a.png", write(png(65535, 65535))),
    "png of 10^18 pixels": (Problem.DECOMPRESSION_BOMB, "a.png", write(png(2**30, 2**30))),
    "zip bomb in a comment": (Problem.DECOMPRESSION_BOMB, "a.png", text_bomb),
    "too many pixels": (Problem.TOO_MANY_PIXELS, "a.png",
                        lambda f: Image.new("L", (1000, 900)).save(f)),
    "file too large": (Problem.FILE_TOO_LARGE, "a.bmp", lambda f: save(f, side=200)),
    "one pixel": (Problem.TOO_SMALL, "a.png", lambda f: Image.new("RGB", (1, 1)).save(f)),
    "a line": (Problem.TOO_SMALL, "a.png", lambda f: Image.new("RGB", (300, 1)).save(f)),
    "animated webp": (Problem.ANIMATED, "a.webp", frames),
    "animated png": (Problem.ANIMATED, "a.png", frames),
    "animated gif": (Problem.ANIMATED, "a.jpg", lambda f: (
        frames(f.with_suffix(".gif")), f.with_suffix(".gif").rename(f))),
    "tiff of several pages": (Problem.ANIMATED, "a.tiff", frames),
    "link to itself": (Problem.SYMLINK_LOOP, "a.jpg", lambda f: f.symlink_to(f)),
    "links to each other": (Problem.SYMLINK_LOOP, "a.jpg", link_into_itself),
    "link to its folder": (Problem.SYMLINK_LOOP, "a", lambda f: f.symlink_to(f.parent)),
    "link to the folder above": (Problem.SYMLINK_LOOP, "a.jpg",
                                 lambda f: f.symlink_to(f.parents[1])),
    "link to another folder": (Problem.LINK_TO_FOLDER, "a", linked_folder),
    "link to nothing": (Problem.BROKEN_LINK, "a.jpg", lambda f: f.symlink_to("gone.jpg")),
    "a pipe": (Problem.NOT_A_FILE, "a.jpg", os.mkfifo),
    "a device": (Problem.NOT_A_FILE, "a.jpg", lambda f: f.symlink_to("/dev/zero")),
    "a socket": (Problem.NOT_A_FILE, "a.jpg", socket_at),
    "a name that is no utf-8": (Problem.UNUSABLE_NAME, "a\udcff.jpg", save),
    "a carriage return in its name": (Problem.UNUSABLE_NAME, "a\r.png", save),
    "in another class too": (Problem.CONFLICTING_LABELS, "a.png", lambda f: save(f, 10)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_has_its_named_outcome_and_the_good_is_kept(corpus: Path, kind: str) -> None:
    problem, name, make = BAD[kind]
    make(corpus / "ants" / name)
    manifest = find(corpus)
    clean, quarantine = screen_images(manifest, LIMITED)
    assert set(quarantine["problem"]) == {problem.value}
    assert not quarantine["kept"].any() and quarantine["detail"].str.len().min() > 5
    assert len(clean) + len(quarantine) == len(manifest)
    twin = {"bees/0.png"} if problem is Problem.CONFLICTING_LABELS else set()
    good = {f"{label}/{idx}.png" for label in ("ants", "bees") for idx in range(ANTS)} - twin
    assert {Path(p).relative_to(corpus).as_posix() for p in clean["path"]} == good
    assert (clean["label"] == clean["path"].map(lambda p: Path(p).parent.name)).all()
    with pytest.raises(DataError, match=rf"\d {problem.value}(?s:.*)screening.on_problem"):
        screen_images(manifest, LIMITED.model_copy(update={"on_problem": "error"}))


GOOD: dict[str, tuple[str | None, str, Callable[[Path], object]]] = {
    "a png named jpg": ("wrong_extension", "a.jpg", lambda f: picture(99).save(f, "PNG")),
    "a gif named png": ("wrong_extension", "a.png", lambda f: picture(99).save(f, "GIF")),
    "a copy": ("duplicate", "a.png", lambda f: shutil.copy(f.parent / "0.png", f)),
    "a hard link": ("duplicate", "a.png", lambda f: os.link(f.parent / "0.png", f)),
    "equal but for case": ("case_clash", "A.png",
                           lambda f: (save(f), save(f.with_name("a.PNG"), 98))),
    "equal but for the form of unicode": ("case_clash", "\u00e9.png", lambda f: (
        save(f), save(f.with_name("e\u0301.png"), 98))),
    "unicode": (None, "ämeise 蟻 🐜 \u202e.png", save),
    "quotes, commas and line breaks": (None, "a,\"b'\n%s;$(x).png", save),
    "a very long name": (None, "a" * 251 + ".png", save),
    "leading and trailing blanks": (None, "  a  .png", save),
    "deep folders": (None, "/".join(["deep"] * 60) + "/a.png", save),
    "16 bits": (None, "a.png", lambda f: Image.fromarray(
        np.arange(1600, dtype=np.uint16).reshape(40, 40)).save(f)),
    "16 bits, the larger byte first": (None, "a.tif", big_endian),
    "CMYK": (None, "a.jpg", lambda f: picture(99).convert("CMYK").save(f)),
    "a link to a file": (None, "a.png",
                         lambda f: f.symlink_to(save(f.parents[2] / "elsewhere.png"))),
    "several pictures of a camera": (None, "a.jpg", lambda f: picture(99).save(
        f, "MPO", save_all=True, append_images=[picture(98)])),
}  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_odd_but_good_is_kept_and_noted(corpus: Path, kind: str) -> None:
    noted, name, make = GOOD[kind]
    file = corpus / "ants" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    make(file)
    manifest = find(corpus)
    clean, notes = screen_images(manifest, ScreeningOptions(on_problem="error"))
    assert list(clean["path"]) == list(manifest["path"]) and len(clean) > 2 * ANTS
    assert set(notes["problem"]) == ({noted} if noted else set()) and notes["kept"].all()


@pytest.mark.parametrize("where", ["file", "folder"])
def test_what_is_closed_is_set_aside(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    closed = save(corpus / "ants" / "closed" / "a.png").parent
    shut = closed if where == "folder" else closed / "a.png"
    shut.chmod(0)
    if os.geteuid() == 0:  # may read everything

        def refuse(call: Callable) -> Callable:
            def wrapped(path: object, *arguments: object) -> object:
                if str(path) == str(shut):
                    raise PermissionError(13, "Permission denied", str(path))
                return call(path, *arguments)

            return wrapped

        monkeypatch.setattr(os, "scandir", refuse(os.scandir))
        monkeypatch.setattr(Path, "read_bytes", refuse(Path.read_bytes))
    clean, quarantine = screen_images(find(corpus), OPTIONS)
    shut.chmod(0o700)
    assert list(quarantine["problem"]) == ["permission_denied"] and len(clean) == 2 * ANTS
    assert quarantine["path"].tolist() == [shut.as_posix()]


def test_a_file_that_vanishes_after_the_scan_is_set_aside(corpus: Path) -> None:
    manifest = find(corpus)
    Path(manifest["path"][0]).unlink()
    clean, quarantine = screen_images(manifest, OPTIONS)
    assert list(quarantine["problem"]) == ["vanished"] and len(clean) == 2 * ANTS - 1
    assert examine("/" + "a" * 300, OPTIONS).problem == "name_too_long"


def test_a_class_with_too_few_images_is_left_out_and_one_with_none_is_refused(corpus: Path) -> None:
    save(corpus / "wasps" / "0.png")
    clean, quarantine = screen_images(find(corpus), OPTIONS)
    assert set(clean["label"]) == {"ants", "bees"}
    assert list(quarantine["problem"]) == ["class_too_small"]
    (corpus / "wasps" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="class 'wasps' has no readable image"):
        screen_images(find(corpus), OPTIONS)


def test_copies_in_two_classes_are_all_kept_when_asked_for(corpus: Path) -> None:
    shutil.copy(corpus / "ants" / "0.png", corpus / "bees" / "copy.png")
    clean, quarantine = screen_images(find(corpus), ScreeningOptions(conflicting_labels="keep"))
    assert len(clean) == 2 * ANTS + 1 and quarantine["kept"].all()


def test_without_copies_splits_are_as_without_screening(corpus: Path) -> None:
    manifest = find(corpus)
    clean, _ = screen_images(manifest, OPTIONS)
    hashed = manifest.assign(sha256=hash_files(manifest["path"].tolist()))
    splits, expected = (split_dataset(table, SplitFractions(), 3) for table in (clean, hashed))
    pd.testing.assert_frame_equal(splits, expected)


def test_only_what_has_changed_is_opened_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus / "ants" / "bad.png").write_bytes(b"no image")
    cache, manifest = tmp_path / "new" / "cache.parquet", find(corpus)
    opened: list[str] = []
    decode = file_records._decode
    monkeypatch.setattr(
        file_records,
        "_decode",
        lambda facts, _: opened.append(facts.path) or decode(facts, OPTIONS),
    )
    first = screen_images(manifest, OPTIONS, cache=cache)
    assert len(opened) == len(manifest)
    second = screen_images(manifest, OPTIONS, cache=cache)
    assert len(opened) == len(manifest)
    for one, other in zip(first, second, strict=True):
        pd.testing.assert_frame_equal(one, other)
    changed = save(corpus / "ants" / "0.png", seed=50)
    later = time.time_ns() + 10**9
    os.utime(changed, ns=(later, later))
    clean, _ = screen_images(manifest, OPTIONS, cache=cache)
    assert opened[len(manifest) :] == [changed.as_posix()]
    assert (clean["sha256"] != first[0]["sha256"]).sum() == 1
    cache.write_bytes(b"no table")
    assert len(screen_images(manifest, OPTIONS, cache=cache)[0]) == 2 * ANTS


def test_other_limits_judge_what_is_known_anew(corpus: Path, tmp_path: Path) -> None:
    cache, manifest = tmp_path / "cache.parquet", find(corpus)
    save(corpus / "ants" / "0.png", side=400)
    for megapixels, kept in ((89, 8), (0.1, 7), (89, 8)):
        options = ScreeningOptions(max_megapixels=megapixels)
        assert len(screen_images(manifest, options, cache=cache)[0]) == kept
    with pytest.raises(DataError, match="class 'bees' has no readable image"):
        screen_images(manifest, ScreeningOptions(min_side=100, min_images=1), cache=cache)
    assert len(screen_images(manifest, OPTIONS, cache=cache)[0]) == 8


@settings(max_examples=60)
@given(data=st.data(), suffix=st.sampled_from([".jpg", ".png", ".webp", ".tif", ".bmp"]))
def test_no_bytes_end_in_an_error(
    data: st.DataObject, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = save(tmp_path_factory.mktemp("fuzz") / f"a{suffix}")
    content = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=12)):
        content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    assert examine(str(file), OPTIONS).problem in {"", *(problem.value for problem in Problem)}


@pytest.mark.parametrize(
    ("values", "depth", "said"),
    [
        (np.uint16, "auto", "auto makes 3 image(s) too dark"),
        (np.uint16, 8, "8 makes 3 image(s) white where they are bright"),
        (np.float32, "auto", "auto makes 3 image(s) white where they are bright"),
        (np.uint16, 12, ""),
    ],
)
def test_values_that_a_bit_depth_does_not_fit_are_told_with_the_one_that_does(
    corpus: Path, values: type, depth: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 4096, (20, 20)).astype(values)
        Image.fromarray(pixels).save(corpus / "ants" / f"deep {seed}.tiff")
    good, _ = screen_images(find(corpus), OPTIONS, transforms=TransformOptions(bit_depth=depth))
    assert len(good) == 2 * ANTS + 3
    text = " ".join(caplog.messages)
    assert ("Set transforms.bit_depth=12" in text) == bool(said) and said in text


def test_values_from_0_to_1_with_a_bit_depth_are_told(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.random.default_rng(0).random((20, 20), np.float32)
    Image.fromarray(pixels).save(corpus / "ants" / "a.tiff")
    screen_images(find(corpus), OPTIONS)
    assert "bit_depth" not in caplog.text
    screen_images(find(corpus), OPTIONS, transforms=TransformOptions(bit_depth=12))
    assert "12 makes 1 image(s) black" in caplog.text
    assert "Set transforms.bit_depth=auto" in caplog.text
