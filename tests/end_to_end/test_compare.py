"""`kedro run --pipeline=compare` trains strategies side by side and says which one to take."""

import re
import signal
import time
from pathlib import Path

import pytest

from conftest import QUICK, latest, log, report, run_kedro, run_notebook, start_kedro, tracked
from thawline.evaluation.weight_averages import ALPHAS
from thawline.networks.classifier import load_classifier

pytestmark = pytest.mark.xdist_group("compared project")
STRATEGIES = ("head_only", "lp_ft")
TRAININGS = {(strategy, seed) for strategy in STRATEGIES for seed in ("0", "1")}


class Compared:
    """A project in which two strategies have been compared over two seeds, and what was found."""

    def __init__(self, project: Path, photos: Path) -> None:
        self.project = project
        self.params = f"dataset.root={photos},{QUICK},training.epochs=1,training.wise_ft=true"
        two = "compare.strategies=head_only lp_ft,compare.num_seeds=2"
        said = run_kedro(project, "run", "--pipeline=compare", f"--params={self.params},{two}")
        self.log = re.sub(r"[\s│]+", " ", said + log(project))
        self.client, runs = tracked(f"sqlite:///{project}/mlflow.db")
        (self.parent,) = (run for run in runs if run.info.run_name.endswith(" · compare"))
        self.children = [run for run in runs if run is not self.parent]
        self.answer = report(project, "comparison.json")
        self.table = report(project, "comparison_table.csv").set_index("strategy")
        self.trainings = report(project, "comparison_trainings.csv")
        self.page = report(project, "comparison_report.html")
        self.classifiers = latest(project, "06_models/comparison_classifiers")


@pytest.fixture(scope="module")
def compared(module_project: Path, photos: Path) -> Compared:
    return Compared(module_project, photos)


def test_every_training_has_a_run_below_that_of_the_comparison(compared: Compared) -> None:
    tags = [run.data.tags for run in compared.children]
    assert {(tag["strategy"], tag["seed"]) for tag in tags} == TRAININGS
    assert {tag["mlflow.parentRunId"] for tag in tags} == {compared.parent.info.run_id}
    assert {tag["backbone"] for tag in tags} == {"timm/tf_efficientnet_lite0"}
    assert {run.info.status for run in [*compared.children, compared.parent]} == {"FINISHED"}
    for run in compared.children:
        assert run.data.params["strategy"] == run.data.tags["strategy"]
        assert run.data.params["seed"] == run.data.tags["seed"]
        assert run.data.tags["strategy_reason"] == "named by the parameter strategy"
        assert {"val/loss", "test/accuracy", "val/best_accuracy"} <= set(run.data.metrics)
        points = compared.client.get_metric_history(run.info.run_id, "val/loss")
        epochs = 2 if run.data.tags["strategy"] == "lp_ft" else 1
        assert [point.step for point in points] == [*range(1, epochs + 1)]
    assert "test/accuracy" not in compared.parent.data.metrics


def test_what_is_frozen_is_computed_once_for_all_of_them(compared: Compared) -> None:
    counts = re.findall(r"Phase 1: (\d+) activations were read, (\d+) computed", compared.log)
    # lp_ft fits its head to evaluation views of the 28 training images; the first batch of a phase
    # that takes steps is read once more, to time some.
    assert sorted(counts) == [("28", "34"), ("34", "0"), ("6", "28"), ("62", "0")]


def test_the_answer_is_in_the_console_as_json_as_a_table_and_as_a_page(compared: Compared) -> None:
    verdict = compared.answer["verdict"]
    assert {verdict["best"], verdict["next"]} == {"head_only", "lp_ft"}
    assert re.sub(r"\s+", " ", verdict["sentence"]) in compared.log
    strategies = compared.table[~compared.table.index.str.endswith(".soup")]
    assert sorted(strategies.index) == ["head_only", "lp_ft"]
    for strategy, accuracy in strategies["test_accuracy"].items():
        runs = [run for run in compared.children if run.data.tags["strategy"] == strategy]
        mean = sum(run.data.metrics["test/accuracy"] for run in runs) / 2
        assert accuracy == pytest.approx(mean)
    assert verdict["best"] in compared.page and "dataset.seed=0" in compared.page
    artifacts = {a.path for a in compared.client.list_artifacts(compared.parent.info.run_id)}
    assert {"comparison.json", "comparison_table.csv", "comparison_report.html"} <= artifacts


def test_finetune_repeats_a_training_of_the_comparison_exactly(compared: Compared) -> None:
    one = f"{compared.params},strategy=head_only,seed=1,dataset.seed=0"
    run_kedro(compared.project, "run", "--to-nodes=evaluate_model", f"--params={one}")
    again = report(compared.project, "metrics.json")
    chosen = compared.trainings.query("strategy == 'head_only' and seed == 1")
    (before,) = chosen.to_dict("records")
    assert again == {name: before[name] for name in again}
    names = {f"{strategy}.seed_{seed}" for strategy, seed in TRAININGS}
    assert {folder.name for folder in compared.classifiers.glob("*.seed_*")} == names


def test_a_soup_is_a_row_and_a_classifier_of_its_own_and_in_no_statistics(
    compared: Compared,
) -> None:
    table, trainings, answer = compared.table, compared.trainings, compared.answer
    folders = [*compared.classifiers.glob("*.soup")]
    assert {folder.name for folder in folders} == {n for n in table.index if n.endswith(".soup")}
    assert folders and not trainings["strategy"].str.endswith(".soup").any()
    assert not {answer["verdict"]["best"], answer["verdict"]["recommended"]} - {*STRATEGIES}
    assert [pair["strategy"] for pair in answer["pairs"]] == [answer["verdict"]["next"]]
    for folder in folders:
        row, strategy = table.loc[folder.name], folder.name.removesuffix(".soup")
        assert folder.name in compared.page.replace("<wbr>", "") and row["seeds"] == 2
        own = trainings[trainings["strategy"] == strategy]
        assert row["seconds"] == pytest.approx(own["seconds"].sum())
        assert sorted(load_classifier(folder).training["soup_of_seeds"]) == [0, 1]


def test_wise_ft_says_how_it_averaged_or_that_it_has_no_effect(compared: Compared) -> None:
    for run in compared.children:
        alpha = run.data.metrics.get("wise_ft_alpha")
        name = f"{run.data.tags['strategy']}.seed_{run.data.tags['seed']}"
        classifier = load_classifier(compared.classifiers / name)
        assert classifier.training.get("wise_ft_alpha") == alpha
        assert (alpha in ALPHAS) == (run.data.tags["strategy"] == "lp_ft")
    assert compared.log.count("training.wise_ft has no effect") == 2 * 2  # console and file


@pytest.mark.slow
def test_a_classifier_of_a_comparison_is_registered_by_a_run_that_trains_nothing(
    compared: Compared,
) -> None:
    (soup, *_) = compared.classifiers.glob("*.soup")
    weights = f"model.weights={soup}/model.safetensors,strategy=head_only"
    options = f"--params={compared.params},{weights},training.epochs=0"
    run_kedro(compared.project, "run", "--pipeline=finetune", options)
    result = report(compared.project, "registration.json")
    assert result["registered_version"] == result["champion_version"] == "1"
    metrics = report(compared.project, "metrics.json")
    for name in ("test_accuracy", "test_loss"):
        assert metrics[name] == pytest.approx(compared.table.loc[soup.name, name], rel=1e-5)
    saved = load_classifier(latest(compared.project, "06_models/classifier"))
    assert saved.seen == load_classifier(soup).seen
    run_kedro(compared.project, "run", "--pipeline=export", f"--params=export.model={soup}")


@pytest.mark.slow
def test_the_notebook_asks_further_questions(compared: Compared) -> None:
    run_notebook("02_compare_strategies", compared.project)


@pytest.mark.slow
def test_a_terminated_comparison_is_marked_as_killed_with_its_trainings(
    project: Path, photos: Path
) -> None:
    options = f"dataset.root={photos},{QUICK},training.epochs=500,compare.strategies=head_only"
    process = start_kedro(project, "run", "--pipeline=compare", f"--params={options}")
    states = project / "data" / "06_models" / "training_checkpoints"
    while not list(states.glob("*.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = "".join(process.communicate(timeout=60))
    assert process.returncode == 128 + signal.SIGTERM
    assert "training.resume=true" in said and "Traceback" not in said
    _, runs = tracked(f"sqlite:///{project}/mlflow.db")
    assert [run.info.status for run in runs] == ["KILLED", "KILLED"]
    assert list(states.glob("*.pt"))
