"""Training on a GPU keeps what it keeps on a CPU. All of these tests need a CUDA device."""

import copy
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from conftest import copy_project, start_kedro, tracked
from helpers.training import EVERYTHING, FROZEN_NORM, HEAD, parameters, transforms, without_dropout
from helpers.training import options as cpu_options
from thawline.cli.doctor_checks import check_device
from thawline.data.decoding import hash_files
from thawline.data.loading import ImageView, ViewLoader, decode
from thawline.data.transforms import normalize
from thawline.errors import TrainingError
from thawline.evaluation.explanations import explain
from thawline.evaluation.predictions import predict_split
from thawline.networks.building import IMAGENET, build_network
from thawline.networks.classifier import Classifier, load_classifier, save_classifier
from thawline.networks.libraries import BUNDLED_BACKBONE
from thawline.options import LrFindOptions, ModelOptions, Phase, TrainingOptions
from thawline.serving.requests import classify
from thawline.thaw.cache import NO_CACHE, ActivationCache
from thawline.thaw.device import Accelerator, make_accelerator
from thawline.thaw.features import ACTIVATIONS, FeatureLoader
from thawline.thaw.freezing import freeze_layers
from thawline.thaw.line import split_at_thaw_line
from thawline.training import state
from thawline.training.loop import train
from thawline.training.lr_find import find_lr, suggest_lr
from thawline.training.progress import TrainingResult
from thawline.training.setup import TrainingContext, prepare
from thawline.training.state import TrainingCheckpoints

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZE = 64
AMPERE = (8, 0)  # compute capability of the first GPUs with TF32
TWO_STAGES = Phase(trainable={"last": 2}, epochs=2, lr=0.01)


def options(**changes: object) -> TrainingOptions:
    return cpu_options(**{"device": CUDA.type, **changes})


def small(size: int = SIZE, **backbone_kwargs: object) -> nn.Module:
    backbone = "helpers.networks:SmallNet"
    model = ModelOptions(backbone=backbone, weights="none", backbone_kwargs=backbone_kwargs)
    return build_network(model, 2, size, seed=0)[0]


def pretrained() -> nn.Module:
    return build_network(ModelOptions(backbone=BUNDLED_BACKBONE), 2, SIZE, seed=0)[0]


def context_of(
    splits: pd.DataFrame,
    network: nn.Module | None = None,
    store: ActivationCache = NO_CACHE,
    size: int = SIZE,
    **changes: object,
) -> TrainingContext:
    chosen = parameters(views=1, **{"device": CUDA.type, **changes})
    return prepare(chosen, network or small(), splits, transforms(size), store)


def run(splits: pd.DataFrame, *phases: Phase, **changes: object) -> TrainingResult:
    return train(context_of(splits, **changes), phases)


def assert_close(first: TrainingResult, second: TrainingResult, rtol: float = 1e-3) -> None:
    for name, tensor in first.last.items():
        torch.testing.assert_close(second.last[name], tensor, rtol=rtol, atol=rtol / 10)


class Features:
    """The output of the pretrained network below its head, for 12 photographs."""

    def __init__(self, splits: pd.DataFrame, dtype: torch.dtype, store: ActivationCache) -> None:
        self.paths = splits["path"].tolist()[:12]
        hashes = hash_files(self.paths)
        self.images = [ImageView(*pair) for pair in zip(self.paths, hashes, strict=True)]
        self.network = pretrained()
        freeze_layers(self.network, HEAD)
        self.transforms = transforms(SIZE)
        self.dtype, self.store = dtype, store

    def load(self, device: torch.device = CUDA) -> tuple[Tensor, FeatureLoader]:
        """Return the features (N, F) as the loader yields them, and the loader."""
        line = split_at_thaw_line(copy.deepcopy(self.network).to(device), SIZE)
        views = ViewLoader(self.transforms, 0, device.type == "cuda")
        accelerator, size = Accelerator(device, self.dtype), len(self.images)
        loader = FeatureLoader(line, self.transforms, views, self.store, accelerator, size)
        batches = [*loader.load([self.images[:8], self.images[8:]])]
        assert all(tensor.device.type == device.type for (tensor,) in batches)
        return torch.cat([tensor for (tensor,) in batches]), loader

    def error(self) -> float:
        """Return the distance from float64 on the CPU, relative to its norm."""
        below = split_at_thaw_line(copy.deepcopy(self.network).double(), SIZE).below
        views = decode(self.transforms, self.images)
        (exact,) = below(normalize(views, self.transforms.preprocessing).double())
        found, _ = self.load()
        return ((found.cpu().double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.15)],
    ids=str,
)
def test_activations_are_close_to_float64_on_a_cpu(
    splits: pd.DataFrame, dtype: torch.dtype, bound: float
) -> None:
    assert Features(splits, dtype, NO_CACHE).error() < bound


def test_training_turns_tf32_off_even_if_it_was_on(splits: pd.DataFrame) -> None:
    if torch.cuda.get_device_capability() < AMPERE:
        pytest.skip("TF32 and its switches are not here")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    left, right = (torch.randn(512, 512, device=CUDA) for _ in range(2))
    exact = left.double() @ right.double()
    rounded = (left @ right - exact).abs().max()
    make_accelerator(options())
    full = (left @ right - exact).abs().max()
    assert 10 * full < rounded
    assert Features(splits, torch.float32, NO_CACHE).error() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cached_activations_equal_computed_ones_to_the_bit(
    splits: pd.DataFrame, tmp_path: Path, dtype: torch.dtype
) -> None:
    features = Features(splits, dtype, ActivationCache(tmp_path, 1))
    (computed, first), (read, second) = features.load(), features.load()
    assert (first.read, first.computed) == (second.computed, second.read) == (0, 12)
    assert torch.equal(computed, read)
    features.store = NO_CACHE
    assert torch.equal(features.load()[0], computed)


def test_activations_of_a_cpu_are_not_read_on_a_gpu(splits: pd.DataFrame, tmp_path: Path) -> None:
    features = Features(splits, torch.float32, ActivationCache(tmp_path, 1))
    on_cpu, _ = features.load(CPU)
    on_gpu, loader = features.load()
    assert loader.computed == 12  # they differ in the last digits
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)
    assert len(features.store.contents()) == 2


def test_views_and_cached_activations_are_in_page_locked_memory(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    features = Features(splits, torch.float32, ActivationCache(tmp_path, 1))
    loader = ViewLoader(features.transforms, workers=2, pin_memory=True)
    (views,) = loader.load([features.images])
    assert views.is_pinned()
    _, loaded = features.load()
    image = features.images[0]
    (read,) = loaded.partition(ACTIVATIONS, [image]).read([image.key])
    assert read.is_pinned()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_frozen_stages_and_their_statistics_keep_every_bit(
    splits: pd.DataFrame, tmp_path: Path, precision: str
) -> None:
    network, store = pretrained(), ActivationCache(tmp_path, 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = run(splits, TWO_STAGES, network=network, store=store, precision=precision)
    changed = {name for name, t in result.last.items() if not torch.equal(t, before[name])}
    thawed = ("classifier.", "blocks.6", "conv_head", "bn2")
    assert changed and all(name.startswith(thawed) for name in changed)
    (record,) = result.freeze_contract
    assert record["sha256_before"] == record["sha256_after"]
    first, last = result.history["train_loss"]
    assert last < first
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert all(tensor.device.type == "cpu" for tensor in result.best.values())


def test_cache_and_decoding_processes_do_not_change_the_head(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    store = ActivationCache(tmp_path, 1)
    uncached = run(splits, HEAD, network=pretrained())
    assert_close(uncached, run(splits, HEAD, network=pretrained(), store=store), 1e-4)
    assert_close(uncached, run(splits, HEAD, network=pretrained(), store=store), 1e-4)
    assert_close(run(splits, HEAD), run(splits, HEAD, num_workers=2), 1e-6)


def test_a_gpu_trains_to_the_weights_of_a_cpu(splits: pd.DataFrame) -> None:
    phases = [phase.model_copy(update={"batch_norm": "eval"}) for phase in (HEAD, TWO_STAGES)]
    changes = {"optimizer": "sgd", "momentum": 0}
    on_cpu, on_gpu = (
        run(splits, *phases, network=without_dropout(small()), device=device.type, **changes)
        for device in (CPU, CUDA)
    )
    assert_close(on_cpu, on_gpu)
    losses = on_cpu.history["val_loss"].tolist()
    assert on_gpu.history["val_loss"].tolist() == pytest.approx(losses, rel=1e-3)


def test_fp16_scales_the_loss_and_skips_updates_that_overflow(splits: pd.DataFrame) -> None:
    changes = {"optimizer": "sgd", "warmup_ratio": 0, "clip_norm": 1.0}
    full, half = (
        run(
            splits, HEAD, EVERYTHING,
            network=without_dropout(small()), precision=precision, **changes,
        ).history["train_loss"].tolist()
        for precision in ("fp32", "fp16")
    )  # fmt: skip
    assert full == pytest.approx(half, rel=0.02) and full != half
    context = context_of(splits, precision="fp16")
    assert context.scaler.is_enabled()
    before = {name: tensor.cpu().clone() for name, tensor in context.network.state_dict().items()}
    # Whatever the loss, gradients overflow.
    context.scaler.load_state_dict(context.scaler.state_dict() | {"scale": 1e38})
    result = train(context, [HEAD.model_copy(update={"epochs": 1})])
    assert all(torch.equal(result.last[name], before[name]) for name in before)
    assert context.scaler.get_scale() < 1e38


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16", "ema_decay": 0.9, "sampling": "balanced"},
        {"precision": "fp16", "class_weights": "balanced", "optimizer": "sgd"},
        {"mixup": 0.4, "clip_norm": 0.5, "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_an_interrupted_training_resumes_with_the_random_numbers_of_the_gpu(
    splits: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    monkeypatch.setattr(state, "MAX_SAVING_TIME", 1e9)  # every epoch is saved
    checkpoints = TrainingCheckpoints(tmp_path)
    phase = FROZEN_NORM.model_copy(update={"epochs": 4})

    def losses(on_epoch: Callable | None = None, **more: object) -> list[float]:
        context = context_of(splits, **changes, **more)
        return train(context, [phase], checkpoints, on_epoch).history["train_loss"].tolist()

    def interrupt(_: dict, epoch: int) -> None:
        if epoch > 2:
            raise Interrupted

    undisturbed = losses()
    checkpoints.finish()
    with pytest.raises(Interrupted):
        losses(interrupt)
    torch.cuda.manual_seed_all(12345)  # another process begins with another state
    assert losses(resume=True) == pytest.approx(undisturbed, rel=5e-3)
    if not changes:  # without its random numbers, dropout would drop other values
        checkpoints.finish()
        with pytest.raises(Interrupted):
            losses(interrupt)
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
        assert losses(resume=True)[2:] != pytest.approx(undisturbed[2:], rel=5e-3)


@contextmanager
def memory_for(megabytes: float) -> Iterator[None]:
    """Limit PyTorch to so many MB (10^6 bytes) more than it has reserved."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    limit = torch.cuda.memory_reserved() + megabytes * 1e6
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def peak_megabytes(function: Callable[[], TrainingResult]) -> tuple[TrainingResult, float]:
    """Return the function's result, and the peak of the GPU memory that it allocates."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    return result, (torch.cuda.max_memory_allocated() - before) / 1e6


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        (HEAD, r"Out of device memory for \d+ images: running the frozen layers on \d+ at a time"),
        (EVERYTHING, r"repeating it with micro-batches of \d+ images"),
    ],
    ids=["frozen", "trained"],
)
def test_if_memory_is_short_fewer_images_run_at_once(
    splits: pd.DataFrame, caplog: pytest.LogCaptureFixture, phase: Phase, said: str
) -> None:
    phase = phase.model_copy(update={"batch_norm": "eval", "lr": 0.001})

    def trained() -> TrainingResult:
        network = without_dropout(small(256, width=128))
        return run(splits, phase, network=network, size=256, batch_size=28, optimizer="sgd")

    trained()  # what cuBLAS and cuDNN keep for themselves is there from now on
    whole, needed = peak_megabytes(trained)
    assert "Out of device memory" not in caplog.text
    with memory_for(needed / 2):
        parts = trained()
    assert re.search(said, caplog.text)
    assert_close(whole, parts)


@pytest.mark.parametrize(
    ("phase", "changes"),
    [(HEAD, {}), (EVERYTHING, {}), (EVERYTHING, {"ema_decay": 0.9})],
    ids=["frozen", "trained", "averaged"],
)
def test_without_any_memory_the_error_says_what_to_lower(
    splits: pd.DataFrame, tmp_path: Path, phase: Phase, changes: dict
) -> None:
    context = context_of(splits, small(width=1024), ActivationCache(tmp_path, 1), **changes)
    message = r"Out of device memory (in epoch|while phase) 1 .*transforms\.size"
    with memory_for(0), pytest.raises(TrainingError, match=message):
        train(context, [phase])


def test_the_range_test_leaves_the_network_as_it_was(splits: pd.DataFrame) -> None:
    context = context_of(splits, pretrained(), precision="bf16")
    before = {name: tensor.clone() for name, tensor in context.network.state_dict().items()}
    curve = find_lr(context, TWO_STAGES, LrFindOptions(start_lr=1e-5, end_lr=1e-1, steps=30))
    assert np.isfinite(curve["smoothed"]).all()
    assert 1e-5 <= suggest_lr(curve) < 1e-1
    after = context.network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_head_fitted_on_a_gpu_tells_two_photographs_apart(splits: pd.DataFrame) -> None:
    phase = Phase(trainable={"last": 1}, optimizer="lbfgs")
    first, again = (
        train(context_of(splits, pretrained(), precision="bf16"), [phase]) for _ in range(2)
    )
    assert first.history["val_accuracy"][0] > 0.9
    assert_close(first, again)


@pytest.fixture
def classifier() -> Classifier:
    preprocessing = IMAGENET.model_copy(update={"size": SIZE, "resize": 73})
    return Classifier(pretrained(), ("flower", "temple"), preprocessing, ModelOptions())


def test_predictions_equal_those_of_a_cpu_within_rounding(
    splits: pd.DataFrame, classifier: Classifier, tmp_path: Path
) -> None:
    on_cpu = predict_split(classifier, splits, "train", 4, options(device="cpu"))
    on_gpu = predict_split(classifier, splits, "train", 4, options(precision="bf16"))
    assert on_gpu["prediction"].tolist() == on_cpu["prediction"].tolist()
    for name in ("probability_flower", "probability_temple"):
        np.testing.assert_allclose(on_gpu[name], on_cpu[name], atol=1e-5)
    assert next(classifier.network.parameters()).device.type == CUDA.type
    save_classifier(classifier, tmp_path / "saved")
    loaded = load_classifier(tmp_path / "saved")
    assert next(loaded.network.parameters()).device.type == "cpu"
    for served in (classifier, loaded):  # the first is still on the GPU
        labels = classify(served, on_cpu["path"].tolist())
        assert labels["label"].tolist() == on_cpu["prediction"].tolist()


@pytest.mark.parametrize("method", ["grad_cam", "guided_grad_cam", "integrated_gradients"])
def test_explanations_equal_those_of_a_cpu_within_rounding(
    splits: pd.DataFrame, classifier: Classifier, method: str
) -> None:
    images = splits[["path", "label"]].head(2)
    on_cpu, on_gpu = (
        explain(classifier, images, method, options(device=device.type)).maps
        for device in (CPU, CUDA)
    )
    assert on_gpu.device.type == "cpu"
    assert (on_gpu - on_cpu).norm() < 0.01 * on_cpu.norm()


def test_the_doctor_names_the_gpu() -> None:
    found = check_device(options(device="auto", precision="auto"))
    assert torch.cuda.get_device_name() in found


def test_kedro_run_goes_from_digits_to_a_registered_classifier(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    quick = "training.epochs=2,training.num_workers=2,transforms.size=64"
    process = start_kedro(project, "run", "--pipeline=finetune", f"--params={quick}")
    said = "".join(process.communicate(timeout=280))
    assert process.returncode == 0, said
    assert f"Training on {CUDA.type} in torch." in said
    client, (run, *_) = tracked(f"sqlite:///{project}/mlflow.db")
    assert torch.cuda.get_device_name() in run.data.tags.values()
    assert run.data.metrics["test_accuracy"] > 0.6  # after two short epochs; chance is 0.1
    assert client.search_model_versions()
