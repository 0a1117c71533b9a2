"""A pickle is read or refused, and no code in it runs."""

import contextlib
import os
import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.networks import SmallNet
from helpers.weights_files import small_state
from thawline.errors import CheckpointError
from thawline.networks.building import build_network
from thawline.networks.checkpoints import describe_checkpoint, read_checkpoint
from thawline.options import ModelOptions


class Creates:
    """A pickle of this creates a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def compress(path: Path, size: int) -> None:
    """Write the records of an archive anew, one of so many bytes among them, compressed."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
        archive.writestr("archive/data/9", bytes(size))


def declare_more(path: Path) -> None:
    """Let the table of contents of an archive claim that its records are larger than the file."""
    content = bytearray(path.read_bytes())
    entry = -1
    while (entry := content.find(b"PK\x01\x02", entry + 1)) >= 0:
        content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def malformed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of files that are no state dict, some of which would run code."""
    folder = tmp_path_factory.mktemp("malformed")
    (folder / "folder.pth").mkdir()
    (folder / "empty.pth").touch()
    (folder / "text.pth").write_text("weights")
    (folder / "text.safetensors").write_text("weights")
    torch.save([1, 2], folder / "list.pth")
    torch.save({"epoch": 3, "model": {"width": 4}}, folder / "no_tensors.pth")
    for name in ("cut.pth", "bomb.pth", "small.pth", "claims.pth"):
        torch.save({"w": torch.zeros(100)}, folder / name)
    (folder / "cut.pth").write_bytes((folder / "cut.pth").read_bytes()[:300])
    compress(folder / "bomb.pth", 50_000_000)
    compress(folder / "small.pth", 10)
    declare_more(folder / "claims.pth")
    save_file({"w": torch.zeros(100)}, folder / "cut.safetensors")
    whole = (folder / "cut.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-100])
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + whole[8:])
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "script.pt")
    with zipfile.ZipFile(folder / "photos.pth", "w") as archive:
        archive.writestr("photos/1.jpg", b"no tensor")
    itself: dict[str, Any] = {}
    itself["model"] = itself
    torch.save(itself, folder / "itself.pth")
    evil = Creates(folder / "created")
    torch.save({"w": evil}, folder / "evil.pth")
    torch.save({"w": evil}, folder / "old_evil.pth", _use_new_zipfile_serialization=False)
    (folder / "raw_evil.pth").write_bytes(pickle.dumps(evil))
    first = f"(S'touch {folder}/created'\niposix\nsystem\n."
    (folder / "first_evil.pth").write_bytes(first.encode())
    return folder


SAVE = "Save one with torch.save(network.state_dict(), path)."
NO_STATE_DICT = "{path} cannot be read as a state dict (REASON). Download it again, or s" + SAVE[1:]
DAMAGED = "{path} is an incomplete or damaged safetensors file (REASON). Download it again."
NO_TENSORS = "{path} contains no state dict, but a {kind} without named tensors. " + SAVE
COMPRESSED = (
    "{path} is compressed or declares more data than it contains, which torch.save never does. It"
    " was not opened. Ask its author for another copy."
)
RUNS_CODE = (
    "{path} contains more than tensors; loading it would run code (1 (posix.system)). Nothing was"
    " run. If you trust the file, save its weights alone: torch.save(network.state_dict(),"
    " 'weights.pth'). Or set model.trust_pickle=true to run all code in it."
)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.pth", "{path} does not exist."),
        ("folder.pth", "{path} is a folder. Give the file in it."),
        ("empty.pth", "{path} is empty. Download it again."),
        ("text.pth", NO_STATE_DICT.replace("REASON", "Weights only load failed")),
        ("text.safetensors", DAMAGED),
        ("list.pth", NO_TENSORS.format(kind="list", path="{path}")),
        ("no_tensors.pth", NO_TENSORS.format(kind="dict", path="{path}")),
        ("cut.pth", NO_STATE_DICT),
        ("bomb.pth", COMPRESSED),
        ("small.pth", COMPRESSED),
        ("claims.pth", COMPRESSED),
        ("cut.safetensors", DAMAGED),
        ("header.safetensors", DAMAGED),
        (
            "script.pt",
            "{path} is a TorchScript archive, which is a program. If you trust it, save its"
            " weights: torch.save(torch.jit.load(path).state_dict(), 'weights.pth').",
        ),
        ("photos.pth", NO_STATE_DICT),
        ("itself.pth", NO_TENSORS.format(kind="dict", path="{path}")),
        ("evil.pth", RUNS_CODE),
        ("old_evil.pth", RUNS_CODE),
        ("raw_evil.pth", NO_STATE_DICT),
        ("first_evil.pth", NO_STATE_DICT),
    ],
)
def test_what_is_no_state_dict_is_refused_before_anything_in_it_runs(
    malformed: Path, name: str, said: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(malformed / name)
    expected = re.escape("model.weights: " + said.format(path=f"'{malformed / name}'"))
    assert re.fullmatch(expected.replace("REASON", "(?!None)[^\n]+"), str(caught.value))
    assert not (malformed / "created").exists()


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_a_damaged_file_is_read_or_refused_but_never_crashes(tmp_path: Path, layout: str) -> None:
    source, path = small_state(), tmp_path / "damaged.pth"
    if layout == "safetensors":
        save_file(source, path)
    else:
        torch.save({"net": source}, path, _use_new_zipfile_serialization=layout == "zip")
    whole, chance = path.read_bytes(), random.Random(0)
    for attempt in range(150):
        damaged = bytearray(whole)
        for _ in range(1 + attempt % 5):
            damaged[chance.randrange(min(3000, len(whole)))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.randrange(len(whole))] if attempt % 3 == 0 else damaged)
        for look in (read_checkpoint, describe_checkpoint):
            with contextlib.suppress(CheckpointError):
                look(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"model": net}, nn.DataParallel])
def test_a_whole_pickled_network_needs_trust(tmp_path: Path, legacy: bool, wrap: Callable) -> None:
    torch.manual_seed(1)
    whole = SmallNet()
    path = tmp_path / "whole.pt"
    torch.save(wrap(whole), path, _use_new_zipfile_serialization=not legacy)
    options = ModelOptions(backbone="helpers.networks:SmallNet", weights=str(path))
    with pytest.raises(
        CheckpointError, match=r"would run code .*(networks\.SmallNet|DataParallel).*If you trust"
    ):
        build_network(options, 10, 64, seed=0)
    trusting = options.model_copy(update={"trust_pickle": True})
    network, _ = build_network(trusting, 10, 64, seed=0)
    assert torch.equal(network.layer2[0].weight, whole.layer2[0].weight)
    assert torch.equal(network.linear.weight, whole.linear.weight)


def test_what_a_pickle_would_import_is_told_without_running_it(
    tmp_path: Path, malformed: Path
) -> None:
    evil = malformed / "evil.pth"
    told = {"path": str(evil), "bytes": evil.stat().st_size, "kind": "a pickle that runs code"}
    assert describe_checkpoint(evil) == {**told, "imports": ["posix.system"]}
    torch.save(SmallNet(), tmp_path / "whole.pt")
    told = describe_checkpoint(tmp_path / "whole.pt")
    assert told["kind"] == "a whole pickled network"
    assert "helpers.networks.SmallNet" in told["imports"]
    assert not (malformed / "created").exists()
