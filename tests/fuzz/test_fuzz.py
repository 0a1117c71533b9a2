"""Whatever comes in from outside ends in a result or in the error that is declared for it."""

import copy
import faulthandler
import io
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from conftest import ROOT
from helpers.networks import SmallNet
from thawline.data.screening.file_records import Problem, examine
from thawline.data.screening.screen import screen_images
from thawline.data.sources import find_images
from thawline.data.splitting import split_dataset
from thawline.errors import CheckpointError, DataError, ParameterError
from thawline.evaluation.inference import decode_views
from thawline.networks.building import IMAGENET
from thawline.networks.checkpoints import describe_checkpoint, read_checkpoint
from thawline.networks.classifier import Classifier
from thawline.options import (
    ModelOptions,
    ScreeningOptions,
    SplitFractions,
    flatten,
    validate_parameters,
)
from thawline.serving.requests import RequestLimits, check_request, classify

Fuzz = Callable[..., None]
TARGETS = 4
HANG = 60  # seconds for one example
ROUND = 100  # examples between two looks at the clock
PREPROCESSING = IMAGENET.model_copy(update={"size": 64, "resize": 73})


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Fuzz:
    """Return what calls a function with examples until its share of the time is over."""
    seconds = 60 * request.config.getoption("--fuzz-minutes") / TARGETS

    def run(target: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
        count = 0

        @settings(max_examples=ROUND, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.tuples(*strategies))
        def one_round(example: tuple[Any, ...]) -> None:
            nonlocal count
            count += 1
            faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
            try:
                target(*example)
            finally:
                faulthandler.cancel_dump_traceback_later()

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            one_round()
        with capsys.disabled():
            print(f"\n{request.node.name}: {count} examples")

    return run


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(),
    st.sampled_from(["auto", "full", "head_only", "own", "none", "1e-3", "${seed}", "a.b", -1, 0]),
)  # fmt: skip
KEYS = st.one_of(
    st.text(max_size=6), st.sampled_from(["lr", "phases", "low", "type"]), st.integers(), st.none()
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def base_parameters() -> dict[str, Any]:
    names = ("parameters.yml", "parameters_strategies.yml", "parameters_sweep.yml")
    files = [ROOT / "conf" / "base" / name for name in names]
    return {k: v for f in files for k, v in yaml.safe_load(f.read_text()).items()}


def put(tree: Any, path: list[str], value: Any) -> None:
    *groups, last = path
    for group in groups:
        inner = tree[int(group)] if isinstance(tree, list) else tree.get(group)
        if not isinstance(inner, (dict, list)):
            return
        tree = inner
    if isinstance(tree, dict):
        tree[last] = value


def test_parameters(fuzz: Fuzz) -> None:
    base = base_parameters()
    leaves = [name.split(".") for name, _ in flatten(base)]
    places = sorted({tuple(path[:end]) for path in leaves for end in range(1, len(path) + 1)})
    named = st.sampled_from(places).map(list)
    misspelt = st.builds(lambda path, end: [*path[:-1], path[-1] + end], named, st.text(max_size=3))

    def check(changes: list[tuple[list[str], Any]], whole: Any) -> None:
        tree = copy.deepcopy(base) if whole is None else whole
        for path, value in changes:
            with suppress(LookupError, ValueError):  # an earlier change took its place
                put(tree, path, value)
        with suppress(ParameterError):
            validate_parameters(tree)

    changes = st.lists(st.tuples(named | misspelt, TREES), max_size=4)
    fuzz(check, changes, st.none() | st.dictionaries(KEYS, TREES, max_size=4))


NAMES = [
    "0.png", "1.png", "2.png", "3.png", "./0.png", "a/../1.png", "../outside.png", "/etc/passwd",
    "leads_out.png", "circle.png", "folder", "cut.png", "text.png", "", " ", "0.png ", "~/x.png",
    "nul\0.png", "x" * 5000, "bär.png", "C:\\0.png", "file:///etc/passwd", '"0.png"', "[/b].png",
]  # fmt: skip
WORDS = st.sampled_from(["ants", "bees", "train", "val", "test", "1", "NA", "nan"])
CELLS = WORDS | st.text(max_size=6)


def make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for idx in range(12):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{idx}.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:40])
    (folder / "text.png").write_text("no image")
    (folder / "leads_out.png").symlink_to("/etc/passwd")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "folder").mkdir()


def test_manifests(fuzz: Fuzz, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    make_images(folder)
    file = folder / "list.csv"
    options = ScreeningOptions(min_images=1)

    def check(header: list[str], rows: list[list[str]], damage: Damage, whole: bytes) -> None:
        text = "\n".join(",".join(row) for row in [header, *rows])
        file.write_bytes(whole or damage(text.encode("utf-8", "surrogatepass")))
        with suppress(DataError):
            manifest = find_images("list.csv", folder, folder)
            assert all(Path(path).is_relative_to(folder) for path in manifest["path"])
            clean, _ = screen_images(manifest, options)
            split_dataset(clean, SplitFractions(), seed=0)

    good = st.integers(0, 11).map(lambda idx: f"{idx}.png")
    names = good | st.sampled_from(NAMES) | st.text(max_size=10)
    row = st.tuples(names, CELLS, CELLS, CELLS).map(list) | st.lists(CELLS, max_size=6)
    tidy = st.tuples(good, st.sampled_from(["ants", "bees"]), CELLS, CELLS).map(list)
    shuffled = st.permutations(["path", "label", "split", "group"])
    headers = st.just(["path", "label", "x", "y"]) | shuffled
    rows = st.lists(row, max_size=6) | st.lists(tidy, max_size=14)
    mess = st.just(b"") | st.just(b"") | st.binary(max_size=60)
    fuzz(check, headers | st.lists(CELLS, max_size=4), rows, damages(most=2), mess)


Damage = Callable[[bytes], bytes]


def damages(most: int = 8) -> st.SearchStrategy[Damage]:
    """Draw what overwrites, cuts out, doubles or cuts off parts of a file."""
    kind = st.sampled_from(["set", "set", "set", "cut", "double", "end", "insert"])
    step = st.tuples(kind, st.floats(0, 1), st.integers(0, 255), st.integers(1, 64))
    return st.lists(step, max_size=most).map(lambda steps: partial(apply, steps=steps))


def apply(content: bytes, steps: list[tuple[str, float, int, int]]) -> bytes:
    for kind, share, value, length in steps:
        at = int(share * len(content))
        part = content[at : at + length]
        content = {
            "set": content[:at] + bytes([value]) + content[at + 1 :],
            "cut": content[:at] + content[at + length :],
            "double": content[:at] + part + part + content[at + length :],
            "end": content[:at],
            "insert": content[:at] + bytes([value]) * length + content[at:],
        }[kind]
    return content


WAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("JPEG", "RGB", {}), ("JPEG", "L", {"progressive": True}), ("JPEG", "CMYK", {}),
    ("PNG", "RGB", {}), ("PNG", "P", {}), ("PNG", "RGBA", {}), ("PNG", "I;16", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "CMYK", {}), ("TIFF", "F", {}),
    ("TIFF", "RGB", {"compression": "jpeg"}), ("TIFF", "1", {"compression": "group4"}),
    ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("GIF", "P", {}), ("BMP", "RGB", {}),
    ("PPM", "RGB", {}), ("JPEG2000", "RGB", {}), ("AVIF", "RGB", {}),
]  # fmt: skip


def encode(way: str, mode: str, options: dict[str, Any]) -> bytes | None:
    pixels = np.random.default_rng(1).integers(0, 255, (40, 33, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image = image.convert("L").convert(mode) if mode in ("F", "I;16") else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif} if way in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=way, **options, **more)
    except (KeyError, OSError):  # this Pillow cannot write it
        return None
    return buffer.getvalue()


def test_images(fuzz: Fuzz, tmp_path: Path) -> None:
    encoded = [content for way in WAYS if (content := encode(*way))]
    assert len(encoded) > 10
    torch.manual_seed(0)
    model = ModelOptions(backbone="helpers.networks:SmallNet", weights="none")
    classifier = Classifier(SmallNet().eval(), tuple("abcdefghij"), PREPROCESSING, model)
    screening = ScreeningOptions(max_megapixels=1)
    limits = RequestLimits(max_megapixels=1)
    file = tmp_path / "image"

    def check(original: bytes, damage: Damage) -> None:
        content = damage(original)
        file.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            facts = examine(str(file), screening)
            assert facts.problem in {"", *(problem.value for problem in Problem)}
            with suppress(DataError):
                check_request([content], limits)
                assert classify(classifier, [content])["probability"].between(0, 1).all()
                _, problem = decode_views(str(file), PREPROCESSING)
                assert not problem

    fuzz(check, st.sampled_from(encoded), damages())


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def checkpoints(marker: Path) -> list[bytes]:
    state = SmallNet().state_dict()
    found = [save(state)]
    for content in (state, {"state_dict": state, "epoch": 3}, {"model": state, "x": Evil(marker)}):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            found.append(buffer.getvalue())
    return [*found, pickle.dumps(Evil(marker)), pickle.dumps({"a": Evil(marker)}, protocol=0)]


def test_checkpoints(fuzz: Fuzz, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    file = tmp_path / "weights.pth"
    contents = checkpoints(marker)

    def check(original: bytes, damage: Damage) -> None:
        file.write_bytes(damage(original))
        for read in (read_checkpoint, describe_checkpoint):
            with suppress(CheckpointError):
                read(file)
        assert not marker.exists()

    assert contents and not marker.exists()
    fuzz(check, st.sampled_from(contents), damages())
