"""Average networks in weight space, and choose among the averages by validation."""

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence

import torch

from thawline.errors import TrainingError
from thawline.networks.classifier import Classifier
from thawline.options import Phase
from thawline.training.loop import validate
from thawline.training.progress import State, TrainingProgress, TrainingResult, copy_tensors, score
from thawline.training.ray_cluster import Arguments
from thawline.training.setup import prepare, prepare_phase

logger = logging.getLogger(__name__)

Validate = Callable[[State], dict[str, float]]

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the fine-tuned network


def average(states: Sequence[State], weights: Sequence[float]) -> State:
    """Return the weighted mean of states on the CPU; integers are those of the first.

    Double precision makes the mean of equal states the same to the bit.
    """
    averaged = dict(states[0])
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            parts = [w * s[name].double() for w, s in zip(weights, states, strict=True)]
            averaged[name] = torch.stack(parts).sum(dim=0).to(tensor.dtype)
    return averaged


def make_validator(arguments: Arguments, states: Sequence[State]) -> Validate:
    """Return a function from averages of states to their val_loss and val_accuracy.

    Layers that are equal in all states lie below the thaw line: the cache has their outputs. The
    function changes the weights of the network in `arguments`, which are those of `prepare`.
    """
    run, (first, *others) = prepare(*arguments), states
    run.network.load_state_dict(first)
    names = [name for name, _ in run.network.named_parameters()]
    changed = tuple(n for n in names if not all(first[n].equal(other[n]) for other in others))
    current = prepare_phase(run, Phase(trainable=changed or "all", epochs=0, lr=1.0))
    progress = TrainingProgress(micro_batch=run.options.batch_size)

    def measure(state: State) -> dict[str, float]:
        run.network.load_state_dict(state)
        try:
            return validate(run, current, progress)
        except TrainingError:  # the loss is not finite
            return {"val_loss": math.inf, "val_accuracy": 0.0}

    return measure


def apply_wise_ft(arguments: Arguments, result: TrainingResult) -> TrainingResult:
    """Return a result whose best state is the best average of head and fine-tuned network.

    See WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903). `arguments` are those of the training.
    """
    if not result.wise_ft_ends:
        logger.info("training.wise_ft has no effect: no phase trains the head before layers thaw")
        return result
    tuned, head = result.wise_ft_ends
    measure = make_validator(arguments, [tuned, head])
    rows = {alpha: measure(average([tuned, head], [alpha, 1 - alpha])) for alpha in ALPHAS}
    alpha = max(rows, key=lambda a: score(rows[a], arguments[0].training.monitor))
    found = ", ".join(f"{a:g} (val accuracy {row['val_accuracy']:.3f})" for a, row in rows.items())
    logger.info("WiSE-FT: alpha %g, chosen from %s", alpha, found)
    return result._replace(
        best=average([tuned, head], [alpha, 1 - alpha]),
        best_epoch=len(result.history) if alpha and tuned is result.last else result.best_epoch,
        wise_ft={"wise_ft_alpha": alpha, "best_val_accuracy": rows[alpha]["val_accuracy"]},
    )


def make_greedy_soup(arguments: Arguments, trained: Sequence[Classifier]) -> Classifier | None:
    """Return the average of those classifiers that raise validation accuracy, None if it is one.

    Greedy soup (Wortsman et al. 2022, arXiv:2203.05482): from the best to the worst, each is added
    unless `training.monitor` gets worse. Networks that are built differently have no average.
    """
    first, monitor = trained[0], arguments[0].training.monitor
    if any((t.model, t.preprocessing) != (first.model, first.preprocessing) for t in trained):
        return None
    states = [copy_tensors(each.network) for each in trained]
    measure = make_validator(arguments, states)
    scores = [score(measure(state), monitor) for state in states]
    best, *others = sorted(range(len(states)), key=scores.__getitem__, reverse=True)
    soup, members, (reached, _) = states[best], [best], scores[best]
    for one in others:
        tried = [*members, one]
        mean = average([states[m] for m in tried], [1 / len(tried)] * len(tried))
        value, _ = score(measure(mean), monitor)
        if value >= reached:
            soup, members, reached = mean, tried, value
    if len(members) == 1:
        return None
    network = copy.deepcopy(first.network)
    network.load_state_dict(soup)
    seeds = [trained[member].training["seed"] for member in members]
    training = {name: first.training[name] for name in ("strategy", "chosen_strategy")}
    return dataclasses.replace(first, network=network, training=training | {"soup_of_seeds": seeds})
