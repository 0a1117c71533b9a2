"""Training learns, repeats itself to the bit, and keeps what is frozen."""

import pandas as pd
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conftest import train_set_of
from thawline.data.transforms import Transforms, build_transforms
from thawline.errors import ParameterError, TrainingError
from thawline.networks.building import IMAGENET, build_network
from thawline.options import ModelOptions, Phase, TrainingOptions, TransformOptions
from thawline.thaw.device import make_accelerator
from thawline.thaw.freezing import find_undecayed, freeze_layers
from thawline.training.loop import train
from thawline.training.optimizer import lr_factor, make_optimizer
from thawline.training.progress import TrainingResult
from thawline.training.setup import make_loss, prepare

HEAD = Phase(trainable={"last": 1}, epochs=2, lr=0.01)
EVERYTHING = Phase(trainable="all", epochs=2, lr=0.003)


def options(**changes: object) -> TrainingOptions:
    return TrainingOptions(**{"num_workers": 0, "precision": "fp32", "batch_size": 8, **changes})


def transforms(size: int = 32) -> Transforms:
    return build_transforms(TransformOptions(size=size), IMAGENET)


def network_of(
    backbone: str = "helpers.networks:SmallNet", seed: int = 0, **model: object
) -> nn.Module:
    return build_network(ModelOptions(backbone=backbone, weights="none", **model), 2, 32, seed)[0]


def run(splits: pd.DataFrame, *phases: Phase, seed: int = 0, **changes: object) -> TrainingResult:
    return train(prepare(network_of(), splits, transforms(), options(**changes), seed), phases)


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_pretrained_network_learns_to_tell_two_photographs_apart(splits: pd.DataFrame) -> None:
    network, _ = build_network(ModelOptions(), 2, 64, seed=0)
    result = train(prepare(network, splits, transforms(64), options(), seed=0), [HEAD])
    assert result.history["val_accuracy"].max() > 0.9
    assert result.history["train_loss"].is_monotonic_decreasing


def test_the_same_seed_gives_the_same_bits_and_another_does_not(splits: pd.DataFrame) -> None:
    first, again, other = (run(splits, HEAD, EVERYTHING, seed=s) for s in (0, 0, 1))
    assert same(first.last, again.last) and same(first.best, again.best)
    timeless = first.history.drop(columns=["images_per_second", "seconds"])
    pd.testing.assert_frame_equal(
        timeless, again.history.drop(columns=["images_per_second", "seconds"])
    )
    assert not same(first.last, other.last)


def test_the_number_of_workers_changes_nothing(splits: pd.DataFrame) -> None:
    assert same(run(splits, HEAD).last, run(splits, HEAD, num_workers=2).last)


def test_bf16_repeats_itself_too(splits: pd.DataFrame) -> None:
    first, again = (run(splits, EVERYTHING, precision="bf16") for _ in range(2))
    assert same(first.last, again.last)


@pytest.mark.parametrize("trainable", [{"last": 1}, {"last": 2}])
def test_frozen_stages_keep_every_tensor_to_the_bit(splits: pd.DataFrame, trainable: dict) -> None:
    network, _ = build_network(ModelOptions(), 2, 64, seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    phase = Phase(trainable=trainable, epochs=2, lr=0.01)
    result = train(prepare(network, splits, transforms(64), options(), seed=0), [phase])
    thawed = ("classifier.", "blocks.6", "conv_head", "bn2")[: 1 if trainable["last"] == 1 else 4]
    for name, tensor in result.last.items():
        if not name.startswith(thawed):
            assert torch.equal(tensor, before[name]), name
    changed = {
        name for name, tensor in result.last.items() if not torch.equal(tensor, before[name])
    }
    assert {name.split(".")[0] for name in changed} == {name.split(".")[0] for name in thawed}
    record = result.freeze_contract[0]
    assert record["sha256_before"] == record["sha256_after"]
    assert record["frozen_tensors"] > 200


def test_a_network_that_writes_to_its_frozen_weights_is_caught(splits: pd.DataFrame) -> None:
    restless = network_of("helpers.networks:RestlessNet")
    with pytest.raises(TrainingError, match="Freeze contract broken in phase 1"):
        train(prepare(restless, splits, transforms(), options(), seed=0), [HEAD])


def test_the_best_epoch_is_the_one_that_the_monitor_names(splits: pd.DataFrame) -> None:
    phase = Phase(trainable="all", epochs=4, lr=0.02)
    by_loss = run(splits, phase, monitor="val_loss")
    assert by_loss.best_epoch == by_loss.history["val_loss"].idxmin() + 1
    by_accuracy = run(splits, phase)
    history = by_accuracy.history
    best = (
        history[history["val_accuracy"] == history["val_accuracy"].max()]["val_loss"].idxmin() + 1
    )
    assert by_accuracy.best_epoch == best


def test_patience_stops_a_phase(splits: pd.DataFrame) -> None:
    phase = Phase(trainable={"last": 1}, epochs=50, lr=1e-9)
    history = run(splits, phase, monitor="val_loss", patience=2, schedule="constant").history
    assert len(history) < 50


def test_a_loss_that_explodes_is_named_with_its_batch_and_its_rate(splits: pd.DataFrame) -> None:
    phase = Phase(trainable="all", epochs=3, lr=1e30)
    said = (
        r"loss is (nan|inf) in batch 2 of 4 \(.*\.jpg and 5 more\) of epoch 1 .*Lower training\.lr"
    )
    with pytest.raises(TrainingError, match=said):
        run(splits, phase, optimizer="sgd", warmup_ratio=0)


class Memory:
    """Stands for a device that has memory for so many images in training."""

    def __init__(self, images: int) -> None:
        self.images, self.asked = images, []

    def __call__(self, _: nn.Module, inputs: tuple) -> None:
        if torch.is_grad_enabled():
            self.asked.append(len(inputs[0]))
            if len(inputs[0]) > self.images:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_accumulation_steps": 2}, {"class_weights": "balanced", "label_smoothing": 0.1}],
    ids=str,
)
def test_where_memory_is_short_parts_of_a_batch_give_the_same_weights(
    splits: pd.DataFrame, changes: dict, caplog: pytest.LogCaptureFixture
) -> None:
    frozen_norm = EVERYTHING.model_copy(update={"batch_norm": "eval"})
    uneven = splits.groupby(["split", "label"]).head(8).iloc[1:]
    results = []
    for memory in (Memory(100), Memory(3)):
        network = _without_dropout(network_of())
        network.layer2[0].register_forward_pre_hook(memory)
        setup = prepare(network, uneven, transforms(), options(optimizer="sgd", **changes), 0)
        results.append(train(setup, [frozen_norm]))
    assert memory.asked[:4] == [8, 4, 2, 2] and max(memory.asked[3:]) <= 3
    assert "repeating it with micro-batches of 2 images" in caplog.text
    whole, parts = results
    for name, tensor in whole.last.items():
        torch.testing.assert_close(parts.last[name], tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        whole.history["train_loss"].tolist(),
        parts.history["train_loss"].tolist(),
        rtol=1e-4,
        atol=0,
    )


def test_a_device_without_memory_for_two_images_is_said_to_be_too_small(
    splits: pd.DataFrame,
) -> None:
    network = network_of()
    network.layer2[0].register_forward_pre_hook(Memory(1))
    with pytest.raises(TrainingError, match=r"Out of device memory in epoch 1.*transforms\.size"):
        train(prepare(network, splits, transforms(), options(), 0), [EVERYTHING])


def test_accumulated_batches_equal_one_large_batch(splits: pd.DataFrame) -> None:
    frozen_norm = EVERYTHING.model_copy(update={"batch_norm": "eval"})
    even = splits.groupby(["split", "label"]).head(8)  # 16 training images
    kwargs = {"optimizer": "sgd", "momentum": 0, "warmup_ratio": 0}
    still = build_transforms(TransformOptions(size=32, min_crop_scale=1, rotation=0), IMAGENET)
    one, two = (
        train(
            prepare(
                _without_dropout(network_of()),
                even,
                still,
                options(batch_size=size, gradient_accumulation_steps=16 // size, **kwargs),
                seed=0,
            ),
            [frozen_norm],
        ).last
        for size in (16, 8)
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"class_weights": "balanced"}], ids=str)
def test_the_last_update_of_an_epoch_counts_all_its_images_alike(
    splits: pd.DataFrame, changes: dict
) -> None:
    frozen_norm = EVERYTHING.model_copy(update={"batch_norm": "eval"})
    uneven = splits.drop(splits.index[splits["split"] == "train"][:5]).reset_index(drop=True)
    kwargs = {
        "optimizer": "sgd",
        "momentum": 0,
        "warmup_ratio": 0,
        "schedule": "constant",
        **changes,
    }
    results = [
        train(
            prepare(
                _without_dropout(network_of()),
                uneven,  # 23 training images: batches of 5 are 5, 5, 5, 5 and 3
                transforms(),
                options(batch_size=size, gradient_accumulation_steps=accumulate, **kwargs),
                seed=0,
            ),
            [frozen_norm],
        )
        for size, accumulate in ((15, 1), (5, 3), (3, 5))
    ]
    for other in results[1:]:
        for name, tensor in results[0].last.items():
            torch.testing.assert_close(other.last[name], tensor, atol=1e-5, rtol=1e-4)


def test_fp16_learns_what_fp32_learns_and_skips_updates_that_overflow(
    splits: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    kwargs = {"optimizer": "sgd", "warmup_ratio": 0, "clip_norm": 1.0}
    results = [run(splits, HEAD, EVERYTHING, precision=p, **kwargs) for p in ("fp32", "fp16")]
    assert "CPUs compute fp16 slowly" in caplog.text
    losses = [result.history["train_loss"].tolist() for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    setup = prepare(network_of(), splits, transforms(), options(precision="fp16"), seed=0)
    assert setup.scaler.is_enabled()
    before = {name: tensor.clone() for name, tensor in setup.network.state_dict().items()}
    state = setup.scaler.state_dict()
    setup.scaler.load_state_dict(state | {"scale": 1e38})  # whatever the loss, gradients overflow
    result = train(setup, [HEAD.model_copy(update={"epochs": 1})])
    assert same(result.last, before) and setup.scaler.get_scale() < 1e38


def _without_dropout(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


VIT = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 8,
       "mlp_dim": 8}  # fmt: skip


@pytest.mark.parametrize(
    ("backbone", "arguments", "decayed"),
    [
        (
            "helpers.networks:SmallNet",
            {},
            {"conv1.weight", "layer1.0.weight", "layer2.0.weight", "linear.weight"},
        ),
        (
            "torchvision.models:VisionTransformer",
            VIT,
            {
                "conv_proj.weight",
                "heads.head.weight",
                *(
                    f"encoder.layers.encoder_layer_0.{name}"
                    for name in (
                        "self_attention.in_proj_weight",
                        "self_attention.out_proj.weight",
                        "mlp.0.weight",
                        "mlp.3.weight",
                    )
                ),
            },
        ),
    ],
)
def test_weight_decay_spares_biases_norms_and_position_embeddings(
    backbone: str, arguments: dict, decayed: set[str]
) -> None:
    network = network_of(backbone, backbone_kwargs=arguments)
    names = {parameter: name for name, parameter in network.named_parameters()}
    for changes, expected in (({}, decayed), ({"decay_all": True}, {*names.values()})):
        freeze_layers(network, EVERYTHING)
        optimizer = make_optimizer(network, EVERYTHING, options(weight_decay=0.1, **changes))
        groups = optimizer.param_groups
        assert groups[0]["name"] == "head"
        found = {names[p] for group in groups if group["weight_decay"] for p in group["params"]}
        assert found == expected
        assert {group["weight_decay"] for group in groups} <= {0.1, 0.0}
        assert sum(len(group["params"]) for group in groups) == len(names)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_network_of_timm_says_itself_what_weight_decay_spares(name: str) -> None:
    network = timm.create_model(name, num_classes=2)
    spared = find_undecayed(network)
    assert network.no_weight_decay() & {n for n, _ in network.named_parameters()} <= spared
    assert {n for n, p in network.named_parameters() if p.ndim <= 1} <= spared
    assert "head.weight" not in spared and "head.fc.weight" not in spared


def test_every_epoch_is_reported_as_it_ends(splits: pd.DataFrame) -> None:
    told = []
    result = train(
        prepare(network_of(), splits, transforms(), options(), seed=0),
        [HEAD, EVERYTHING],
        on_epoch=lambda metrics, epoch: told.append((epoch, metrics["val_loss"])),
    )
    assert told == list(zip(result.history["epoch"], result.history["val_loss"], strict=True))
    assert result.history["phase"].tolist() == [1, 1, 2, 2]


def test_nll_on_log_probabilities_trains_like_cross_entropy_on_logits(splits: pd.DataFrame) -> None:
    logits, log = (
        train(
            prepare(
                network_of(log_probabilities=log_probabilities),
                splits,
                transforms(),
                options(),
                seed=0,
                log_probabilities=log_probabilities,
            ),
            [HEAD],
        )
        for log_probabilities in (False, True)
    )
    for column in ("train_loss", "val_loss"):
        pd.testing.assert_series_equal(logits.history[column], log.history[column], rtol=1e-4)


def test_the_loss_fits_what_the_network_yields(splits: pd.DataFrame) -> None:
    uneven = pd.concat([splits, splits[splits["class_index"] == 0]])
    assert isinstance(make_loss(splits, options(), log_probabilities=True), nn.NLLLoss)
    loss = make_loss(uneven, options(class_weights="balanced", label_smoothing=0.1), False)
    assert isinstance(loss, nn.CrossEntropyLoss)
    assert loss.label_smoothing == 0.1
    assert loss.weight.tolist() == pytest.approx([0.75, 1.5])


def test_clipping_bounds_the_step(splits: pd.DataFrame) -> None:
    phase = Phase(trainable="all", epochs=1, lr=1.0)
    start = network_of().state_dict()
    kwargs = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "clip_norm": 1e-4}
    end = run(splits, phase, warmup_ratio=0, **kwargs).last
    moved = sum(
        (end[name] - start[name]).square().sum()
        for name in start
        if "running" not in name and "num_" not in name
    )
    assert 0 < moved.sqrt() <= 4 * 1e-4 * 1.01  # four steps of at most 1e-4


@given(
    st.sampled_from(["cosine", "step", "constant"]),
    st.integers(1, 50),
    st.integers(1, 40),
    st.floats(0, 0.9),
)
def test_the_rate_rises_in_the_warm_up_and_never_afterwards(
    schedule: str, epochs: int, updates: int, warmup: float
) -> None:
    chosen = options(schedule=schedule, warmup_ratio=warmup, step_epochs=3)
    phase = HEAD.model_copy(update={"epochs": epochs})
    factors = [lr_factor(step, phase, updates, chosen) for step in range(epochs * updates)]
    start = int(warmup * len(factors))
    assert all(0 < f <= 1 for f in factors)
    assert factors[:start] == sorted(factors[:start])
    if schedule != "step":
        assert factors[start] == 1
    assert factors[start:] == sorted(factors[start:], reverse=True)


def test_sgd_and_adamw_take_their_options() -> None:
    network = network_of()
    sgd = make_optimizer(network, EVERYTHING, options(optimizer="sgd", momentum=0.7))
    adamw = make_optimizer(network, EVERYTHING, options(weight_decay=0.3))
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.7
    assert isinstance(adamw, torch.optim.AdamW) and adamw.param_groups[0]["weight_decay"] == 0.3


@given(st.integers(1, 100), st.integers(1, 40), st.integers(0, 2**32))
def test_every_epoch_shows_each_image_once_but_no_batch_of_one(
    length: int, size: int, seed: int
) -> None:
    orders = torch.Generator().manual_seed(seed)
    batches = train_set_of(torch.zeros(length, dtype=torch.int64)).shuffle(orders, size)
    seen = [idx for batch in batches for idx in batch]
    assert len(set(seen)) == len(seen) >= length - 1
    assert set(seen) <= set(range(length))
    assert all(1 < len(batch) <= size for batch in batches) or size == 1 or length == 1


def test_an_absent_device_is_refused_and_the_cpu_is_always_there() -> None:
    assert make_accelerator(options(device="cpu")).device.type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match=r"training\.device: 'cuda' is not available.*cpu"):
            make_accelerator(options(device="cuda"))


def test_precision_can_be_chosen_twice_in_one_process() -> None:
    assert make_accelerator(options(precision="bf16")).mixed_precision == "bf16"
    assert make_accelerator(options(precision="fp32")).mixed_precision == "no"
