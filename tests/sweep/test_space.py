"""A sweep tries what may be tried, and refuses the rest before the first trial."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.test_study import CONF, LR, make
from thawline.errors import ParameterError
from thawline.sweep.space import active_dimensions, check_space, with_values


def choice(*choices: object) -> dict[str, Any]:
    return {"type": "categorical", "choices": [*choices]}


def test_the_space_of_conf_base_can_be_searched_with_every_strategy() -> None:
    space = yaml.safe_load((CONF / "parameters_sweep.yml").read_text())["sweep"]
    for strategy in ("head_only", "full", "gradual", "auto"):
        check_space(make(space, strategy=strategy))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"trian.lr": LR}, ["trian: unknown", "did you mean 'training'"]),
        ({"training.lrr": LR}, ["training.lrr: unknown", "did you mean 'lr'"]),
        ({"training.lr.x": LR}, ["training.lr.x: unknown"]),
        ({"strategies.full.phases.7.lr": LR}, ["strategies.full.phases.7.lr: unknown"]),
        (
            {"training.momentum": LR | {"high": 1.5}},
            ["training.momentum: Input should be less than 1, given 1.5"],
        ),
        (
            {"training.batch_size": LR | {"low": 8, "high": 64}},
            ["training.batch_size", "valid integer"],
        ),
        ({"training.optimizer": choice("sgd", "adam")}, ["training.optimizer", "given 'adam'"]),
        ({"strategy": choice("full", "lp_tf")}, ["strategy: 'lp_tf'", "did you mean 'lp_ft'"]),
        (
            {"training.lr": LR | {"strategies": ["hed_only"]}},
            ["training.lr: strategies names 'hed_only'", "did you mean 'head_only'"],
        ),
        ({"training.lr": LR | {"strategies": ["full"]}}, ["nothing is tried with", "auto"]),
        (
            {"transforms.size": choice(64, 224), "transforms.resize": choice(128, 72)},
            ["resize must not be smaller than size"],
        ),
        ({"dataset.root": LR}, ["dataset.root: it changes the splits"]),
        ({"seed": LR}, ["seed: it changes the splits"]),
        ({"training.monitor": LR}, ["training.monitor: it is what trials are compared by"]),
        *[
            ({name: choice(True, False)}, [f"{name}: it does not change what a network learns"])
            for name in ("training.resume", "training.wise_ft", "model.trust_code")
        ],
        ({"evaluation.top_k": LR}, ["evaluation.top_k: it does not change what a network learns"]),
    ],
)
def test_what_cannot_be_tried_is_said_before_the_first_trial(
    space: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ParameterError) as caught:
        check_space(make({"space": space}))
    for words in ["sweep.space", *said]:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("dimension", "said"),
    [
        ({"type": "float", "low": 1}, "a float needs low and high"),
        ({"type": "int", "low": 5, "high": 1}, r"low \(5\) must be below high \(1\)"),
        ({"type": "int", "low": 1, "high": 4.5}, "whole numbers"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "low above 0"),
        ({"type": "categorical", "low": 0}, "a categorical needs choices"),
        ({"type": "flaot", "low": 0, "high": 1}, "given 'flaot'"),
        ({"type": "float", "low": 0, "hihg": 1}, "did you mean 'high'"),
    ],
)
def test_a_dimension_that_makes_no_sense_is_refused(dimension: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=rf"(?s)sweep\.space\.training\.lr.*{said}"):
        make({"space": {"training.lr": dimension}})


def test_null_takes_a_parameter_out_of_the_space() -> None:
    parameters = make({"space": {"training.lr": LR, "seed": None}})
    assert [*active_dimensions(parameters)] == ["training.lr"]


@settings(max_examples=30)
@given(
    st.dictionaries(st.sampled_from(["lr", "ema_decay", "label_smoothing"]), st.floats(0.01, 0.9))
)
def test_values_by_dotted_name_change_these_and_nothing_else(values: dict[str, float]) -> None:
    before = make()
    after = with_values(before, {f"training.{n}": v for n, v in values.items()})
    assert after.training == before.training.model_copy(update=values)
    assert after.strategies == before.strategies and after.model == before.model
