"""Parameters are checked as a whole, and every message names the parameter."""

import re

import pytest

from conftest import ROOT
from thawline.errors import ParameterError
from thawline.hooks.configuration import read_configuration
from thawline.options import Options, Parameters, SweepOptions, validate_parameters


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.delenv("THAWLINE_SWEEP_STORAGE", raising=False)
    return read_configuration(ROOT, "base")["parameters"]


def put(tree: dict, name: str, value: object) -> dict:
    *groups, last = name.split(".")
    inner = tree
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[last] = value
    return tree


def test_conf_base_spells_out_every_option_with_its_default(raw: dict) -> None:
    given = validate_parameters(raw)
    space = SweepOptions(space=given.sweep.space)
    assert given == Parameters(strategies=given.strategies, sweep=space)
    assert raw.keys() == Parameters.model_fields.keys()
    groups = {name: value for name, value in given if isinstance(value, Options)}
    assert len(groups) > 12
    for name, value in groups.items():
        assert raw[name].keys() == type(value).model_fields.keys(), name


def test_conf_base_documents_every_parameter() -> None:
    lines = (ROOT / "conf" / "base" / "parameters.yml").read_text("utf-8").splitlines()
    values = [line for line in lines if re.match(r" *\w+: *[^ #]", line)]
    assert len(values) > 80
    assert [line for line in values if " # " not in line] == []


WRONG: list[tuple[str, object, list[str]]] = [
    ("strategy", "nonsense", ["strategy: 'nonsense'", "auto, bias_only, finetune_then_freeze"]),
    ("trian.lr", 3, ["trian: unknown", "did you mean 'training'"]),
    ("training.ephocs", 3, ["training.ephocs: unknown", "did you mean 'epochs'"]),
    ("dataset.fractions.vla", 0.1, ["dataset.fractions.vla: unknown", "did you mean 'val'"]),
    ("training.epochs", -1, ["training.epochs", "greater than or equal to 0", "given -1"]),
    ("training.optimizer", "adam", ["training.optimizer", "'adamw' or 'sgd'", "given 'adam'"]),
    ("dataset.fractions.train", 0.9, ["dataset.fractions", "add up to 1, not 1.2"]),
    ("transforms.min_crop_scale", 1.5, ["transforms.min_crop_scale", "less than or equal to 1"]),
    ("model.min_loaded", 95, ["model.min_loaded", "less than or equal to 1", "given 95"]),
    ("model.head", "builtin", ["model.head: builtin needs a network of your own"]),
    ("model", {"head": "builtin", "backbone": "mine:Net", "head_dropout": 0.2},
     ["model.head_dropout: 0.2 does not apply"]),
    ("predict.batch_size", 0, ["predict.batch_size", "greater than 0", "given 0"]),
    ("registry.nmae", "ants", ["registry.nmae: unknown", "did you mean 'name'"]),
    ("seed", "x", ["seed", "given 'x'"]),
    ("evaluation.bootstrap_samples", 500,
     ["evaluation.bootstrap_samples: removed", "no resampling", "delete"]),
    ("compare.strategies", ["full", "head_onyl"], ["'head_onyl' is not a strategy; did you"]),
    ("compare.num_seeds", 2**32 + 1, ["compare.num_seeds: 4294967297 seeds from 0", "4294967295"]),
    ("model.head", "own", ["model.head: the value own was renamed to builtin"]),
    ("training.accumulate", 4, ["training.accumulate: renamed to training.gradient_acc"]),
    ("explain.images", "", ["explain.images: the list is empty; give image paths or worst"]),
    ("training.schedule", "cosin", ["given 'cosin'; did you mean 'cosine'?"]),
    ("strategies.mine.phases", [{"trainable": [], "epochs": 1, "lr": 0.1}],
     ["strategies.mine.phases.0.trainable", "at least 1"]),
    ("strategies.mine", {"phases": []}, ["strategies.mine.phases", "at least 1"]),
    ("recipe", "strong", ["recipe: removed", "--env=NAME"]),
    ("recipes.mine", {"training.epochs": 1}, ["recipes: removed", "conf/NAME/parameters.yml"]),
    ("strategies.head_only.phases", [{"trainable": "all", "epochs": 1, "lr": 0.1, "lr_decya": 0.5}],
     ["strategies.head_only.phases.0.lr_decya: unknown", "did you mean 'lr_decay'"]),
    ("strategies.mine.phases",
     [{"trainable": {"lora": {"stages": 1, "rnak": 2}}, "epochs": 1, "lr": 0.1}],
     ["lora.stages: Input should be greater than or equal to 2", "did you mean 'rank'"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_a_wrong_parameter_is_named_with_what_is_possible(
    raw: dict, name: str, value: object, said: list[str]
) -> None:
    with pytest.raises(ParameterError) as caught:
        validate_parameters(put(raw, name, value))
    for words in said:
        assert words in str(caught.value)


def test_all_wrong_parameters_are_named_at_once(raw: dict) -> None:
    put(put(raw, "training.lr", 0), "evaluation.top_k", "many")
    with pytest.raises(ParameterError, match=r"(?s)training\.lr.*evaluation\.top_k"):
        validate_parameters(raw)


def test_contradictions_are_named_together_and_beside_impossible_values(raw: dict) -> None:
    put(put(raw, "model.log_probabilities", True), "augmentation.mixup", 0.2)
    put(put(raw, "training.label_smoothing", 0.1), "compare.strategies", ["fulll"])
    smoothing = r"training\.label_smoothing[^\n]*model\.log_probabil"
    contradictions = rf"'fulll'.*{smoothing}.*augmentation\.mixup"
    with pytest.raises(ParameterError, match=rf"(?s){contradictions}"):
        validate_parameters(raw)
    put(raw, "evaluation.top_k", -1)
    with pytest.raises(ParameterError, match=rf"(?s)evaluation\.top_k: .*{contradictions}"):
        validate_parameters(raw)


def test_digits_are_not_mirrored_in_evaluation_either(raw: dict) -> None:
    put(put(raw, "evaluation.tta", "flip"), "transforms.horizontal_flip", 0)
    with pytest.raises(ParameterError, match=r"evaluation\.tta: flip .*horizontal_flip is 0"):
        validate_parameters(raw)
    options = validate_parameters(put(raw, "evaluation.tta", "five_crop")).evaluation
    assert options.tta == "five_crop"


def test_lists_may_be_given_as_words(raw: dict) -> None:
    put(put(raw, "compare.strategies", "full lp_ft"), "explain.images", "a.jpg b.jpg")
    parameters = validate_parameters(raw)
    assert parameters.compare.strategies == ("full", "lp_ft")
    assert parameters.explain.images == ("a.jpg", "b.jpg")


def test_engine_ray_is_short_for_its_name(raw: dict) -> None:
    assert validate_parameters(put(raw, "engine", "ray")).engine.name == "ray"
    with pytest.raises(ParameterError, match=r"engine\.name: .*'raay'; did you mean 'ray'"):
        validate_parameters(put(raw, "engine", "raay"))
