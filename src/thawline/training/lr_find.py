"""Find the learning rate that suits a phase."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from thawline.options import LrFindOptions, Phase
from thawline.thaw.cache import Tensors
from thawline.thaw.device import autocast
from thawline.training.loop import (
    PhaseContext,
    TrainingContext,
    prepare_phase,
    progress_bar,
)

SMOOTHING = 0.9  # what an earlier loss weighs against the next one
DIVERGED = 4  # times the lowest smoothed loss


def find_lr(setup: TrainingContext, phase: Phase, sweep: LrFindOptions) -> pd.DataFrame:
    """Return the loss at rising learning rates: the range test of Smith 2017 (arXiv:1506.01186).

    The rate of the head rises by the same factor after each update of the part above the line, and
    those of the other stages with it. The sweep ends early where the loss is `DIVERGED` times what
    it was at its lowest, or not finite. The network's weights are left as they were.

    Args:
        setup: what `prepare` has just returned; it serves for one sweep.
        phase: what is trainable, and how the stages' rates differ.
        sweep: first and last rate, and the number of updates.

    Returns:
        lr of the head, loss of the batch, smoothed (a moving average of the losses); a row an
        update.
    """
    initial = {name: tensor.clone() for name, tensor in setup.network.state_dict().items()}
    current = prepare_phase(setup, phase)
    factor = (sweep.end_lr / sweep.start_lr) ** (1 / (sweep.steps - 1))
    schedule = LambdaLR(current.optimizer, lambda step: sweep.start_lr / phase.lr * factor**step)
    rows: list[dict[str, float]] = []
    total = weight = 0.0
    with progress_bar("Sweeping the learning rate") as bar:
        task = bar.add_task("", total=sweep.steps, epoch="", figures="")
        for crossing, truth in _batches(setup, current, sweep.steps):
            with autocast(setup.accelerator):
                outputs = current.line.above_train(*crossing).float()
                loss = setup.loss_function(outputs, truth)
            setup.scaler.scale(loss).backward()
            total = SMOOTHING * total + loss.item()
            weight = SMOOTHING * weight + 1
            lr = sweep.start_lr * factor ** len(rows)
            rows.append({"lr": lr, "loss": loss.item(), "smoothed": total / weight})
            bar.update(task, advance=1, figures=f"lr {lr:.1e} loss {total / weight:.3f}")
            if not total / weight <= DIVERGED * min(row["smoothed"] for row in rows):
                break
            setup.scaler.step(current.optimizer)
            setup.scaler.update()
            schedule.step()
            current.optimizer.zero_grad()
    setup.network.zero_grad()
    setup.network.load_state_dict(initial)
    return pd.DataFrame(rows)


def suggest_lr(sweep: pd.DataFrame) -> float:
    """Return the rate at which the smoothed loss of `find_lr` has made half of its way down.

    There it falls fast, and it is far from where it rises again. The steepest point is as good in
    theory and follows the noise between batches in practice.
    """
    falling = sweep.iloc[: int(sweep["smoothed"].argmin()) + 1]
    half = (falling["smoothed"].max() + falling["smoothed"].min()) / 2
    return float(falling.loc[falling["smoothed"] <= half, "lr"].iloc[0])


def _batches(
    setup: TrainingContext, current: PhaseContext, count: int
) -> Iterator[tuple[Tensors, Tensor]]:
    """Yield what crosses the line, and the labels (N,), for so many batches of random views."""
    done = epoch = 0
    while done < count:
        order = setup.next_order()[: count - done]
        views = setup.random_views(order, epoch)
        loaded = current.activations.load(views, keep=setup.views is not None)
        for positions, crossing in zip(order, loaded, strict=True):
            yield crossing, setup.train_set.labels[positions]
        done, epoch = done + len(order), epoch + 1
