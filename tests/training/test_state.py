"""A training that is killed or gets more epochs goes on as if nothing had happened."""

import logging
import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import child_process
from helpers.training import network_of, parameters, transforms
from thawline.errors import DataError, TrainingError
from thawline.options import Phase
from thawline.thaw.cache import NO_CACHE, ActivationCache
from thawline.training import state
from thawline.training.loop import train
from thawline.training.progress import TrainingResult
from thawline.training.setup import prepare
from thawline.training.state import TrainingCheckpoints

GRADUAL = tuple(Phase(trainable={"last": n}, epochs=2, lr=0.01, lr_decay=0.3) for n in (1, 2, 3, 4))


def run(
    splits: pd.DataFrame,
    states: TrainingCheckpoints | None = None,
    phases: tuple[Phase, ...] = GRADUAL,
    store: ActivationCache = NO_CACHE,
    mixup: float = 0,
    on_epoch: object = None,
    **options: object,
) -> TrainingResult:
    chosen = parameters(views=2, mixup=mixup, **options)
    setup = prepare(chosen, network_of(), splits, transforms(), store)
    return train(setup, phases, states, on_epoch)


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupt(
    after: int, splits: pd.DataFrame, states: TrainingCheckpoints, **options: object
) -> None:
    """Start a training that stops when it has reported the next epoch, before that one is saved."""

    def on_epoch(_: dict, epoch: int) -> None:
        if epoch > after:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(splits, states, on_epoch=on_epoch, **options)


def assert_same(first: TrainingResult, second: TrainingResult) -> None:
    for one, other in ((first.best, second.best), (first.last, second.last)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert first.best_epoch == second.best_epoch
    assert first.freeze_contract == second.freeze_contract
    of_time = ["images_per_second", "seconds"]
    pd.testing.assert_frame_equal(*(one.history.drop(columns=of_time) for one in (first, second)))


@pytest.fixture(scope="module")
def undisturbed(splits: pd.DataFrame) -> TrainingResult:
    return run(splits)


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingCheckpoints:
    monkeypatch.setattr(state, "MAX_SAVING_TIME", 1e9)  # every epoch is saved
    return TrainingCheckpoints(tmp_path / "states")


@pytest.mark.parametrize("after", [1, 4])
def test_a_training_interrupted_in_any_epoch_ends_with_the_same_bits(
    splits: pd.DataFrame, states: TrainingCheckpoints, undisturbed: TrainingResult, after: int
) -> None:
    interrupt(after, splits, states)
    assert_same(run(splits, states, resume=True), undisturbed)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "schedule": "step", "step_epochs": 1, "patience": 1},
        {"ema_decay": 0.9, "sampling": "balanced", "monitor": "val_loss", "precision": "bf16"},
        {"mixup": 0.4, "clip_norm": 0.5, "gradient_accumulation_steps": 2, "precision": "fp16"},
    ],
    ids=str,
)
def test_whatever_the_options_it_goes_on_exactly(
    splits: pd.DataFrame, states: TrainingCheckpoints, options: dict
) -> None:
    undisturbed = run(splits, **options)
    reported = len(undisturbed.history)
    for after in range(1, reported, 3):
        interrupt(after, splits, states, resume=after > 1, **options)
    assert_same(run(splits, states, resume=True, **options), undisturbed)


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "gradient_accumulation_steps": 2}])
def test_low_rank_updates_go_on_exactly(
    splits: pd.DataFrame, states: TrainingCheckpoints, options: dict
) -> None:
    lora = Phase(trainable={"lora": {"stages": 3, "rank": 2}}, epochs=3, lr=0.01)
    phases = (GRADUAL[0], lora, lora.model_copy(update={"epochs": 1}), GRADUAL[3])
    undisturbed = run(splits, phases=phases, **options)
    for after in (3, 4, 5):
        interrupt(after, splits, states, phases=phases, resume=after > 3, **options)
    assert_same(run(splits, states, phases=phases, resume=True, **options), undisturbed)


def test_the_generator_of_an_apple_gpu_goes_on_too(
    splits: pd.DataFrame, states: TrainingCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored: list[torch.Tensor] = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([1, 2, 3]))
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)
    interrupt(2, splits, states, device="cpu")
    run(splits, states, resume=True, device="cpu")
    assert [state.tolist() for state in restored] == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("phases", "resume", "there_is"),
    [(GRADUAL, True, True), (GRADUAL, False, False), (GRADUAL[:2], True, False)],
)
def test_it_is_known_whether_there_is_a_training_to_go_on_with(
    splits: pd.DataFrame,
    states: TrainingCheckpoints,
    phases: tuple[Phase, ...],
    resume: bool,
    there_is: bool,
) -> None:
    interrupt(3, splits, states)
    setup = prepare(parameters(views=2, resume=resume), network_of(), splits, transforms())
    assert states.has(setup, phases) is there_is


def test_another_training_is_not_gone_on_with(
    splits: pd.DataFrame, states: TrainingCheckpoints, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(3, splits, states)
    slower = tuple(phase.model_copy(update={"lr": 0.001}) for phase in GRADUAL)
    for changed in (
        {"phases": slower}, {"batch_size": 4}, {"mixup": 0.2}, {"label_smoothing": 0.1},
    ):  # fmt: skip
        caplog.clear()
        resumed = run(splits, states, resume=True, **changed)
        assert "no training to go on with that has these data" in caplog.text
        assert len(resumed.history) == 8
    assert_same(resumed, run(splits, **changed))
    caplog.clear()
    run(splits.assign(group="one"), states, resume=True)
    assert "no training to go on with that has these data" in caplog.text


def test_without_resume_it_starts_anew(splits: pd.DataFrame, states: TrainingCheckpoints) -> None:
    interrupt(3, splits, states)
    epochs = []
    run(splits, states, on_epoch=lambda _, epoch: epochs.append(epoch))
    assert epochs == list(range(1, 9))


@pytest.mark.parametrize("ended", [False, True])
def test_a_training_that_has_ended_is_not_repeated(
    splits: pd.DataFrame, states: TrainingCheckpoints, caplog: pytest.LogCaptureFixture, ended: bool
) -> None:
    first = run(splits, states)
    if ended:
        states.finish()
    told = []
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = run(splits, states, resume=True, on_epoch=lambda row, epoch: told.append(row))
    assert_same(again, first)
    assert "Resuming after epoch 8" in caplog.text
    assert "epoch 8 (phase 4)" not in caplog.text  # that one was not trained again
    assert [row["val_loss"] for row in told] == first.history["val_loss"].tolist()


def longer(epochs: int, phases: tuple[Phase, ...] = GRADUAL) -> tuple[Phase, ...]:
    """Return the phases with other epochs of the last one."""
    return (*phases[:-1], phases[-1].model_copy(update={"epochs": epochs}))


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "constant", "warmup_ratio": 0},
        {"schedule": "step", "step_epochs": 2, "warmup_ratio": 0, "ema_decay": 0.9},
        {"schedule": "constant", "warmup_ratio": 0, "optimizer": "sgd", "precision": "bf16"},
    ],
    ids=str,
)
def test_more_epochs_after_the_last_are_those_of_a_longer_training(
    splits: pd.DataFrame, tmp_path: Path, options: dict, interrupted: bool
) -> None:
    """Saving is as rare as it is outside of tests: the last state is saved all the same."""
    states = TrainingCheckpoints(tmp_path)
    run(splits, states, **options)
    states.finish()
    assert [path.suffixes for path in tmp_path.iterdir()] == [[".finished", ".pt"]]
    if interrupted:
        interrupt(9, splits, states, phases=longer(5), resume=True, **options)
    told = []
    again = run(
        splits, states, longer(5), on_epoch=lambda _, epoch: told.append(epoch), resume=True,
        **options,
    )  # fmt: skip
    assert_same(again, run(splits, phases=longer(5), **options))
    assert told == list(range(1, 12))


def test_a_cosine_is_planned_anew_over_all_epochs_and_the_best_epoch_is_carried_over(
    splits: pd.DataFrame, states: TrainingCheckpoints, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(splits, states)
    states.finish()
    with caplog.at_level(logging.INFO):
        again = run(splits, states, longer(6), resume=True)
    assert "Resuming after epoch 8" in caplog.text and "epoch 8 (phase 4)" not in caplog.text
    rates = again.history["lr"]
    pd.testing.assert_series_equal(rates[8:], run(splits, phases=longer(6)).history["lr"][8:])
    assert rates[8] > first.history["lr"][7]
    common = ["train_loss", "val_loss", "val_accuracy", "lr"]
    pd.testing.assert_frame_equal(again.history[common][:8], first.history[common])
    best = again.history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True])
    assert again.best_epoch == best["epoch"].iloc[0]
    assert len(again.freeze_contract) == 4


def test_fewer_epochs_than_trained_or_more_in_an_earlier_phase_start_from_the_beginning(
    splits: pd.DataFrame, states: TrainingCheckpoints, caplog: pytest.LogCaptureFixture
) -> None:
    run(splits, states)
    states.finish()
    (file,) = states.folder.iterdir()
    fewer, all_longer = longer(1), tuple(p.model_copy(update={"epochs": 3}) for p in GRADUAL)
    for phases, said in (
        (fewer, f"{file} has 2 epochs of the last phase, more than the 1 to be trained"),
        (all_longer, "no training to go on with that has these data"),
    ):
        caplog.clear()
        resumed = run(splits, states, phases, resume=True)
        assert said in caplog.text and "Resuming" not in caplog.text
        assert_same(resumed, run(splits, phases=phases))


def test_a_phase_that_stopped_early_stays_stopped(
    splits: pd.DataFrame, states: TrainingCheckpoints
) -> None:
    phases = (Phase(trainable="all", epochs=20, lr=0.1, patience=1, schedule="constant"),)
    first = run(splits, states, phases)
    assert len(first.history) < 20
    states.finish()
    assert_same(run(splits, states, longer(30, phases), resume=True), first)


def test_of_finished_runs_the_last_ones_states_are_kept_and_of_interrupted_ones_all(
    splits: pd.DataFrame, states: TrainingCheckpoints
) -> None:
    head = GRADUAL[:1]
    interrupt(1, splits, states, phases=head, label_smoothing=0.3)
    states.keys.clear()  # its process has ended
    (unfinished,) = states.folder.iterdir()
    for smoothings in ((0.0, 0.1), (0.2,)):  # a run with two trainings, then one with one
        for smoothing in smoothings:
            run(splits, states, head, label_smoothing=smoothing)
        states.finish()
        files = {*states.folder.iterdir()} - {unfinished}
        assert len(files) == len(smoothings)
        assert all(file.name.endswith(".finished.pt") for file in files)
    states.finish()  # of a run without a training
    assert {*states.folder.iterdir()} == {*files, unfinished}


@pytest.mark.parametrize("broken", [1, 2])
def test_a_damaged_state_is_said_and_the_one_before_it_is_taken(
    splits: pd.DataFrame, states: TrainingCheckpoints, caplog: pytest.LogCaptureFixture, broken: int
) -> None:
    interrupt(3, splits, states)
    previous, newest = sorted(states.folder.iterdir())
    assert previous.name == f"{newest.stem}.previous.pt"
    for file in (newest, previous)[:broken]:
        file.write_bytes(file.read_bytes()[:500])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert_same(run(splits, states, resume=True), run(splits))
    assert caplog.text.count("is damaged") == broken
    assert ("Resuming after epoch 2" in caplog.text) == (broken == 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_keeps_the_state_that_is_there(
    splits: pd.DataFrame, states: TrainingCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file to be written is a link to a device on which there is no room."""
    save = torch.save

    def save_without_room(state: dict, path: Path) -> None:
        if len(state["progress"]["history"]) > 3:
            path.symlink_to("/dev/full")
        save(state, path)

    monkeypatch.setattr(state.torch, "save", save_without_room)
    interrupt(5, splits, states)
    assert len(list(states.folder.iterdir())) == 2  # and nothing unfinished
    monkeypatch.undo()
    assert_same(run(splits, states, resume=True), run(splits))


def test_a_store_that_cannot_be_written_costs_only_time(
    splits: pd.DataFrame,
    undisturbed: TrainingResult,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "store").write_text("in the way of the folder")
    store = ActivationCache(tmp_path / "store", 1)
    assert_same(run(splits, store=store), undisturbed)
    assert "Cannot write the activation cache" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_image_is_named_and_training_goes_on_when_it_is_back(
    splits: pd.DataFrame,
    states: TrainingCheckpoints,
    undisturbed: TrainingResult,
    tmp_path: Path,
    workers: int,
) -> None:
    image = Path(splits.loc[splits["split"] == "train", "path"].iloc[0])
    away = tmp_path / "away"

    def vanish(_: dict, epoch: int) -> None:
        if epoch == 3:
            image.rename(away)

    try:
        with pytest.raises(DataError, match=rf"{image}: .*FileNotFoundError.*training\.resume"):
            run(splits, states, on_epoch=vanish, num_workers=workers)
        with pytest.raises(DataError, match=rf"{image}: "):
            run(splits, states, resume=True)
    finally:
        away.rename(image)
    assert_same(run(splits, states, resume=True), undisturbed)


def test_after_a_loss_that_is_not_finite_the_state_before_is_there(
    splits: pd.DataFrame, states: TrainingCheckpoints
) -> None:
    explodes = Phase(trainable="all", epochs=1, lr=1e30, optimizer="sgd")
    with pytest.raises(TrainingError, match=r"of epoch 3 \(phase 2\)"):
        run(splits, states, phases=(GRADUAL[0], explodes), warmup_ratio=0)
    _, file = sorted(states.folder.iterdir())
    assert len(torch.load(file, weights_only=True)["progress"]["history"]) == 2


def test_saving_takes_little_of_the_time(
    splits: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = []
    states = TrainingCheckpoints(tmp_path)
    write = state.write_atomic
    monkeypatch.setattr(
        state, "write_atomic", lambda *a: (saves.append(1), time.sleep(0.1), write(*a))
    )
    run(splits, states)  # epochs of a few hundredths of a second
    assert len(saves) == 2  # the first and the last


def _train_in_child(splits: pd.DataFrame, folder: Path, activations: Path) -> None:
    logging.disable()
    state.MAX_SAVING_TIME = 1e9
    (folder.parent / "began").touch()
    run(splits, TrainingCheckpoints(folder), store=ActivationCache(activations, 1), resume=True)


def test_sigkill_at_random_moments_changes_nothing(
    splits: pd.DataFrame, tmp_path: Path, undisturbed: TrainingResult
) -> None:
    moments = random.Random(0)
    seconds, kills, phases = 0.5, 0, set()  # as long as the training may go on; it adapts itself
    began = tmp_path / "began"
    while kills < 2 or len(phases) < 2:  # test_kills.py has more
        assert kills < 100
        began.unlink(missing_ok=True)
        child = child_process(_train_in_child, splits, tmp_path / "states", tmp_path / "store")
        child.start()
        while not began.exists():
            assert child.is_alive()
            time.sleep(0.002)
        start = time.perf_counter()
        child.join(moments.uniform(0, seconds))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
            seconds *= 1.3
            child.join()
        else:
            seconds = time.perf_counter() - start
            assert child.exitcode == 0
        for file in (tmp_path / "states").glob("*.pt"):
            course = torch.load(file, weights_only=True)["progress"]
            phases.add(course["phase"])
            if len(course["history"]) == 8 or child.exitcode == 0:
                file.unlink()  # it has come to its end: the next one starts from the beginning
    states = TrainingCheckpoints(tmp_path / "states")
    store = ActivationCache(tmp_path / "store", 1)
    assert_same(run(splits, states, store=store, resume=True), undisturbed)
