"""Training learns, repeats itself to the bit, and keeps what is frozen, phase by phase."""

import pandas as pd
import pytest
import torch
from hypothesis import given, settings

from helpers.training import (
    EVERYTHING,
    FROZEN_NORM,
    HEAD,
    network_of,
    parameters,
    prepared,
    random_phases,
    run,
    same,
    transforms,
    without_dropout,
)
from thawline.data.transforms import build_transforms
from thawline.errors import TrainingError
from thawline.networks.building import IMAGENET, build_network
from thawline.options import ModelOptions, Phase, TransformOptions
from thawline.thaw.freezing import find_stages, freeze_layers
from thawline.training.loop import train
from thawline.training.setup import prepare


def test_a_pretrained_network_learns_to_tell_two_photographs_apart(splits: pd.DataFrame) -> None:
    network, _ = build_network(ModelOptions(), 2, 64, seed=0)
    result = train(prepare(parameters(), network, splits, transforms(64)), [HEAD])
    assert result.history["val_accuracy"].max() > 0.9
    assert result.history["train_loss"].is_monotonic_decreasing


def test_the_same_seed_gives_the_same_bits_and_another_does_not(splits: pd.DataFrame) -> None:
    first, again, other = (run(splits, HEAD, EVERYTHING, seed=s) for s in (0, 0, 1))
    assert same(first.last, again.last) and same(first.best, again.best)
    of_time = ["images_per_second", "seconds"]
    pd.testing.assert_frame_equal(*(r.history.drop(columns=of_time) for r in (first, again)))
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
    result = train(prepare(parameters(), network, splits, transforms(64)), [phase])
    thawed = ("classifier.", "blocks.6", "conv_head", "bn2")[: 1 if trainable["last"] == 1 else 4]
    for name, tensor in result.last.items():
        if not name.startswith(thawed):
            assert torch.equal(tensor, before[name]), name
    changed = {n for n, tensor in result.last.items() if not torch.equal(tensor, before[n])}
    assert {name.split(".")[0] for name in changed} == {name.split(".")[0] for name in thawed}
    record = result.freeze_contract[0]
    assert record["sha256_before"] == record["sha256_after"]
    assert record["frozen_tensors"] > 200


def test_a_network_that_writes_to_its_frozen_weights_is_caught(splits: pd.DataFrame) -> None:
    restless = network_of("helpers.networks:RestlessNet")
    with pytest.raises(TrainingError, match="Freeze contract broken in phase 1"):
        train(prepared(splits, restless), [HEAD])


def test_the_best_epoch_is_the_one_that_the_monitor_names(splits: pd.DataFrame) -> None:
    phase = Phase(trainable="all", epochs=4, lr=0.02)
    by_loss = run(splits, phase, monitor="val_loss")
    assert by_loss.best_epoch == by_loss.history["val_loss"].idxmin() + 1
    by_accuracy = run(splits, phase)
    history = by_accuracy.history
    best = history[history["val_accuracy"] == history["val_accuracy"].max()]
    assert by_accuracy.best_epoch == best["val_loss"].idxmin() + 1


def test_patience_stops_a_phase(splits: pd.DataFrame) -> None:
    phase = Phase(trainable={"last": 1}, epochs=50, lr=1e-9)
    history = run(splits, phase, monitor="val_loss", patience=2, schedule="constant").history
    assert len(history) < 50


def test_a_loss_that_explodes_is_named_with_its_batch_and_its_rate(splits: pd.DataFrame) -> None:
    phase = Phase(trainable="all", epochs=3, lr=1e30)
    said = (
        r"loss is (nan|inf) in batch 2 of 4 of epoch 1 .*rate of 9.*e\+29.*Lower training\.lr.*"
        r"its images: 8 \(.*\.jpg, …\)"
    )
    with pytest.raises(TrainingError, match=said):
        run(splits, phase, optimizer="sgd", warmup_ratio=0)


def test_accumulated_batches_equal_one_large_batch(splits: pd.DataFrame) -> None:
    even = splits.groupby(["split", "label"]).head(8)  # 16 training images
    kwargs = {"optimizer": "sgd", "momentum": 0, "warmup_ratio": 0}
    still = build_transforms(TransformOptions(size=32, min_crop_scale=1, rotation=0), IMAGENET)
    results = []
    for size, steps in ((16, 1), (8, 2)):
        chosen = parameters(batch_size=size, gradient_accumulation_steps=steps, **kwargs)
        context = prepare(chosen, without_dropout(network_of()), even, still)
        results.append(train(context, [FROZEN_NORM]).last)
    one, two = results
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"class_weights": "balanced"}], ids=str)
def test_the_last_update_of_an_epoch_counts_all_its_images_alike(
    splits: pd.DataFrame, changes: dict
) -> None:
    # 23 training images: batches of 5 are 5, 5, 5, 5 and 3
    uneven = splits.drop(splits.index[splits["split"] == "train"][:5]).reset_index(drop=True)
    kwargs = {"optimizer": "sgd", "momentum": 0, "warmup_ratio": 0, "schedule": "constant"}
    results = []
    for size, steps in ((15, 1), (5, 3), (3, 5)):
        kwargs |= {"batch_size": size, "gradient_accumulation_steps": steps, **changes}
        context = prepared(uneven, without_dropout(network_of()), **kwargs)
        results.append(train(context, [FROZEN_NORM]).last)
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=1e-4)


def test_fp16_learns_what_fp32_learns_and_skips_updates_that_overflow(
    splits: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    kwargs = {"optimizer": "sgd", "warmup_ratio": 0, "clip_norm": 1.0}
    results = [run(splits, HEAD, EVERYTHING, precision=p, **kwargs) for p in ("fp32", "fp16")]
    assert "CPUs compute fp16 slowly" in caplog.text
    losses = [result.history["train_loss"].tolist() for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    setup = prepared(splits, precision="fp16")
    assert setup.scaler.is_enabled()
    before = {name: tensor.clone() for name, tensor in setup.network.state_dict().items()}
    state = setup.scaler.state_dict()
    setup.scaler.load_state_dict(state | {"scale": 1e38})  # whatever the loss, gradients overflow
    result = train(setup, [HEAD.model_copy(update={"epochs": 1})])
    assert same(result.last, before) and setup.scaler.get_scale() < 1e38


def test_every_epoch_is_reported_as_it_ends(splits: pd.DataFrame) -> None:
    told = []
    result = train(
        prepared(splits), [HEAD, EVERYTHING],
        on_epoch=lambda metrics, epoch: told.append((epoch, metrics["val_loss"])),
    )  # fmt: skip
    assert told == list(zip(result.history["epoch"], result.history["val_loss"], strict=True))
    assert result.history["phase"].tolist() == [1, 1, 2, 2]


def test_nll_on_log_probabilities_trains_like_cross_entropy_on_logits(splits: pd.DataFrame) -> None:
    histories = []
    for log in (False, True):
        model, network = ModelOptions(log_probabilities=log), network_of(log_probabilities=log)
        chosen = parameters().model_copy(update={"model": model})
        histories.append(train(prepare(chosen, network, splits, transforms()), [HEAD]).history)
    for column in ("train_loss", "val_loss"):
        pd.testing.assert_series_equal(*(history[column] for history in histories), rtol=1e-4)


def test_clipping_bounds_the_step(splits: pd.DataFrame) -> None:
    phase = Phase(trainable="all", epochs=1, lr=1.0)
    start = network_of().state_dict()
    kwargs = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "clip_norm": 1e-4}
    end = run(splits, phase, warmup_ratio=0, **kwargs).last
    weights = [name for name in start if "running" not in name and "num_" not in name]
    moved = sum((end[name] - start[name]).square().sum() for name in weights)
    assert 0 < moved.sqrt() <= 4 * 1e-4 * 1.01  # four steps of at most 1e-4


@given(random_phases)
@settings(max_examples=10)
def test_what_a_phase_freezes_is_the_same_to_the_bit_before_and_after_it(
    splits: pd.DataFrame, phases: list[Phase]
) -> None:
    before = network_of().state_dict()
    for count, each in enumerate(phases, start=1):
        network = network_of()
        after = run(splits, *phases[:count]).last  # the same seed repeats the phases before
        freeze_layers(network, each)
        trained = {name for name, p in network.named_parameters() if p.requires_grad}
        for name, stage in find_stages(network).items():
            if trained.intersection(stage.parameters):
                continue
            prefixes = (*stage.parameters, *(f"{module}." for module in stage.modules))
            for tensor in before:
                if tensor.startswith(prefixes):
                    assert torch.equal(after[tensor], before[tensor]), (name, tensor)
        for name in trained:
            if name.endswith("bias"):  # before batch norm it has no gradient, and no decay moves it
                continue
            assert not torch.equal(after[name], before[name]), name
        before = after


def test_the_history_says_where_the_line_is_and_what_is_trained(splits: pd.DataFrame) -> None:
    head = Phase(trainable={"last": 1}, epochs=1, lr=0.1)
    two = Phase(trainable={"last": 2}, epochs=1, lr=0.01, lr_decay=0.5)
    all_of_it = Phase(trainable="all", epochs=1, lr=0.001)
    history = run(splits, head, two, all_of_it, warmup_ratio=0.0).history
    assert history["phase"].tolist() == [1, 2, 3]
    assert history["thaw_line"].tolist() == ["flatten", "layer1_3", "images"]
    network = network_of()
    total = sum(p.numel() for p in network.parameters())
    assert history["trainable_parameters"].tolist()[::2] == [34, total]
    assert history["lr"].tolist() == [0.1, 0.01, 0.001]
    assert history["lr/layer2"].tolist()[1:] == [0.005, 0.001]
    assert history["lr/stem"].isna().tolist() == [True, True, False]


def test_a_phase_may_have_its_own_optimizer_schedule_and_patience(splits: pd.DataFrame) -> None:
    impatient = Phase(
        trainable={"last": 1}, epochs=30, lr=1e-9, schedule="constant", optimizer="sgd", patience=2
    )
    thaw = Phase(trainable="all", epochs=2, lr=0.001)
    history = run(splits, impatient, thaw, warmup_ratio=0.0).history
    assert history["phase"].value_counts()[1] < 30
    assert history["phase"].value_counts()[2] == 2
    assert set(history["lr"].iloc[1:3]) == {1e-9}


def test_a_phase_may_have_its_own_image_size(splits: pd.DataFrame) -> None:
    network, sides = network_of(), []
    network.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    small = EVERYTHING.model_copy(update={"size": 16, "epochs": 1})
    train(prepared(splits, network), [small, EVERYTHING.model_copy(update={"epochs": 1})])
    assert sides[0] == 16 and sides[-1] == 32 and sides == sorted(sides)


def test_without_epochs_the_network_stays_as_it_was_loaded(splits: pd.DataFrame) -> None:
    result = run(splits, Phase(trainable="all", epochs=0, lr=0.1))
    loaded = network_of().state_dict()
    assert result.best_epoch == 0 and result.history.empty
    assert same(loaded, result.best) and same(loaded, result.last)


def test_with_an_average_the_network_ends_at_it(splits: pd.DataFrame) -> None:
    phases = [Phase(trainable={"last": n}, epochs=2, lr=0.01, batch_norm="eval") for n in (1, 2)]
    plain, averaged = run(splits, *phases), run(splits, *phases, ema_decay=0.999)
    start = network_of().state_dict()
    moved = {
        name: (averaged.last[name] - start[name]).norm() / (plain.last[name] - start[name]).norm()
        for name in ("linear.weight", "layer2.0.weight")
    }
    assert all(0 < share < 1 for share in moved.values()), moved  # it lags behind
    assert torch.equal(averaged.last["layer1.0.weight"], start["layer1.0.weight"])
