"""Find the learning rate that suits a phase."""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
from torch.optim.lr_scheduler import LambdaLR

from thawline.options import LrFindOptions, Phase
from thawline.thaw.partition import Tensors
from thawline.training.loop import train_step
from thawline.training.out_of_memory import explain_out_of_memory
from thawline.training.progress import progress_bar
from thawline.training.setup import PhaseContext, Step, TrainingContext, prepare_phase

SMOOTHING = 0.9  # weight of an earlier loss against the next one
MAX_RISE = 4  # times the lowest smoothed loss, where the test ends


def find_lr(run: TrainingContext, phase: Phase, sweep: LrFindOptions) -> pd.DataFrame:
    """Return the loss at rising learning rates: the range test of Smith 2017 (arXiv:1506.01186).

    The rates of all stages rise by the same factor after each batch. The test ends early if the
    loss is `MAX_RISE` times its lowest value, or not finite. The weights are left as they were.
    `run` is what `prepare` has just returned, and serves for one test.

    Returns:
        One row per update: lr of the head, loss of the batch, smoothed (moving average of losses).

    Raises:
        TrainingError: if the device has no memory for a batch.
    """
    options = run.options.model_copy(update={"gradient_accumulation_steps": 1})
    run = replace(run, parameters=run.parameters.model_copy(update={"training": options}))
    initial = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    current = prepare_phase(run, phase)
    factor = (sweep.end_lr / sweep.start_lr) ** (1 / (sweep.steps - 1))
    schedule = LambdaLR(current.optimizer, lambda step: sweep.start_lr / phase.lr * factor**step)
    current = replace(current, schedule=schedule, ema=None)
    rows: list[dict[str, float]] = []
    total = weight = 0.0
    with (
        explain_out_of_memory("in the learning-rate range test", run),
        progress_bar("Learning-rate range test", sweep.steps) as update_bar,
    ):
        for step, boundary in _steps(run, current, sweep.steps):
            loss = train_step(run, current, step, boundary)[0].item()
            total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
            lr, smoothed = sweep.start_lr * factor ** len(rows), total / weight
            rows.append({"lr": lr, "loss": loss, "smoothed": smoothed})
            update_bar(advance=1, figures=f"lr {lr:.1e} loss {smoothed:.3f}")
            if not smoothed <= MAX_RISE * min(row["smoothed"] for row in rows):  # NaN, too
                break
    run.network.load_state_dict(initial)
    return pd.DataFrame(rows)


def suggest_lr(sweep: pd.DataFrame) -> float:
    """Return the rate at which the smoothed loss of `find_lr` has made half of its way down.

    There it falls fast, and is far from where it rises again. The steepest point is as good in
    theory and follows the noise between batches in practice.
    """
    falling = sweep.iloc[: int(sweep["smoothed"].argmin()) + 1]
    half = (falling["smoothed"].max() + falling["smoothed"].min()) / 2
    return float(falling.loc[falling["smoothed"] <= half, "lr"].iloc[0])


def _steps(
    run: TrainingContext, current: PhaseContext, count: int
) -> Iterator[tuple[Step, Tensors]]:
    """Yield `count` steps, of as many epochs as they need, and what crosses the thaw line."""
    done = epoch = 0
    while done < count:
        steps = run.plan_epoch(run.options.batch_size)[: count - done]
        yield from zip(steps, run.load_steps(current.features, steps, epoch), strict=True)
        done, epoch = done + len(steps), epoch + 1
