"""Weights files of every layout give the same tensors, and are described."""

import argparse
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.networks import SmallNet
from helpers.weights_files import State, prefixed, save_animals, small_state
from thawline.errors import CheckpointError
from thawline.networks.building import IMAGENET, build_network
from thawline.networks.checkpoints import describe_checkpoint, read_checkpoint, without_prefixes
from thawline.networks.classifier import Classifier, save_classifier
from thawline.networks.files import SEEN_FILE, is_weights_file
from thawline.options import ModelOptions


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
def test_every_layout_gives_the_same_tensors(tmp_path: Path, layout: str) -> None:
    source, path = small_state(), tmp_path / "weights.pth"
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


def test_what_a_checkpoint_holds_is_told(tmp_path: Path) -> None:
    animals = save_animals(tmp_path)
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
    torch.save({"weight": torch.zeros(2, 2), "epoch": 4, "lr": 0.1}, tmp_path / "beside.pth")
    assert describe_checkpoint(tmp_path / "beside.pth")["other"] == {"epoch": 4, "lr": 0.1}
    torch.save({"bias": nn.Parameter(torch.zeros(3))}, tmp_path / "plain.pth")
    told = describe_checkpoint(tmp_path / "plain.pth")
    assert read_checkpoint(tmp_path / "plain.pth").path == tmp_path / "plain.pth"
    assert (told["kind"], told["head"], told["prefixes"]) == ("a plain state dict", None, [])
    assert not read_checkpoint(tmp_path / "plain.pth").tensors["bias"].requires_grad


def test_a_file_is_known_by_its_ending_or_a_slash_and_other_names_are_of_weights() -> None:
    files = ["a.pth", "a.pt", "a.th", "a.ckpt", "a.bin", "a.tar", "a.safetensors", "./best", "a/b"]
    names = ["default", "none", "IMAGENET1K_V2", "pth", "a.pth.V1"]
    assert [name for name in files + names if is_weights_file(name)] == files


def test_prefixes_fall_off_one_by_one() -> None:
    names = ["module.model.fc.weight", "model.fc.weight", "fc.weight"]
    assert without_prefixes(names[0]) == names
    assert without_prefixes("fc.model.weight") == ["fc.model.weight"]


def test_a_classifier_of_ours_is_known_by_folder_and_file(tmp_path: Path) -> None:
    model = ModelOptions(backbone="helpers.networks:SmallNet", weights="none")
    network, _ = build_network(model, 2, 64, seed=3)
    save_classifier(Classifier(network, ("flower", "temple"), IMAGENET, model), tmp_path / "ours")
    files = {"model.safetensors", "classifier.json", SEEN_FILE}
    assert {file.name for file in (tmp_path / "ours").iterdir()} == files
    assert SEEN_FILE == "seen_images.txt"  # earlier classifiers have it
    told = describe_checkpoint(tmp_path / "ours")
    assert told == describe_checkpoint(tmp_path / "ours" / "model.safetensors")
    assert told["kind"] == "a classifier of Thawline"
    assert told["class_names"] == ["flower", "temple"]
    assert told["classifier"]["model"]["backbone"] == "helpers.networks:SmallNet"
    said = f"model.weights: '{tmp_path}/ours' is a folder. Give {tmp_path}/ours/model.safetensors."
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
    start = f"model.weights: '{description}' beside the weights is not a JSON obje"
    for text in ("[1, 2]", "{"):
        description.write_text(text)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(weights)
        assert str(caught.value).startswith(start)
        assert str(caught.value).endswith("). Move the weights elsewhere to load them without it.")
