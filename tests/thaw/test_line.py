"""Below the thaw line and above it, put together, is the whole network, whatever is frozen."""

import copy
import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thawline.networks.building import build_network
from thawline.options import ModelOptions, Phase, TrainingOptions
from thawline.thaw.cutting import ConvBatchNorm, fold_kept_batch_norm
from thawline.thaw.device import make_accelerator
from thawline.thaw.freezing import freeze_layers
from thawline.thaw.line import ThawLine, modules_below_line, split_at_thaw_line

SIZE = 64
NETWORKS = {  # with the number of freeze patterns to try
    "resnet18": 3,
    "timm/resnet50": 1,
    "timm/tf_efficientnet_lite0": 2,
    "torchvision.models:VisionTransformer": 4,
    "helpers.networks:ResidualNet": 40,
}
ARGUMENTS = {  # as vit_b_16, but small
    "image_size": SIZE, "patch_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 32,
    "mlp_dim": 64,
}  # fmt: skip


@functools.cache
def network_of(backbone: str) -> nn.Module:
    arguments = ARGUMENTS if backbone.endswith("Transformer") else {}
    options = ModelOptions(backbone=backbone, weights="none", backbone_kwargs=arguments)
    network, _ = build_network(options, 3, SIZE, seed=0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:  # so that there is much to fold
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.double()  # gradients through the batch norm of three images multiply rounding


def frozen(backbone: str, *names: str, trainable: object = (), **options: str) -> nn.Module:
    """Return a network of which what has some names is trained, or what else a phase names."""
    network = network_of(backbone)
    freeze_layers(network, Phase(trainable=trainable or names, epochs=1, lr=1, **options))
    return network


def images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)


def together(line: ThawLine, batch: Tensor, training: bool) -> Tensor:
    tensors = (batch,) if line.below is None else line.below(batch)
    assert not any(tensor.requires_grad for tensor in tensors)
    assert all(len(tensor) == len(batch) for tensor in tensors)
    return (line.above_train if training else line.above_eval)(*tensors)


@pytest.mark.parametrize("backbone", NETWORKS)
def test_the_two_parts_are_the_network_for_any_freeze_pattern(backbone: str) -> None:
    names = [name for name, _ in network_of(backbone).named_parameters()]

    @given(
        st.lists(st.sampled_from(names), max_size=4),
        st.integers(0, len(names)),
        st.sampled_from(["train", "eval"]),
    )
    @settings(max_examples=NETWORKS[backbone], derandomize=True)
    def check(scattered: list[str], start: int, batch_norm: str) -> None:
        trainable = {"head", *scattered, *names[start:]}
        network = frozen(backbone, *trainable, batch_norm=batch_norm)
        modes = {name: module.training for name, module in network.named_modules()}
        line = split_at_thaw_line(network, SIZE)
        assert {name: module.training for name, module in network.named_modules()} == modes
        _check_below(network, line)
        _check_training(network, line)
        network.eval()
        with torch.no_grad():
            torch.testing.assert_close(together(line, images(), training=False), network(images()))

    check()


def _check_below(network: nn.Module, line: ThawLine) -> None:
    if line.below is not None:
        assert not any(p.requires_grad for p in line.below.parameters())
        for node in line.below.graph.nodes:
            if node.op == "call_module":
                below = network.get_submodule(node.target)
                assert not any(p.requires_grad for p in below.parameters())
            if node.op == "get_attr":
                assert not network.get_parameter(node.target).requires_grad


def _check_training(network: nn.Module, line: ThawLine) -> None:
    """In training mode outputs and gradients are those of the whole network."""
    results = []
    for forward in (network, lambda batch: together(line, batch, training=True)):
        torch.manual_seed(0)  # the same dropout in both
        network.zero_grad()
        outputs = forward(images())
        outputs.square().mean().backward()
        gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        results.append((outputs.detach(), gradients))
    (outputs, gradients), (of_parts, gradients_of_parts) = results
    torch.testing.assert_close(of_parts, outputs)
    assert gradients.keys() == gradients_of_parts.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_of_parts[name], gradient, atol=1e-6, rtol=1e-5)


def test_a_line_inside_a_residual_block_is_crossed_by_two_tensors() -> None:
    network = frozen("resnet18", "head", "layer4.1.conv2.weight", "layer4.1.bn2.*")
    assert split_at_thaw_line(network, SIZE).boundary == ("layer4_0_relu_1", "layer4_1_relu")


@pytest.mark.parametrize(
    ("backbone", "trainable", "crossing"),
    [
        ("resnet18", {"last": 1}, "flatten"),
        ("resnet18", {"last": 2}, "layer3_1_relu_1"),
        ("timm/tf_efficientnet_lite0", {"last": 1}, "global_pool_flatten"),
        ("torchvision.models:VisionTransformer", {"last": 1}, "getitem_11"),
    ],
)
def test_what_is_frozen_first_lies_below(backbone: str, trainable: dict, crossing: str) -> None:
    line = split_at_thaw_line(frozen(backbone, trainable=trainable), SIZE)
    assert line.boundary == (crossing,)
    used = {node.target for node in line.below.graph.nodes if node.op == "call_module"}
    assert not any(isinstance(line.below.get_submodule(n), nn.BatchNorm2d) for n in used)


def test_training_above_trains_the_network_and_leaves_below_alone() -> None:
    network = copy.deepcopy(network_of("helpers.networks:ResidualNet"))
    freeze_layers(network, Phase(trainable=("head", "mix"), epochs=1, lr=1))
    line = split_at_thaw_line(network, SIZE)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    crossing = line.below(images())
    for p in network.parameters():
        if p.requires_grad:
            p.data += 1
    changed = {n for n, t in network.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {n for n in before if n.startswith(("linear", "mix"))}
    assert all(torch.equal(a, b) for a, b in zip(line.below(images()), crossing, strict=True))
    network.eval()
    torch.testing.assert_close(together(line, images(), False), network(images()))


def test_with_nothing_frozen_the_images_cross() -> None:
    network = frozen("helpers.networks:ResidualNet", trainable="all")
    line = split_at_thaw_line(network, SIZE)
    assert line.below is None and line.above_train is network


def test_noise_lies_above_even_where_all_around_it_is_frozen() -> None:
    network = frozen("helpers.networks:NoisyNet", "head")
    assert split_at_thaw_line(network, SIZE).boundary == ("layer1_3",)


class SizesNet(nn.Module):
    """What is trained takes sizes, a shape and a type from what is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=4)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.mix = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images) * self.scale
        count, width, height, _ = x.shape
        rows = self.mix(x).reshape(2 * count * height, -1, width)
        return self.linear((rows.to(x.dtype).reshape(x.shape) + x).mean(dim=(2, 3)))


class SharedNet(nn.Module):
    """Batch norm that no convolution may take up: either is used twice, or what is between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.beside, self.last = (nn.Conv2d(w, 4, 1) for w in (3, 4, 4, 4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        for norm in self.norms:
            nn.init.uniform_(norm.running_mean, 1, 2)
        self.linear = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norms[0](self.stem(images)).relu()
        x = self.norms[0](self.last(x)).relu()
        x = self.norms[1](self.twice(x)).relu()
        x = self.norms[2](self.twice(x)).relu()
        y = self.beside(x)
        x = self.norms[3](y) + y
        return self.linear(x.mean(dim=(2, 3)))


class WritingNet(SizesNet):
    """Writes to what a frozen layer yields and drops what comes of it."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x.mul_(2)
        return self.linear(self.mix(x).mean(dim=(2, 3)))


class FlatNet(SizesNet):
    """Takes images of 8 px and no others."""

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.stem(images).expand(-1, -1, 2, 2).mean(dim=(2, 3)))


class VirtualBatches(nn.Module):
    """Normalizes so many images at a time in training, and none alone, as ghost batch norm does."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if len(x) % self.size:
            raise ValueError(f"{len(x)} images make no virtual batches of {self.size}")
        return torch.cat([some - some.mean(0) for some in x.split(self.size)])


class VirtualNet(SizesNet):
    """Needs batches of a certain size in training, above the line alone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = VirtualBatches(size)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.norm(self.mix(self.stem(images)).mean(dim=(2, 3))))


def with_frozen(network: nn.Module, *trainable: str) -> nn.Module:
    """Return a network in evaluation mode of which only what begins with some names is trained."""
    for name, parameter in network.double().eval().named_parameters():
        parameter.requires_grad_(name.startswith(trainable))
    return network


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("kind", "trainable", "crossing"),
    [
        (SizesNet, ("mix", "linear"), ("mul",)),
        (SizesNet, ("scale", "mix", "linear"), ("stem",)),
        (SizesNet, (), ("linear",)),
        (SharedNet, ("linear",), ("mean",)),
    ],
)
def test_the_parts_answer_for_any_number_of_images(
    kind: type[nn.Module], trainable: tuple[str, ...], crossing: tuple[str, ...]
) -> None:
    network = with_frozen(kind(), *trainable)
    state = torch.get_rng_state()
    line = split_at_thaw_line(network, SIZE)
    assert torch.equal(torch.get_rng_state(), state)
    assert line.boundary == crossing
    for batch in map(images, (1, 4, 7)):
        for training in (True, False):
            torch.testing.assert_close(together(line, batch, training), network(batch))


@pytest.mark.parametrize(("size", "splits"), [(2, True), (3, False), (8, False)])
def test_a_network_that_is_particular_about_batches_ends_no_run(
    size: int, splits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    network = with_frozen(VirtualNet(size), "linear").train()
    line = split_at_thaw_line(network, SIZE)
    assert (line.below is not None) == splits == (not warnings_in(caplog))
    assert all(module.training for module in network.modules())
    if splits:
        torch.testing.assert_close(together(line, images(6), True), network(images(6)))
    else:
        assert f"it fails for 4 images (4 images make no virtual batches of {size})" in caplog.text


def test_what_lies_below_is_told_in_the_order_of_the_forward() -> None:
    network = frozen("helpers.networks:SmallNet", "head")
    stages = [f"{stage}.{idx}" for stage in ("layer1", "layer2") for idx in range(4)]
    below = ["input_norm", "conv1", *stages, "pool"]
    told = modules_below_line(network, split_at_thaw_line(network, SIZE).boundary)
    assert list(told.items()) == [*((name, True) for name in below), ("linear", False)]
    assert modules_below_line(frozen("helpers.networks:BranchingNet", "head"), ("images",)) == {}


def test_what_is_frozen_above_what_is_trained_stays_above(caplog: pytest.LogCaptureFixture) -> None:
    network = with_frozen(SizesNet(), "stem")
    line = split_at_thaw_line(network, SIZE)
    assert line == ThawLine(None, network, network, ("images",)) and not warnings_in(caplog)


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        (WritingNet, 8, "the two parts' outputs differ from its own by "),
        (FlatNet, 16, "it fails for 16 px ("),
    ],
)
def test_parts_that_are_not_the_network_are_not_used_and_the_log_says_why(
    kind: type[nn.Module], size: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    line = split_at_thaw_line(with_frozen(kind(), "linear"), size)
    assert line.below is None
    (message,) = warnings_in(caplog)
    assert message.startswith(f"The network is not split and runs whole in every epoch: {said}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ("helpers.networks:BranchingNet", r"symbolically traced variables cannot be used[^\n]*"),
        ("helpers.networks:RestlessNet", r"[^\n]+"),
    ],
)
def test_what_cannot_be_traced_stays_whole_and_the_log_says_why(
    backbone: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert split_at_thaw_line(frozen(backbone, "head"), SIZE).below is None
    name = backbone.removeprefix("helpers.networks:")
    assert re.search(rf"every epoch: {name} cannot be traced \({reason}\)$", *warnings_in(caplog))


class EmulatedTf32(TorchFunctionMode):
    """Rounds what convolutions read to 10 bits of mantissa, as Ampere does unless told not to."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.conv2d and torch.backends.cudnn.allow_tf32:
            images, weight, *rest = args
            args = (_rounded(images), _rounded(weight), *rest)
        return func(*args, **(kwargs or {}))


def _rounded(tensor: Tensor) -> Tensor:
    """Return float32 values with the 13 last bits of their mantissas rounded away."""
    return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_a_gpu_that_would_round_to_tf32_refuses_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    network = copy.deepcopy(network_of("timm/resnet50")).float()
    freeze_layers(network, Phase(trainable=["head"], epochs=1, lr=1))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with EmulatedTf32():
        assert split_at_thaw_line(network, SIZE).below is not None


def test_training_and_evaluation_compute_float32_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    make_accelerator(TrainingOptions(device="cpu", precision="fp32"))
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_parts_that_differ_in_training_alone_are_not_used(caplog: pytest.LogCaptureFixture) -> None:
    line = split_at_thaw_line(frozen("helpers.networks:LateReader", "head"), SIZE)
    assert line.below is None and "the two parts' outputs differ from its own by" in caplog.text


def test_finding_the_line_leaves_statistics_and_modes_as_they_were() -> None:
    network = frozen("helpers.networks:ResidualNet", "block2.*", "head")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    assert split_at_thaw_line(network, SIZE).below is not None
    assert all(torch.equal(before[n], t) for n, t in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes


class ActivatedNorm(nn.BatchNorm2d):
    """A batch norm that also activates, of a network's own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


@pytest.mark.parametrize(
    ("make_norm", "is_folded"),
    [
        (nn.BatchNorm2d, True),
        (nn.SyncBatchNorm, True),
        (timm.layers.BatchNormAct2d, True),
        (lambda c: timm.layers.convert_sync_batchnorm(timm.layers.BatchNormAct2d(c)), True),
        (ActivatedNorm, False),
    ],
)
def test_batch_norm_is_folded_with_what_follows_in_it_or_not_at_all(
    make_norm: Callable[[int], nn.Module], is_folded: bool
) -> None:
    torch.manual_seed(0)
    norm = make_norm(8)
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), norm)
    network = nn.Sequential(body, nn.Flatten(), nn.LazyLinear(2)).double()
    network(images())
    body.eval().requires_grad_(False)
    line = split_at_thaw_line(network, SIZE)
    assert line.below is not None and together(line, images(), True).allclose(network(images()))
    assert (type(norm) not in {type(module) for module in line.below.modules()}) == is_folded


@pytest.mark.parametrize("backbone", ["resnet18", "timm/tf_efficientnet_lite0"])
def test_folding_a_trained_batch_norm_that_keeps_its_statistics_gives_the_same_gradients(
    backbone: str,
) -> None:
    network = frozen(backbone, trainable={"last": 3}, batch_norm="eval")
    line = split_at_thaw_line(network, SIZE)
    folded = fold_kept_batch_norm(line.above_train)
    assert sum(isinstance(module, ConvBatchNorm) for module in folded.modules()) > 3
    trained = [p for p in network.parameters() if p.requires_grad]
    assert {*map(id, trained)} <= {*map(id, folded.parameters())}
    results = []
    for part in (line.above_train, folded):
        network.zero_grad()
        outputs = part(*line.below(images()))
        outputs.square().sum().backward()
        results.append([outputs.detach(), *(p.grad.clone() for p in trained)])
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain)


class Standardized(nn.Conv2d):
    """A convolution that makes its weight anew in each pass, as timm's StdConv2d."""

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight / self.weight.std()
        return nn.functional.conv2d(images, weight, self.bias, padding=1)


class KeywordNet(nn.Module):
    """A network that calls a module by keyword alone."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 3, 1), conv
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(input=self.norm(self.conv(self.stem(images))).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        Standardized(3, 4, 3, padding=1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1)),
    ],
    ids=["plain", "computes its weight", "parametrized"],
)
def test_only_a_convolution_that_has_its_weight_takes_in_a_batch_norm(conv: nn.Module) -> None:
    torch.manual_seed(0)
    network = KeywordNet(conv).double()
    network(5 * images(16))  # so that the statistics are not those of a new layer
    network.stem.requires_grad_(False)
    network.norm.eval()
    line = split_at_thaw_line(network, SIZE)
    assert line.below is not None
    boundary = line.below(images())
    folded = fold_kept_batch_norm(line.above_train)
    torch.testing.assert_close(folded(*boundary), line.above_train(*boundary))
    is_folded = any(isinstance(module, ConvBatchNorm) for module in folded.modules())
    assert is_folded == (type(conv) is nn.Conv2d)


def test_a_batch_norm_that_counts_its_batches_is_not_folded() -> None:
    network = frozen("resnet18", "layer4", "fc")
    folded = fold_kept_batch_norm(split_at_thaw_line(network, SIZE).above_train)
    assert not any(isinstance(module, ConvBatchNorm) for module in folded.modules())
