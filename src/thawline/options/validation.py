"""Validate the parameters of a run and describe every problem in the user's words."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from thawline.errors import ParameterError, alternatives, did_you_mean
from thawline.options.parameters import Parameters

RENAMED = {
    "augmentation.views": "augmentation.views_per_image",
    "compare.seeds": "compare.num_seeds",
    "dataset.allow_outside": "dataset.allow_external_paths",
    "lr_find.high": "lr_find.end_lr",
    "lr_find.low": "lr_find.start_lr",
    "model.arguments": "model.backbone_kwargs",
    "model.keep_head_rows": "model.reuse_head",
    "screening.contradictions": "screening.conflicting_labels",
    "sweep.minutes": "sweep.timeout_minutes",
    "training.accumulate": "training.gradient_accumulation_steps",
    "training.ema": "training.ema_decay",
    "training.warmup": "training.warmup_ratio",
    "training.workers": "training.num_workers",
    "transforms.crop_scale": "transforms.min_crop_scale",
}
REMOVED_FROM_AUTO = "removed: auto compares on the validation split; delete this parameter"
REMOVED_RECIPES = (
    "removed: its values were no better than the defaults; put those that you want into"
    " conf/NAME/parameters.yml and run with --env=NAME"
)
REMOVED = {  # by dotted name: why, and what to do
    "auto.by": REMOVED_FROM_AUTO,
    "auto.large": REMOVED_FROM_AUTO,
    "auto.probe_accuracy": REMOVED_FROM_AUTO,
    "auto.small": REMOVED_FROM_AUTO,
    "evaluation.bootstrap_samples": "removed: the accuracy's confidence interval needs no"
    " resampling; delete this parameter",
    "recipe": REMOVED_RECIPES,
    "recipes": REMOVED_RECIPES,
    "tracking": "removed: MLflow itself retries; delete tracking.on_failure, and repeat a run that"
    " an outage has ended with training.resume=true",
}


def validate_parameters(raw: Mapping[str, Any]) -> Parameters:
    """Return all parameters, validated.

    Raises:
        ParameterError: naming every wrong parameter, what was given and what is possible.
    """
    try:
        return Parameters.model_validate(raw)
    except ValidationError as error:
        problems = error.errors()
        invalid = {problem["loc"][0] for problem in problems if problem["loc"]}
        if invalid and "strategies" not in invalid:
            try:  # pydantic checks no group against another if one is invalid
                Parameters.model_validate({k: v for k, v in raw.items() if k not in invalid})
            except ValidationError as across_groups:
                problems += across_groups.errors()
        lines = ["These parameters cannot be used:", *map(_describe, problems)]
        raise ParameterError("\n  ".join(lines)) from error


def _describe(problem: Any) -> str:
    """Return one line about an error of pydantic's: the parameter, what is wrong, what to do."""
    location, kind = problem["loc"], problem["type"]
    name = ".".join(map(str, location))
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        unknown = f"unknown{alternatives(str(location[-1]), _known_names(location[:-1]))}"
        renamed = f"renamed to {RENAMED[name]}" if name in RENAMED else ""
        return f"{name}: {renamed or REMOVED.get(name, unknown)}"
    if not location:  # a check across groups names its parameter itself
        return message
    if kind == "value_error":  # a check across a group may begin with the field's name
        return f"{name}.{message}" if re.match(r"\w+: ", message) else f"{name}: {message}"
    near = ""
    if kind == "literal_error":
        allowed = re.findall("'(.*?)'", problem["ctx"]["expected"])
        near = did_you_mean(str(problem["input"]), allowed)
    return f"{name}: {message}, given {problem['input']!r}{near}"


def _known_names(location: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the group at a location of pydantic's."""
    group: Any = Parameters
    for part in location:
        if hasattr(group, "model_fields"):  # else, the part is the member of a union
            group = group.model_fields[part].annotation if part in group.model_fields else group
        else:  # a member of a union by its name, or the values of a dict or tuple: the last type
            members = [a for a in get_args(group)[::-1] if a is not ...]
            group = next(
                (a for a in members if str(part) in str(a)), members[0] if members else None
            )
    members = [a for a in (group, *get_args(group)) if hasattr(a, "model_fields")]
    return list(members[0].model_fields) if members else []  # of X | None, those of X
