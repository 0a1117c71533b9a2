"""A file of weights is loaded and accounted for, or refused; nothing in it is executed."""

import argparse
import contextlib
import json
import logging
import os
import pickle
import random
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torchvision import models

from conftest import ROOT
from helpers.networks import ChannelwiseResNet, CifarResNet20, SmallNet, TiedNet
from thawline.errors import CheckpointError
from thawline.networks.building import IMAGENET, build_network
from thawline.networks.checkpoints import (
    describe_checkpoint,
    first_of,
    read_checkpoint,
    unsafe_globals,
    without_prefixes,
)
from thawline.networks.classifier import Classifier, save_classifier
from thawline.networks.weights import (
    LoadReport,
    PretrainedHead,
    adapt_channels,
    keep_rows,
    load_backbone,
)
from thawline.options import ModelOptions
from thawline.serving.requests import classify

RESNET20 = ROOT.parent / "shared" / "data" / "checkpoints" / "resnet20-12fca82f.th"
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"

State = dict[str, Tensor]


@pytest.fixture
def source() -> State:
    torch.manual_seed(1)
    return SmallNet().state_dict()


def prefixed(state: State, *prefixes: str) -> State:
    return {"".join(prefixes) + name: tensor for name, tensor in state.items()}


def load(network: nn.Module, path: Path, min_loaded: float = 0.95) -> LoadReport:
    return load_backbone(network, "linear", read_checkpoint(path), min_loaded)[0]


def as_if_from_cuda(state: State, path: Path) -> None:
    """Write a file whose tensors say that they were on the first GPU."""
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            moved = data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
            archive.writestr(name, moved if name.endswith("data.pkl") else data)


def mmpretrain(state: State) -> State:
    in_head = {f"head.{name}": t for name, t in state.items() if name.startswith("linear.")}
    rest = {name: t for name, t in state.items() if not name.startswith("linear.")}
    return {**prefixed(rest, "backbone."), **in_head}


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "model_ema": lambda state: {"model_ema": state},
    "net": lambda state: {"net": state, "acc": 93.0},
    "numbers of NumPy beside": lambda s: {"net": s, "acc": np.float64(0.9), "n": np.int64(3)},
    "net.state_dict": lambda state: {"net": {"state_dict": state}},
    "an empty wrapper": lambda state: {"state_dict": {}, "model": state},
    "module.": lambda state: prefixed(state, "module."),
    "model.": lambda state: prefixed(state, "model."),
    "backbone.": lambda state: prefixed(state, "backbone."),
    "_orig_mod.": lambda state: prefixed(state, "_orig_mod."),
    "module._orig_mod.": lambda state: prefixed(state, "module.", "_orig_mod."),
    "wrapped model.module.": lambda s: {"state_dict": prefixed(s, "model.", "module.")},
    "mmpretrain": lambda state: {"state_dict": mmpretrain(state), "meta": {}},
    "parameters": lambda state: {name: nn.Parameter(t, False) for name, t in state.items()},
    "other values beside": lambda state: {**state, "epoch": 7, "names": ["a"]},
}


@pytest.mark.parametrize(
    "layout", [*LAYOUTS, "safetensors", "safetensors.pth", "legacy", "legacy, wrapped", "cuda"]
)
def test_every_layout_gives_the_same_tensors(tmp_path: Path, source: State, layout: str) -> None:
    path = tmp_path / "weights.pth"
    if layout.startswith("safetensors"):  # known by its content, whatever it is called
        path = tmp_path / f"weights.{layout}"
        save_file(source, path)
    elif layout.startswith("legacy"):
        content = {"net": source, "acc": np.float64(0.9)} if "wrapped" in layout else source
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif layout == "cuda":
        as_if_from_cuda(source, path)
    else:
        torch.save(LAYOUTS[layout](source), path)
    options = ModelOptions(backbone="helpers.networks:SmallNet", weights=str(path))
    network, report = build_network(options, 10, 64, seed=0)
    loaded = network.state_dict()
    assert loaded.keys() == source.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in source.items())
    assert set(report.loaded) == {name for name in source if not name.startswith("linear.")}
    assert report.kept_rows == "all"
    assert not report.problems() and not report.replaced


def test_a_name_that_fits_as_it_is_comes_before_one_with_a_prefix(
    tmp_path: Path, source: State
) -> None:
    other = {name: torch.zeros_like(tensor) for name, tensor in source.items()}
    torch.save({**prefixed(other, "module."), **source}, tmp_path / "two.pth")
    network = SmallNet()
    report = load(network, tmp_path / "two.pth", min_loaded=0.4)
    assert torch.equal(network.conv1.weight, source["conv1.weight"])
    assert "module.conv1.weight" in report.unexpected


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
    torch.save({"w": Creates(folder / "created")}, folder / "evil.pth")
    torch.save(
        {"w": Creates(folder / "created")},
        folder / "old_evil.pth",
        _use_new_zipfile_serialization=False,
    )
    (folder / "raw_evil.pth").write_bytes(pickle.dumps(Creates(folder / "created")))
    (folder / "first_evil.pth").write_bytes(
        f"(S'touch {folder}/created'\niposix\nsystem\n.".encode()
    )
    return folder


SAVE = "Save one with torch.save(network.state_dict(), path)."
NO_STATE_DICT = "{path} cannot be read as a state dict (REASON). " + SAVE
NO_TENSORS = "{path} holds no state dict (a {kind} without tensors by name instead). " + SAVE
COMPRESSED = (
    "{path} is compressed, or declares more than it holds, which torch.save never does. It was not"
    " opened; get the file from its author."
)
RUNS_CODE = (
    "{path} holds more than tensors: loading it would run code (1 (posix.system)). Nothing was run."
    " The safer way: where you trust the file, save its weights alone,"
    " torch.save(network.state_dict(), 'weights.pth'). Or set model.trust_pickle=true to let this"
    " file do whatever its author wants."
)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.pth", "there is no file {path}."),
        ("folder.pth", "{path} is a folder; give the file in it."),
        ("empty.pth", "{path} is empty; get it again."),
        ("text.pth", NO_STATE_DICT.replace("REASON", "Weights only load failed")),
        ("text.safetensors", "{path} is no whole safetensors file (REASON); get it again."),
        (
            "list.pth",
            NO_TENSORS.format(kind="list", path="{path}"),
        ),
        (
            "no_tensors.pth",
            NO_TENSORS.format(kind="dict", path="{path}"),
        ),
        ("cut.pth", "{path} is cut off or damaged (REASON); get it again."),
        ("bomb.pth", COMPRESSED),
        ("small.pth", COMPRESSED),
        ("claims.pth", COMPRESSED),
        ("cut.safetensors", "{path} is no whole safetensors file (REASON); get it again."),
        ("header.safetensors", "{path} is no whole safetensors file (REASON); get it again."),
        (
            "script.pt",
            "{path} is a TorchScript archive, which is a program. Save its weights where you trust"
            " it: torch.save(torch.jit.load(path).state_dict(), 'weights.pth').",
        ),
        ("photos.pth", NO_STATE_DICT),
        (
            "itself.pth",
            NO_TENSORS.format(kind="dict", path="{path}"),
        ),
        ("evil.pth", RUNS_CODE),
        ("old_evil.pth", RUNS_CODE),
        ("raw_evil.pth", RUNS_CODE),
        ("first_evil.pth", RUNS_CODE),
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
def test_a_damaged_file_is_read_or_refused_but_never_crashes(
    tmp_path: Path, source: State, layout: str
) -> None:
    path = tmp_path / "damaged.pth"
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
    with pytest.raises(CheckpointError, match=r"would run code .*networks\.SmallNet.*safer way"):
        build_network(options, 10, 64, seed=0)
    trusting = options.model_copy(update={"trust_pickle": True})
    network, _ = build_network(trusting, 10, 64, seed=0)
    assert torch.equal(network.layer2[0].weight, whole.layer2[0].weight)
    assert torch.equal(network.linear.weight, whole.linear.weight)


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)).state_dict(), tmp_path / "other.pth")
    network = SmallNet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    said = r"model\.min_loaded: .*0 of 16 do.*missing: 16 \(.*unexpected: 2 \(0\.weight"
    with pytest.raises(CheckpointError, match=said):
        load(network, tmp_path / "other.pth")
    torch.save(SmallNet(width=4).state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match=r"of another shape: 14 \(conv1\.weight"):
        load(network, tmp_path / "narrow.pth")
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_a_deeper_network_of_the_same_names_is_refused(tmp_path: Path) -> None:
    torch.save(models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    checkpoint = read_checkpoint(tmp_path / "resnet34.pth")
    with pytest.raises(CheckpointError, match=r"100 of 180 do.*unexpected: 80 \(layer1\.2"):
        load_backbone(models.resnet18(), "fc", checkpoint, min_loaded=0.95)


def test_what_is_not_loaded_is_counted_and_named(
    tmp_path: Path, source: State, caplog: pytest.LogCaptureFixture
) -> None:
    del source["layer1.0.bias"]
    source["layer2.1.bias"] = torch.zeros(3)
    source["teacher.weight"] = torch.zeros(2)
    torch.save(source, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"14 of 16 do \(0\.88\)"):
        load(SmallNet(), tmp_path / "part.pth")
    with caplog.at_level(logging.WARNING):
        report = load(SmallNet(), tmp_path / "part.pth", min_loaded=0.8)
    assert report.missing == ("layer1.0.bias",)
    assert report.reshaped == ("layer2.1.bias",)
    assert report.unexpected == ("teacher.weight",)
    assert report.replaced == ("linear.weight", "linear.bias")
    for words in ("missing: 1 (layer1.0.bias)", "of another shape: 1 (layer2.1.bias)"):
        assert words in caplog.text and words in str(report)
    assert json.loads(json.dumps(asdict(report)))["missing"] == ["layer1.0.bias"]


def test_counters_of_batch_norm_are_never_missed(tmp_path: Path, source: State) -> None:
    old = {name: t for name, t in source.items() if "num_batches_tracked" not in name}
    torch.save(old, tmp_path / "old.pth")
    report = load(SmallNet(), tmp_path / "old.pth", min_loaded=1)
    assert not report.problems() and len(report.loaded) == 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_the_networks(
    tmp_path: Path, source: State, dtype: torch.dtype
) -> None:
    torch.save({name: t.to(dtype) for name, t in source.items()}, tmp_path / "half.pth")
    network = SmallNet()
    load(network, tmp_path / "half.pth")
    assert network.conv1.weight.dtype == torch.float32
    assert torch.equal(network.conv1.weight, source["conv1.weight"].to(dtype).float())


def test_whole_numbers_are_not_taken_for_weights(tmp_path: Path, source: State) -> None:
    source["conv1.weight"] = (100 * source["conv1.weight"]).to(torch.int8)
    torch.save(source, tmp_path / "quantized.pth")
    assert load(SmallNet(), tmp_path / "quantized.pth", 0.5).reshaped == ("conv1.weight",)


def test_one_of_two_tied_names_is_enough(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tied = TiedNet()
    save_model(tied, str(tmp_path / "tied.safetensors"))
    names = read_checkpoint(tmp_path / "tied.safetensors").tensors
    assert ("layer3.0.weight" in names) != ("layer4.0.weight" in names)
    network = TiedNet()
    report = load(network, tmp_path / "tied.safetensors", min_loaded=1)
    assert not report.problems()
    assert {"layer3.0.weight", "layer4.0.weight"} <= set(report.loaded)
    assert torch.equal(network.layer4[0].weight, tied.layer4[0].weight)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_equal_channels_give_the_same_answer_whatever_their_number(
    before: int, after: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, before, 3, 3, generator=generator, dtype=torch.float64)
    gray = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    adapted = adapt_channels(weight, after)
    assert adapted.shape == (4, after, 3, 3)
    torch.testing.assert_close(
        nn.functional.conv2d(gray.expand(-1, after, -1, -1), adapted),
        nn.functional.conv2d(gray.expand(-1, before, -1, -1), weight),
    )


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        (1, "stem: 1 input channel repeated to 3"),
        (2, "stem: 2 input channels repeated to 3"),
        (4, "stem: 4 input channels summed to 3"),
    ],
)
def test_a_stem_for_other_channels_is_adapted_and_said_so(
    tmp_path: Path, channels: int, said: str
) -> None:
    torch.manual_seed(1)
    trained = CifarResNet20(in_channels=channels).eval()
    torch.save(trained.state_dict(), tmp_path / "stem.pth")
    options = ModelOptions(
        backbone="helpers.networks:CifarResNet20", weights=str(tmp_path / "stem.pth")
    )
    network, report = build_network(options, 10, 32, seed=0)
    assert report.stem == said and said in str(report) and not report.problems()
    gray = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(
        network.eval()(gray.expand(-1, 3, -1, -1)), trained(gray.expand(-1, channels, -1, -1))
    )


@pytest.fixture
def animals(tmp_path: Path, source: State) -> Path:
    """Return a checkpoint that knows its ten classes; the head's row of class i holds i."""
    source["linear.weight"] = torch.arange(10.0).view(10, 1).expand(10, 16).clone()
    source["linear.bias"] = torch.arange(10.0)
    classes = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
    torch.save({"state_dict": source, "classes": classes}, tmp_path / "animals.pth")
    return tmp_path / "animals.pth"


@pytest.mark.parametrize(
    "head", [{}, {"head_dropout": 0.2}, {"log_probabilities": True}, {"head_dropout": 0.0}]
)
def test_rows_of_classes_that_both_heads_have_are_kept(animals: Path, head: dict) -> None:
    options = ModelOptions(backbone="helpers.networks:SmallNet", weights=str(animals), **head)
    names = ("wasp", "gnu", "bee")
    network, report = build_network(options, 3, 64, seed=0, class_names=names)
    linear = next(m for m in network.linear.modules() if isinstance(m, nn.Linear))
    assert linear.weight[1:, 0].tolist() == [6, 1] and linear.bias[1:].tolist() == [6, 1]
    assert report.kept_rows == ("gnu", "bee")
    assert report.replaced == ("linear.weight", "linear.bias")
    assert "rows kept of 2 (gnu, bee)" in str(report)
    fresh, _ = build_network(
        options.model_copy(update={"reuse_head": False}), 3, 64, 0, class_names=names
    )
    new = next(m for m in fresh.linear.modules() if isinstance(m, nn.Linear))
    assert torch.equal(new.weight[0], linear.weight[0])
    assert not torch.equal(new.weight[1], linear.weight[1])


def test_as_many_but_other_classes_keep_nothing(animals: Path) -> None:
    options = ModelOptions(backbone="helpers.networks:SmallNet", weights=str(animals))
    names = tuple("0123456789")
    _, report = build_network(options, 10, 64, seed=0, class_names=names)
    assert report.kept_rows == () and report.replaced == ("linear.weight", "linear.bias")


@pytest.mark.parametrize(
    "beside",
    [
        {"class_names": ["bee", "ant"]},
        {"classes": ("bee", "ant")},
        {"class_to_idx": {"ant": 1, "bee": 0}},
        {"class_names": [1, 2], "class_to_idx": {"ant": 1, "bee": 0}},
    ],
)
def test_class_names_are_found_beside_the_weights(tmp_path: Path, beside: dict) -> None:
    torch.save({"model": {"w": torch.zeros(2, 2)}, **beside}, tmp_path / "names.pth")
    assert read_checkpoint(tmp_path / "names.pth").class_names == ("bee", "ant")


def test_class_indices_with_gaps_name_nothing(tmp_path: Path) -> None:
    beside = {"class_to_idx": {"bee": 3, "ant": [0]}}
    torch.save({"w": torch.zeros(2, 2), **beside}, tmp_path / "names.pth")
    assert read_checkpoint(tmp_path / "names.pth").class_names == ()


def test_an_expanded_stem_does_not_fill_the_memory(tmp_path: Path, source: State) -> None:
    source["conv1.weight"] = torch.zeros(1, dtype=torch.float16).expand(8, 10**12, 3, 3)
    torch.save(source, tmp_path / "expanded.pth")
    report = load(SmallNet(), tmp_path / "expanded.pth", min_loaded=0.5)
    assert report.reshaped == ("conv1.weight",) and not report.stem


def test_a_classifier_of_ours_goes_on_with_its_classes(tmp_path: Path) -> None:
    model = ModelOptions(backbone="helpers.networks:SmallNet", weights="none", head_dropout=0.3)
    network, _ = build_network(model, 2, 64, seed=3)
    ours = Classifier(network, ("flower", "temple"), IMAGENET, model)
    save_classifier(ours, tmp_path / "ours")
    again = model.model_copy(update={"weights": str(tmp_path / "ours" / "model.safetensors")})
    more, report = build_network(again, 3, 64, 0, class_names=("bridge", "flower", "temple"))
    assert report.kept_rows == ("flower", "temple") and not report.problems()
    assert torch.equal(more.linear[1].weight[1:], network.linear[1].weight)


def test_a_name_that_occurs_twice_keeps_no_row() -> None:
    old = PretrainedHead(
        {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, ("crane", "crane", "drake")
    )
    head = nn.Linear(2, 2)
    assert keep_rows(head, old, ("crane", "drake")) == ("drake",)
    assert head.weight[1].tolist() == [1, 1] and head.weight[0].tolist() != [1, 1]


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.ones(2, 3)},
        {"0.weight": torch.ones(5, 2), "1.weight": torch.ones(2, 5)},
        {"weight": torch.ones(2, 2), "bias": torch.ones(3)},
        {"scale": torch.ones(2)},
    ],
)
def test_a_head_of_another_kind_or_width_keeps_nothing(tensors: State) -> None:
    assert keep_rows(nn.Linear(2, 2), PretrainedHead(tensors, ("a", "b")), ("a", "b")) == ()


def test_a_head_without_bias_keeps_its_answers() -> None:
    head = nn.Linear(2, 2)
    assert keep_rows(head, PretrainedHead({"weight": torch.ones(2, 2)}), ()) == "all"
    assert head.bias.tolist() == [0, 0]


def test_a_head_of_ones_own_is_loaded_where_it_fits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = ChannelwiseResNet(4)
    torch.save(trained.state_dict(), tmp_path / "own.pth")
    options = ModelOptions(
        backbone="helpers.networks:ChannelwiseResNet",
        weights=str(tmp_path / "own.pth"),
        head="builtin",
    )
    network, report = build_network(options, 4, 64, seed=0)
    assert report.kept_rows == "all" and not report.problems()
    assert torch.equal(network.linear.weight, trained.linear.weight)
    _, report = build_network(options, 3, 64, seed=0)
    assert report.kept_rows == () and report.replaced == ("linear.scale", "linear.weight")


def test_what_a_checkpoint_holds_is_told(animals: Path) -> None:
    told = describe_checkpoint(animals)
    assert told["kind"] == "a state dict under state_dict"
    assert told["bytes"] == animals.stat().st_size
    assert told["head"] == {"name": "linear.weight", "classes": 10, "width": 16}
    assert told["class_names"][:2] == ["ant", "bee"] and told["dtypes"] == ["float32", "int64"]
    assert told["parameters"] == sum(p.numel() for p in SmallNet().parameters())


def test_all_that_a_file_holds_is_told(tmp_path: Path) -> None:
    tensors = {"module.a.weight": torch.zeros(5, 4, dtype=torch.float16)}
    tensors |= {"module.b.weight": torch.zeros(3, 2), "module.b.bias": torch.zeros(3)}
    tensors |= {"module.c.running_mean": torch.zeros(7, 7), "model.module.d": torch.zeros(2, 2)}
    beside = {"epoch": 3, "best": None, "name": "mine", "optimizer": {"state": {}}, 5: 0.5}
    torch.save({"net": {"state_dict": tensors, "inner": [1]}, **beside}, tmp_path / "all.pth")
    assert describe_checkpoint(tmp_path / "all.pth") == {
        "path": str(tmp_path / "all.pth"),
        "bytes": (tmp_path / "all.pth").stat().st_size,
        "kind": "a state dict under net.state_dict",
        "tensors": 5,
        "parameters": 20 + 6 + 3 + 4,
        "dtypes": ["float16", "float32"],
        "prefixes": ["module.", "model.module."],
        "head": {"name": "module.b.weight", "classes": 3, "width": 2},
        "class_names": [],
        "other": {
            "epoch": 3, "best": None, "name": "mine", "optimizer": "dict", "5": 0.5,
            "inner": "list",
        },
        "classifier": None,
    }  # fmt: skip
    assert unsafe_globals(tmp_path / "all.pth") == []
    torch.save({"bias": nn.Parameter(torch.zeros(3))}, tmp_path / "plain.pth")
    told = describe_checkpoint(tmp_path / "plain.pth")
    assert (told["kind"], told["head"], told["prefixes"]) == ("a plain state dict", None, [])
    assert not read_checkpoint(tmp_path / "plain.pth").tensors["bias"].requires_grad


def test_prefixes_fall_off_one_by_one() -> None:
    assert without_prefixes("module.model.fc.weight") == [
        "module.model.fc.weight",
        "model.fc.weight",
        "fc.weight",
    ]
    assert without_prefixes("fc.model.weight") == ["fc.model.weight"]


def test_of_many_names_the_first_are_shown() -> None:
    assert first_of(["a", "b", "c", "d"]) == "4 (a, b, c, …)"
    assert first_of(["a", "b", "c"]) == "3 (a, b, c)"


def test_what_a_pickle_would_import_is_told_without_running_it(
    tmp_path: Path, malformed: Path
) -> None:
    told = describe_checkpoint(malformed / "evil.pth")
    assert told == {
        "path": str(malformed / "evil.pth"),
        "bytes": (malformed / "evil.pth").stat().st_size,
        "kind": "a pickle that runs code",
        "imports": ["posix.system"],
    }
    torch.save(SmallNet(), tmp_path / "whole.pt")
    told = describe_checkpoint(tmp_path / "whole.pt")
    assert (
        told["kind"] == "a whole pickled network" and "helpers.networks.SmallNet" in told["imports"]
    )
    assert not (malformed / "created").exists()


def test_a_classifier_of_ours_is_known_by_folder_and_file(tmp_path: Path) -> None:
    model = ModelOptions(backbone="helpers.networks:SmallNet", weights="none")
    network, _ = build_network(model, 2, 64, seed=3)
    save_classifier(Classifier(network, ("flower", "temple"), IMAGENET, model), tmp_path / "ours")
    told = describe_checkpoint(tmp_path / "ours")
    assert told == describe_checkpoint(tmp_path / "ours" / "model.safetensors")
    assert told["kind"] == "a classifier of Thawline"
    assert told["class_names"] == ["flower", "temple"]
    assert told["classifier"]["model"]["backbone"] == "helpers.networks:SmallNet"
    said = f"model.weights: '{tmp_path}/ours' is a folder; give {tmp_path}/ours/model.safetensors."
    with pytest.raises(CheckpointError, match=re.escape(said)):
        read_checkpoint(tmp_path / "ours")


def test_a_description_beside_weights_counts_only_for_ours_and_must_be_one(tmp_path: Path) -> None:
    weights, other = tmp_path / "model.safetensors", tmp_path / "other.safetensors"
    for file in (weights, other):
        save_file({"w": torch.zeros(1)}, file)
    assert describe_checkpoint(weights)["kind"] == "safetensors"
    description = tmp_path / "classifier.json"
    description.write_text('{"class_names": ["fl\u00f6te"]}', encoding="utf-8")
    assert read_checkpoint(weights).class_names == ("fl\u00f6te",)
    assert describe_checkpoint(other)["kind"] == "safetensors"
    assert read_checkpoint(other).class_names == ()
    for text in ("[1, 2]", "{"):
        description.write_text(text)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(weights)
        said = str(caught.value)
        assert said.startswith(f"model.weights: '{description}' beside the weights is no JSON obje")
        assert said.endswith("). Move the weights elsewhere to load them without it.")


def test_the_network_in_the_documentation_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "checkpoints.md").read_text(), re.S
    )
    (tmp_path / "my_networks.py").write_text(next(b for b in blocks if "class Block" in b))
    monkeypatch.syspath_prepend(tmp_path)
    trained = CifarResNet20().state_dict()
    torch.save({"state_dict": prefixed(trained, "module.")}, tmp_path / "resnet20.th")
    options = ModelOptions(
        backbone="my_networks:ChannelwiseResNet",
        weights=str(tmp_path / "resnet20.th"),
        head="builtin",
        backbone_kwargs={"stem_stride": 1},
    )
    network, report = build_network(options, 3, 32, seed=0)
    assert report.unexpected == ("module.linear.weight", "module.linear.bias")
    assert not report.missing and not report.reshaped
    assert torch.equal(network.layer3[2].conv2.weight, trained["layer3.2.conv2.weight"])


@pytest.mark.skipif(not RESNET20.is_file(), reason=f"{RESNET20} is not here")
def test_a_resnet20_that_others_trained_gives_its_accuracy() -> None:
    options = ModelOptions(backbone="helpers.networks:CifarResNet20", weights=str(RESNET20))
    network, report = build_network(options, 10, 32, seed=0)
    assert len(report.loaded) == 95 and report.kept_rows == "all" and not report.problems()
    preprocessing = IMAGENET.model_copy(update={"size": 32, "resize": 32})
    images = sorted((CIFAR10 / "test").glob("*/*.jpg"))
    names = tuple(sorted({path.parent.name for path in images}))
    answers = classify(Classifier(network, names, preprocessing, options), images)
    assert len(images) == 1000
    assert (answers["label"] == pd.Series([p.parent.name for p in images])).mean() == pytest.approx(
        0.804, abs=0.002
    )
