"""What a sweep may try: check the search space and draw values from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thawline.errors import ParameterError, did_you_mean
from thawline.options import AUTO, TRAINING_GROUPS, Dimension, Parameters, validate_parameters

if TYPE_CHECKING:
    import optuna

WITHOUT_EFFECT = (
    "training.resume", "training.num_workers", "training.device", "training.wise_ft",
    "model.trust_code",
)  # fmt: skip


def check_space(parameters: Parameters) -> Parameters:
    """Return all parameters, if every dimension of `sweep.space` can be searched.

    Raises:
        ParameterError: naming, for every problem at once, the parameter and the reason.
    """
    problems, known = [], [*parameters.strategies, AUTO]
    for name, dimension in active_dimensions(parameters).items():
        if reason := _refusal(name):
            problems.append(f"{name}: {reason}")
        problems += [
            f"{name}: strategies names '{unknown}', which is no strategy"
            f"{did_you_mean(unknown, known)} (possible: {', '.join(known)})"
            for unknown in dimension.strategies
            if unknown not in known
        ]
    for strategy in [] if problems else possible_strategies(parameters):
        problems += _strategy_problems(parameters, strategy)
    if problems:
        lines = "\n".join(f"  {line}" for line in dict.fromkeys(problems))
        raise ParameterError(f"sweep.space cannot be searched:\n{lines}")
    return parameters


def active_dimensions(parameters: Parameters) -> dict[str, Dimension]:
    """Return the dimensions of `sweep.space` by dotted name, without those that are null."""
    return {name: tried for name, tried in parameters.sweep.space.items() if tried is not None}


def possible_strategies(parameters: Parameters) -> list[str]:
    """Return the strategies that trials may have: those that are tried, or the one there is."""
    tried = active_dimensions(parameters).get("strategy")
    return [str(name) for name in tried.choices] if tried else [parameters.strategy]


def suggest(trial: optuna.Trial, parameters: Parameters) -> dict[str, Any]:
    """Draw a trial's values, by dotted name: the strategy first, then what depends on it."""
    tried, strategy = active_dimensions(parameters).get("strategy"), parameters.strategy
    if tried:
        strategy = str(trial.suggest_categorical("strategy", tried.choices))
    values: dict[str, Any] = {}
    for name, dimension in _dimensions_of(parameters, strategy).items():
        bounds: Any = dimension.model_dump(include={"low", "high", "step", "log"})
        if dimension.type == "categorical":
            values[name] = trial.suggest_categorical(name, dimension.choices)
        elif dimension.type == "int":
            values[name] = trial.suggest_int(name, **bounds | {"step": dimension.step or 1})
        else:
            values[name] = trial.suggest_float(name, **bounds)
    return values


def with_values(parameters: Parameters, values: dict[str, Any]) -> Parameters:
    """Return a copy of the parameters with other values, given by dotted name.

    Raises:
        ParameterError: if a name is unknown or a value is refused.
    """
    tree = parameters.model_dump(mode="json", exclude={"sweep"})
    for name, value in values.items():
        _put(tree, name, value)
    return validate_parameters(tree)


def _dimensions_of(parameters: Parameters, strategy: str) -> dict[str, Dimension]:
    """Return the dimensions of trials that have a strategy."""
    return {
        name: dimension
        for name, dimension in active_dimensions(parameters).items()
        if not dimension.strategies or strategy in dimension.strategies
    }


def _strategy_problems(parameters: Parameters, strategy: str) -> list[str]:
    """Return what is refused of samples of the dimensions of a strategy, alone and together."""
    tried = _dimensions_of(parameters, strategy)
    if not tried:
        return [f"nothing is tried with strategy={strategy}"]
    samples = {name: _samples(dimension) for name, dimension in tried.items()}
    combinations: list[dict[str, Any]] = [
        *({name: value} for name, values in samples.items() for value in values),
        *({name: values[end] for name, values in samples.items()} for end in (0, -1)),
    ]
    problems = []
    for values in combinations:
        try:
            with_values(parameters, values | {"strategy": strategy})
        except ParameterError as error:
            problems += [line.strip() for line in str(error).splitlines() if line.startswith("  ")]
    return problems


def _refusal(name: str) -> str:
    """Return why trials must not differ in a parameter, or nothing if they may."""
    group = name.split(".", maxsplit=1)[0]
    if group in ("dataset", "seed"):
        return "it changes the splits, and trials on other images cannot be compared; set it once"
    if name == "training.monitor":
        return "it is what trials are compared by; set it once"
    if name in WITHOUT_EFFECT or group in Parameters.model_fields.keys() - TRAINING_GROUPS:
        return "it does not change what a network learns; set it once"
    return ""


def _samples(dimension: Dimension) -> tuple[Any, ...]:
    """Return all choices, or both ends of an interval and a value between them."""
    low, high = dimension.low, dimension.high
    if low is None or high is None:
        return dimension.choices
    if dimension.type == "int":
        return int(low), int(high)
    return low, low + (dimension.step or 0.37 * (high - low)), high


def _put(tree: Any, name: str, value: Any) -> None:
    """Set a value in nested dicts and lists by its dotted name."""
    *groups, last = name.split(".")
    try:
        for group in groups:
            tree = tree[int(group)] if isinstance(tree, list) else tree.setdefault(group, {})
        tree[int(last) if isinstance(tree, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ParameterError(f"These parameters cannot be used:\n  {name}: unknown") from error
