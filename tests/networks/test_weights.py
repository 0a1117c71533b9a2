"""Every tensor of a weights file is loaded or accounted for."""

import json
import logging
import re
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_model
from torch import nn
from torchvision import models

from conftest import ROOT
from helpers.networks import CifarResNet20, SmallNet, TiedNet
from helpers.weights_files import State, prefixed, small_state
from thawline.errors import CheckpointError
from thawline.networks.building import IMAGENET, build_network
from thawline.networks.checkpoints import read_checkpoint
from thawline.networks.classifier import Classifier
from thawline.networks.weights import LoadReport, adapt_channels, load_backbone
from thawline.options import ModelOptions
from thawline.serving.requests import classify

RESNET20 = ROOT.parent / "shared" / "data" / "checkpoints" / "resnet20-12fca82f.th"
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"


@pytest.fixture
def source() -> State:
    return small_state()


def load(network: nn.Module, path: Path, min_loaded: float = 0.95) -> LoadReport:
    return load_backbone(network, "linear", read_checkpoint(path), min_loaded)[0]


def test_a_name_that_fits_as_it_is_comes_before_one_with_a_prefix(
    tmp_path: Path, source: State
) -> None:
    other = {name: torch.zeros_like(tensor) for name, tensor in source.items()}
    torch.save({**prefixed(other, "module."), **source}, tmp_path / "two.pth")
    network = SmallNet()
    report = load(network, tmp_path / "two.pth", min_loaded=0.4)
    assert torch.equal(network.conv1.weight, source["conv1.weight"])
    assert "module.conv1.weight" in report.unexpected


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)).state_dict(), tmp_path / "other.pth")
    network = SmallNet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    said = r"model\.min_loaded: .*0 of 16 back.*missing: 16 \(.*unexpected: 2 \(0\.weight"
    with pytest.raises(CheckpointError, match=said):
        load(network, tmp_path / "other.pth")
    torch.save(SmallNet(width=4).state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match=r"of another shape: 14 \(conv1\.weight"):
        load(network, tmp_path / "narrow.pth")
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_a_deeper_network_of_the_same_names_is_refused(tmp_path: Path) -> None:
    torch.save(models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    checkpoint = read_checkpoint(tmp_path / "resnet34.pth")
    with pytest.raises(CheckpointError, match=r"100 of 180 back.*unexpected: 80 \(layer1\.2"):
        load_backbone(models.resnet18(), "fc", checkpoint, min_loaded=0.95)


def test_what_is_not_loaded_is_counted_and_named(
    tmp_path: Path, source: State, caplog: pytest.LogCaptureFixture
) -> None:
    del source["layer1.0.bias"]
    source["layer2.1.bias"] = torch.zeros(3)
    source["teacher.weight"] = torch.zeros(2)
    torch.save(source, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"14 of 16 backbone tensors \(0\.88\)"):
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
    stem = tmp_path / "stem.pth"
    torch.save(trained.state_dict(), stem)
    options = ModelOptions(backbone="helpers.networks:CifarResNet20", weights=str(stem))
    network, report = build_network(options, 10, 32, seed=0)
    assert report.stem == said and said in str(report) and not report.problems()
    gray = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(
        network.eval()(gray.expand(-1, 3, -1, -1)), trained(gray.expand(-1, channels, -1, -1))
    )


def test_an_expanded_stem_does_not_fill_the_memory(tmp_path: Path, source: State) -> None:
    source["conv1.weight"] = torch.zeros(1, dtype=torch.float16).expand(8, 10**12, 3, 3)
    torch.save(source, tmp_path / "expanded.pth")
    report = load(SmallNet(), tmp_path / "expanded.pth", min_loaded=0.5)
    assert report.reshaped == ("conv1.weight",) and not report.stem


def test_the_network_in_the_documentation_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "my_networks.py").write_text(next(b for b in blocks if "class Block" in b))
    monkeypatch.syspath_prepend(tmp_path)
    trained = CifarResNet20().state_dict()
    torch.save({"state_dict": prefixed(trained, "module.")}, tmp_path / "resnet20.th")
    own = {"backbone": "my_networks:ChannelwiseResNet", "backbone_kwargs": {"stem_stride": 1}}
    options = ModelOptions(weights=str(tmp_path / "resnet20.th"), head="builtin", **own)
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
    is_right = answers["label"] == pd.Series([p.parent.name for p in images])
    assert is_right.mean() == pytest.approx(0.804, abs=0.002)
