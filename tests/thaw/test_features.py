"""What the store gives back is what would be computed, whatever happens to it in between."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage
from safetensors import safe_open
from torch import Tensor, nn

from conftest import child_process
from helpers.numbered_entries import FULL, tensors_of
from helpers.training import network_of, parameters, transforms
from thawline.data import atomic_write, loading
from thawline.data.decoding import CODEC_VERSIONS, hash_files
from thawline.data.loading import ImageView, ViewLoader, evaluation_images
from thawline.data.transforms import DECODING_VERSION, NO_AUGMENTATION, build_transforms
from thawline.errors import DataError
from thawline.networks.building import IMAGENET
from thawline.options import AugmentationOptions, Phase, TransformOptions
from thawline.thaw import features as activations
from thawline.thaw import partition
from thawline.thaw.cache import NO_CACHE, ActivationCache, Cost, fastest_that_fits
from thawline.thaw.device import Accelerator
from thawline.thaw.features import ACTIVATIONS, NOTHING, VIEWS, FeatureLoader, merge
from thawline.thaw.freezing import freeze_layers
from thawline.thaw.line import ThawLine, split_at_thaw_line
from thawline.thaw.partition import CachePartition
from thawline.training import setup as training_setup
from thawline.training.loop import train
from thawline.training.progress import TrainingResult
from thawline.training.setup import prepare

HEAD = Phase(trainable={"last": 1}, epochs=4, lr=0.01)
TWO_STAGES = Phase(trainable={"last": 2}, epochs=2, lr=0.01)
ALL = Phase(trainable="all", epochs=2, lr=0.003)
SLOW_LITE0 = pytest.param("timm/tf_efficientnet_lite0", marks=pytest.mark.slow)
SLOW_V2_S = pytest.param("efficientnet_v2_s", marks=pytest.mark.slow)


@pytest.fixture
def store(tmp_path: Path) -> ActivationCache:
    return ActivationCache(tmp_path / "activations", FULL)


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_known_and_computed_rows_come_together_in_their_places(rows: list[bool]) -> None:
    is_known = np.array(rows)
    whole = tensors_of([*range(len(rows))])
    known, computed = (
        tuple(t[torch.from_numpy(which)] for t in whole) if which.any() else ()
        for which in (is_known, ~is_known)
    )
    merged = merge(is_known, known, computed)
    assert all(torch.equal(a, b) for a, b in zip(merged, whole, strict=True))


def test_a_cost_is_told_in_units_that_fit() -> None:
    assert str(Cost(12_345, 0.00678)) == "12 kB and 6.78 ms per image"


@given(
    st.dictionaries(
        st.sampled_from([ACTIVATIONS, VIEWS]),
        st.builds(Cost, st.integers(1, 10**6), st.floats(0, 1)),
    ),
    st.floats(0, 1),
    st.integers(1, 10**5),
    st.floats(0, 1e10),
)
def test_what_fits_and_costs_least_is_kept(
    costs: dict[str, Cost], nothing: float, entries: int, max_bytes: float
) -> None:
    costs = {NOTHING: Cost(0, nothing), **costs}
    chosen = costs[fastest_that_fits(costs, entries, max_bytes)]
    assert chosen.bytes * entries <= max_bytes
    assert all(c.seconds >= chosen.seconds or c.bytes * entries > max_bytes for c in costs.values())


def test_activations_no_larger_than_views_are_kept_without_weighing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(activations, "fastest_that_fits", None)
    with caplog.at_level(logging.DEBUG):
        setting.load()
    said = "Caching activations (0 kB per image, no more than its decoded view)"
    assert caplog.messages.count(said) == 1
    (row,) = setting.store.contents().to_dict("records")
    assert row["holds"] == "SmallNet up to flatten, evaluation views"
    setting.network = network_of("resnet18")
    setting.phase = Phase(trainable={"last": 4}, epochs=1, lr=1)
    with pytest.raises(TypeError):  # here there is something to weigh
        setting.load()


class Setting:
    """Everything that activations depend on, each of which a test may change."""

    def __init__(self, store: ActivationCache, paths: list[str]) -> None:
        self.store, self.paths, self.network = store, paths, network_of()
        self.phase, self.seed, self.dtype, self.pretrained = HEAD, 0, torch.float32, IMAGENET
        self.options, self.augmentation = TransformOptions(size=32), AugmentationOptions()
        self.before_each_run: Callable[[nn.Module, tuple], None] = lambda *_: None
        self.before_loading: Callable[[], None] = lambda: None

    def load(self, view: int | None = None) -> tuple[list[Tensor], int]:
        """Return what crosses the line in two batches, and how many images were computed."""
        freeze_layers(self.network, self.phase)
        transforms = build_transforms(self.options, self.pretrained, self.seed, self.augmentation)
        line = split_at_thaw_line(self.network, transforms.preprocessing.size)
        if line.below is not None:
            line.below.register_forward_pre_hook(self.before_each_run)
        self.loader = loader = FeatureLoader(
            line, transforms, ViewLoader(transforms, workers=0), self.store,
            Accelerator(torch.device("cpu"), self.dtype), entries=100,
        )  # fmt: skip
        hashes = hash_files(self.paths)
        images = [ImageView(p, h, view) for p, h in zip(self.paths, hashes, strict=True)]
        self.before_loading()
        batches = [tuple(t.clone() for t in some) for some in loader.load([images[:3], images[3:]])]
        assert loader.read + loader.computed == len(self.paths)
        columns = zip(*batches, strict=True)
        return [torch.cat(column) for column in columns], loader.computed


@pytest.fixture
def setting(store: ActivationCache, photos: Path, tmp_path: Path) -> Setting:
    """Return copies of five photographs, and the rest."""
    sources = sorted(photos.glob("*/*.jpg"))[:5]
    return Setting(store, [str(shutil.copy(source, tmp_path)) for source in sources])


def test_a_second_time_nothing_is_computed_and_all_is_the_same(setting: Setting) -> None:
    for phase in (HEAD, TWO_STAGES, ALL):
        setting.phase = phase
        for view in (None, 0, 1):
            first, computed = setting.load(view)
            again, computed_again = setting.load(view)
            assert (computed, computed_again) == (5, 0)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_another_strategy_with_the_same_line_finds_all(setting: Setting) -> None:
    setting.load()
    setting.phase = Phase(trainable=("linear.weight",), epochs=1, lr=1)
    assert setting.load()[1] == 0


def _reweigh(setting: Setting) -> None:
    with torch.no_grad():
        setting.network.conv1.weight[0, 0, 0, 0] += 1e-3


def _move_statistics(setting: Setting) -> None:
    setting.network.layer1[1].running_mean[0] += 1e-3


def _restructure(setting: Setting) -> None:
    setting.network.conv1.stride = (1, 1)


def _rewrite_code(setting: Setting) -> None:
    class Leaky(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.leaky_relu(x, 0.1)

    setting.network.layer1[2].__class__ = Leaky
    Leaky.__name__ = "ReLU"


def _edit_files(setting: Setting) -> None:
    for path in setting.paths:
        with PillowImage.open(path) as image:
            edited = image.convert("RGB").rotate(90)
        edited.save(path)


def _set(**changes: object) -> Callable[[Setting], None]:
    def change(setting: Setting) -> None:
        for name, value in changes.items():
            setattr(setting, name, value)

    change.__name__ = " ".join(changes)
    return change


@pytest.mark.parametrize(
    "change",
    [
        _reweigh,
        _move_statistics,
        _restructure,
        _rewrite_code,
        _edit_files,
        _set(seed=1),
        _set(dtype=torch.bfloat16),
        _set(options=TransformOptions(size=32, rotation=0)),
        _set(options=TransformOptions(size=48)),
        _set(augmentation=AugmentationOptions(policy="trivial")),
        _set(augmentation=AugmentationOptions(random_erasing=1)),
        _set(pretrained=IMAGENET.model_copy(update={"mean": (0.5, 0.5, 0.5)})),
        _set(pretrained=IMAGENET.model_copy(update={"interpolation": "bicubic"})),
    ],
)
def test_no_change_ever_hits_a_stale_entry(
    setting: Setting, change: Callable[[Setting], None]
) -> None:
    before, _ = setting.load(view=0)
    change(setting)
    after, computed = setting.load(view=0)
    assert computed == 5
    setting.store.max_bytes = 0
    expected, _ = setting.load(view=0)
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))
    if before[0].shape == after[0].shape:
        assert not torch.equal(before[0].float(), after[0].float())


def test_only_what_is_new_is_computed(setting: Setting) -> None:
    everything = setting.paths
    setting.paths = everything[:4]
    assert setting.load()[1] == 4
    setting.paths = everything[::-1]
    some, computed = setting.load()
    setting.store.max_bytes = 0
    assert computed == 1
    assert all(torch.equal(a, b) for a, b in zip(some, setting.load()[0], strict=True))


def test_decoded_views_are_freed_as_they_are_used(setting: Setting) -> None:
    decoded: list[weakref.ref[Tensor]] = []

    class Watched(ViewLoader):
        def load(self, batches: Sequence[list[ImageView]]) -> Iterator[Tensor]:
            for views in super().load(batches):
                decoded.append(weakref.ref(views))
                yield views

    freeze_layers(setting.network, HEAD)
    transforms = build_transforms(setting.options, setting.pretrained)
    loader = FeatureLoader(
        split_at_thaw_line(setting.network, 32), transforms, Watched(transforms, workers=0),
        setting.store, Accelerator(torch.device("cpu"), torch.float32), entries=100,
    )  # fmt: skip
    for number, _ in enumerate(loader.load([[i] for i in evaluation_images(setting.paths)]), 1):
        assert len(decoded) == number
        assert sum(views() is not None for views in decoded) <= 2
    assert number == 5


def test_copies_of_a_file_share_an_entry(setting: Setting) -> None:
    copied = Path(setting.paths[0]).with_name("copy.jpg")
    copied.write_bytes(Path(setting.paths[0]).read_bytes())
    setting.load()
    setting.paths = [str(copied), *setting.paths]
    assert setting.load()[1] == 0


def test_what_vanishes_from_the_disk_in_mid_epoch_is_computed_again(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = setting.load()
    read = CachePartition.read

    def vanish(self: CachePartition, keys: list[bytes]) -> tuple[np.ndarray, tuple]:
        setting.store.clear()
        return read(self, keys)

    monkeypatch.setattr(CachePartition, "read", vanish)
    found, _ = setting.load()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_image_file_that_vanished_before_the_first_is_decoded_is_named(setting: Setting) -> None:
    setting.network = network_of("resnet18")  # whose activations are larger than a view
    setting.phase = Phase(trainable={"last": 4}, epochs=1, lr=1)
    setting.before_loading = Path(setting.paths[0]).unlink
    with pytest.raises(DataError, match=rf"{setting.paths[0]}: .*FileNotFoundError"):
        setting.load()


def test_an_image_file_that_vanished_after_its_entry_was_evicted_is_named(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.load()
    read = CachePartition.read

    def vanish(self: CachePartition, keys: list[bytes]) -> tuple[np.ndarray, tuple]:
        setting.store.clear()
        Path(setting.paths[0]).unlink(missing_ok=True)
        return read(self, keys)

    monkeypatch.setattr(CachePartition, "read", vanish)
    with pytest.raises(DataError, match=rf"{setting.paths[0]}: .*FileNotFoundError"):
        setting.load()


def test_the_choice_never_shows_in_what_is_yielded(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Four stages of ResNet-18 are trained: what layer1 yields is larger than a view.
    setting.network = network_of("resnet18")
    setting.phase = Phase(trainable={"last": 4}, epochs=1, lr=1)
    setting.dtype = torch.bfloat16
    results = []
    for kept in (ACTIVATIONS, VIEWS, NOTHING):
        setting.store.clear()
        monkeypatch.setattr(activations, "fastest_that_fits", lambda *_, kept=kept: kept)
        with caplog.at_level(logging.DEBUG):
            results += [setting.load(view=1)[0], setting.load(view=1)[0]]
        cost = r"\d+ kB and \d+\.\d\d ms per image"
        one, other = (n for n in (VIEWS, NOTHING, ACTIVATIONS) if n != kept)
        wanted = rf"Caching {kept} \({cost}; {one} {cost}, {other} {cost}\)"
        said = [m for m in caplog.messages if m.startswith("Caching")]
        assert re.fullmatch(wanted, said[0]) and len(said) == (1 if kept == ACTIVATIONS else 2)
        caplog.clear()
        holds = " ".join(setting.store.contents()["holds"])
        assert holds == {
            ACTIVATIONS: "ResNet up to layer1_1_relu_1, random views",
            VIEWS: "random views",
            NOTHING: "",
        }[kept]  # fmt: skip
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_without_room_nothing_is_written_or_measured(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    setting.store.max_bytes = 0
    with caplog.at_level(logging.DEBUG):
        assert setting.load()[1] == setting.load()[1] == 5
    assert not setting.store.folder.exists() and "Caching" not in caplog.text


def test_a_summary_counts_what_was_read_and_computed(setting: Setting) -> None:
    for phase, kept in ((HEAD, "activations"), (ALL, "views")):
        setting.phase = phase
        setting.load()
        assert setting.loader.summary() == f"0 {kept} were read, 5 computed"
        setting.load()
        assert setting.loader.summary() == f"5 {kept} were read, 0 computed"


def test_what_is_stored_says_how_it_came_about(setting: Setting) -> None:
    setting.seed = 3
    setting.load()
    setting.load(view=0)
    told = {}
    for path in setting.store.folder.glob("*/*.safetensors"):
        with safe_open(path, framework="pt") as shard:
            description = json.loads(shard.metadata()["description"])
        told[description["holds"]] = description
    evaluation = told["SmallNet up to flatten, evaluation views"]
    transforms = build_transforms(setting.options, setting.pretrained, 3)
    assert evaluation["preprocessing"] == transforms.preprocessing.model_dump(mode="json")
    assert evaluation["packages"] == {n: version(n) for n in ("torch", "torchvision", "pillow")}
    assert evaluation["decoding"] == DECODING_VERSION
    assert evaluation["codecs"] == CODEC_VERSIONS and "jpg" in evaluation["codecs"]
    assert evaluation["below"].keys() == {"weights", "structure", "precision", "answer"}
    assert evaluation["below"]["precision"] == "torch.float32"
    assert told["SmallNet up to flatten, random views"] == {
        **evaluation,
        "holds": "SmallNet up to flatten, random views",
        "augmentation": transforms.options.model_dump(mode="json"),
        "seed": 3,
    }


def test_the_seed_of_a_view_is_the_same_in_every_version() -> None:
    transforms = build_transforms(TransformOptions(size=32), IMAGENET, seed=5)
    assert ImageView("any.jpg", "0" * 64, 2).seed(transforms) == 32957317658254044


def test_where_memory_is_short_fewer_images_run_at_once(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = setting.load()
    setting.store.clear()

    def refuse(_: nn.Module, arguments: tuple) -> None:
        if len(arguments[0]) > most:
            raise RuntimeError("CUDA out of memory." if most else "broken")

    most, setting.before_each_run = 2, refuse
    found, _ = setting.load()
    torch.testing.assert_close(found, expected)
    said = [m for m in caplog.messages if m.startswith("Out of device memory")]
    assert said == [
        f"Out of device memory for {a} images: running the frozen layers on {b} at a time"
        for a, b in ((8, 4), (4, 2))
    ]
    most = 0
    with pytest.raises(RuntimeError, match="broken"):
        setting.load()


def run(
    splits: pd.DataFrame,
    store: ActivationCache | None,
    *phases: Phase,
    backbone: str = "helpers.networks:SmallNet",
    views: int | None = 1,
    seed: int = 0,
    augmentation: AugmentationOptions = NO_AUGMENTATION,
    **changes: object,
) -> TrainingResult:
    transforms = build_transforms(TransformOptions(size=32), IMAGENET, seed, augmentation)
    chosen = parameters(seed, views, **changes)
    setup = prepare(chosen, network_of(backbone), splits, transforms, store or NO_CACHE)
    return train(setup, phases)


def assert_same(first: TrainingResult, second: TrainingResult) -> None:
    assert first.last.keys() == second.last.keys() and first.best.keys() == second.best.keys()
    assert all(torch.equal(first.last[name], second.last[name]) for name in first.last)
    assert all(torch.equal(first.best[name], second.best[name]) for name in first.best)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", ["helpers.networks:SmallNet", SLOW_LITE0])
def test_with_and_without_the_store_the_weights_are_equal(
    splits: pd.DataFrame, store: ActivationCache, precision: str, backbone: str
) -> None:
    phases = [phase.model_copy(update={"epochs": 2}) for phase in (HEAD, TWO_STAGES, ALL)]
    kwargs = {"backbone": backbone, "precision": precision}
    without = run(splits, None, *phases, **kwargs)
    assert_same(without, run(splits, store, *phases, **kwargs))
    assert_same(without, run(splits, store, *phases, **kwargs))
    assert not store.contents().empty


def test_with_a_policy_the_store_changes_no_weight_and_other_policies_do_not_read_it(
    splits: pd.DataFrame, store: ActivationCache
) -> None:
    trivial, rand = (AugmentationOptions(policy=name) for name in ("trivial", "rand"))
    phase = HEAD.model_copy(update={"epochs": 2})
    without = run(splits, None, phase, augmentation=trivial)
    assert_same(without, run(splits, store, phase, augmentation=trivial))
    assert_same(without, run(splits, store, phase, augmentation=trivial))
    assert_same(*(run(splits, kept, phase, augmentation=rand) for kept in (None, store)))
    kinds = store.contents()["holds"]
    assert kinds.str.contains("random").sum() == 2 and kinds.str.contains("evaluation").sum() == 1


# The first operation above the line of each of these writes to its input.
@pytest.mark.parametrize(
    "backbone", ["efficientnet_b0", "mobilenet_v3_small", "mnasnet0_5", SLOW_V2_S]
)
def test_dropout_in_place_above_the_line_leaves_cached_activations_as_they_are(
    splits: pd.DataFrame, store: ActivationCache, backbone: str
) -> None:
    without = run(splits, None, HEAD, backbone=backbone)
    assert_same(without, run(splits, store, HEAD, backbone=backbone))  # an empty store
    assert_same(without, run(splits, store, HEAD, backbone=backbone))  # a full one
    assert store.contents()["entries"].sum() == (splits["split"] != "test").sum()


def test_cached_views_are_not_taken_for_activations_where_nothing_may_be_cached(
    splits: pd.DataFrame, store: ActivationCache
) -> None:
    run(splits, store, ALL)  # caches views
    without = run(splits, None, HEAD)
    store.max_bytes = 0
    assert_same(without, run(splits, store, HEAD))


def test_balanced_sampling_decodes_and_computes_an_image_once(
    splits: pd.DataFrame, store: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare = splits["split"].eq("train") & splits["label"].eq("flower")
    few = splits.drop(splits.index[rare][3:]).reset_index(drop=True)
    decoded: list[str] = []
    read = loading.training_view
    monkeypatch.setattr(
        loading, "training_view", lambda path, *rest: decoded.append(path) or read(path, *rest)
    )
    run(few, store, HEAD, sampling="balanced")
    once = few.loc[few["split"] == "train", "path"].tolist()
    assert sorted(decoded) == sorted({*decoded}) and {*decoded} <= {*once}
    assert store.contents()["entries"].sum() == len(decoded) + (few["split"] == "val").sum()
    kwargs = {"sampling": "balanced", "backbone": "timm/tf_efficientnet_lite0"}
    assert_same(run(few, None, TWO_STAGES, **kwargs), run(few, store, TWO_STAGES, **kwargs))


def test_the_line_changes_weights_by_rounding_only(
    splits: pd.DataFrame, store: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Adam divides by the gradient's size, so that rounding alone can turn a step's sign; and batch
    # norm over eight small images multiplies it.
    kwargs = {"backbone": "resnet18", "optimizer": "sgd"}
    phases = [phase.model_copy(update={"batch_norm": "eval"}) for phase in (HEAD, TWO_STAGES)]
    split = run(splits, store, *phases, **kwargs)
    monkeypatch.setattr(training_setup, "split_at_thaw_line", lambda n, _: ThawLine(None, n, n))
    whole = run(splits, None, *phases, **kwargs)
    for name, tensor in whole.last.items():
        torch.testing.assert_close(split.last[name], tensor, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("views", "computed"), [(1, [28, 0, 0, 0]), (3, [28, 28, 28, 0])])
def test_a_view_is_computed_in_the_epoch_that_first_needs_it(
    splits: pd.DataFrame, store: ActivationCache, views: int, computed: list[int]
) -> None:
    seen: list[int] = []

    def count(*_: object) -> None:
        contents = store.contents()
        random_views = contents["holds"].str.contains("random")
        seen.append(int(contents.loc[random_views, "entries"].sum()))

    setup = prepare(parameters(views=views), network_of(), splits, transforms(), store)
    train(setup, [HEAD], on_epoch=count)
    assert [b - a for a, b in zip([0, *seen], seen, strict=False)] == computed


def test_fresh_views_are_never_kept_but_validation_is(
    splits: pd.DataFrame, store: ActivationCache
) -> None:
    run(splits, store, HEAD, views=None)
    (row,) = store.contents().to_dict("records")
    assert row["holds"].endswith("evaluation views")
    assert row["entries"] == (splits["split"] == "val").sum()


def test_phases_each_have_their_line(
    splits: pd.DataFrame, store: ActivationCache, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        run(splits, store, HEAD, TWO_STAGES, ALL)
    crossings = {holds.partition(",")[0] for holds in store.contents()["holds"]}
    assert {"SmallNet up to flatten", "SmallNet up to layer1_3"} <= crossings
    assert "Phase 1: 110 activations were read, 34 computed" in caplog.text


def _train_in_child(store: ActivationCache, splits: pd.DataFrame, seed: int, dies: bool) -> None:
    def sync(path: Path) -> None:
        time.sleep(0.5 if dies else 0.005)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    partition.SHARD_BYTES = 2000  # many short writes
    atomic_write.sync = sync
    logging.disable()
    run(splits, store, HEAD, TWO_STAGES, views=2, seed=seed)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by fork")
def test_processes_killed_while_writing_leave_a_store_to_rely_on(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    store = ActivationCache(tmp_path / "shared", FULL)
    for seed in range(2):
        killed = child_process(_train_in_child, store, splits, seed, True)
        other = child_process(_train_in_child, store, splits, seed, False)
        killed.start()
        while killed.is_alive() and len(list(store.folder.glob("*/*.unfinished"))) <= seed:
            time.sleep(0.005)
        other.start()  # beside the file that will never be whole
        killed.join()
        other.join()
        assert (killed.exitcode, other.exitcode) == (-signal.SIGKILL, 0)
    assert len(list(store.folder.glob("*/*.unfinished"))) == 2  # each died in the middle of a file
    alone = ActivationCache(tmp_path / "alone", FULL)
    for seed in range(2):
        expected = run(splits, alone, HEAD, TWO_STAGES, views=2, seed=seed)
        assert_same(expected, run(splits, store, HEAD, TWO_STAGES, views=2, seed=seed))
