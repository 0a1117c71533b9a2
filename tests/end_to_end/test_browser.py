"""A person who opens kedro viz and the MLflow UI after a run finds the run there."""

import json
import sqlite3
from pathlib import Path

import pytest

from conftest import report, run_kedro
from helpers.browser import needs_chromium, served

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NODES = {
    "scan_images", "screen_images", "split_dataset", "choose_strategy", "build_transforms",
    "build_model", "freeze_layers", "train_model", "package_model", "evaluate_model",
}  # fmt: skip

pytestmark = [pytest.mark.xdist_group("finished project"), needs_chromium]


@pytest.mark.slow
def test_kedro_viz_shows_the_nodes_the_numbers_and_the_figures(
    finished_project: Path, page: playwright.Page
) -> None:
    with served(finished_project, "kedro", "viz", "run", "--no-browser") as address:
        page.goto(address)
        page.wait_for_selector(".pipeline-node__text")
        shown = set(page.locator(".pipeline-node__text").all_text_contents())
        assert shown >= NODES
        for figure in ("learning_curves", "confusion_matrix"):
            page.goto(f"{address}/?sn={figure}")
            page.wait_for_selector(".js-plotly-plot")
        page.goto(f"{address}/?sn=misclassified_images")
        page.wait_for_selector("img[src^='data:image']")
        page.goto(f"{address}/?sn=metrics")
        page.wait_for_selector("text=test_macro_f1")


@pytest.mark.slow
def test_kedro_viz_shows_the_steps_alone_in_letters_that_can_be_read(
    finished_project: Path, page: playwright.Page
) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    with served(finished_project, "kedro", "viz", "run", "--no-browser") as address:
        page.goto(f"{address}/?types=nodes")
        names = page.locator(".pipeline-node__text")
        names.first.wait_for()
        page.wait_for_timeout(1500)  # it zooms
        steps = {"split_dataset", "choose_strategy", "train_model", "evaluate_model", "report"}
        shown = set(names.all_text_contents())
        assert steps <= shown and "splits" not in shown and "write_report" not in shown
        for name in names.all():
            box = name.bounding_box()
            assert box and box["height"] >= 8 and 0 < box["y"] < 900  # px


def test_the_report_holds_every_figure_and_needs_no_network(
    finished_project: Path, page: playwright.Page
) -> None:
    (file,) = finished_project.glob("data/08_reporting/finetune_report.html/*/*.html")
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector(".plot .main-svg")
    assert page.locator(".plot .main-svg").count() >= 8
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 7 and all(widths)
    assert not problems and not [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.mark.slow
def test_the_built_site_holds_the_graph_and_its_figures(finished_copy: Path) -> None:
    said = run_kedro(finished_copy, "viz", "build", "--include-previews")
    assert "circular" not in said  # kedro viz drops layers that contradict each other
    api = finished_copy / "build" / "api"
    graph = json.loads((api / "main").read_text())
    ids = {node["name"]: node["id"] for node in graph["nodes"]}
    assert ids.keys() >= NODES
    assert graph["layers"] == [
        "raw", "intermediate", "primary", "model_input", "models", "model_output", "reporting",
    ]  # fmt: skip
    for figure in ("learning_curves", "confusion_matrix"):
        preview = json.loads((api / "nodes" / ids[figure]).read_text())["preview"]
        assert preview["data"] and preview["layout"]["title"]
    previews = {
        name: json.loads((api / "nodes" / ids[name]).read_text())["preview"]
        for name in ("splits", "classifier", "latest_report")
    }
    assert previews["splits"]["columns"] == ["label", "train", "val", "test"]
    assert [row[0] for row in previews["splits"]["data"]] == ["flower", "temple"]
    assert json.loads(previews["classifier"])["class_names"] == ["flower", "temple"]
    assert "test images are classified correctly" in previews["latest_report"]


@pytest.mark.slow
def test_the_mlflow_ui_shows_metrics_curves_and_artifacts(
    finished_project: Path, page: playwright.Page
) -> None:
    database = finished_project / "mlflow.db"
    with sqlite3.connect(database) as connection:
        query = "select run_uuid, experiment_id from runs where name like '% · head%' limit 1"
        run, experiment = connection.execute(query).fetchone()
    store = ("--backend-store-uri", f"sqlite:///{database}", "--workers", "1")
    with served(finished_project, "mlflow", "ui", *store) as address:
        overview = f"{address}/#/experiments/{experiment}/runs/{run}"
        page.goto(overview)
        for text in ("test/accuracy", "val/best_accuracy", "strategies.head_only.phases.0.lr"):
            page.wait_for_selector(f"text={text}")
        loss = report(finished_project, "metrics.json")["test_loss"]
        assert str(loss) in page.locator("body").inner_text()
        page.goto(f"{overview}/model-metrics")
        page.fill("input[placeholder='Search metric charts']", "val/loss")
        page.wait_for_selector(".js-plotly-plot .scatterlayer .trace")
        page.goto(f"{overview}/artifacts")
        for name in ("splits.csv", "freeze_report.csv", "learning_curves.json"):
            page.wait_for_selector(f"text={name}")
