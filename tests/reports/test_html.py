"""The report opens from the file system, looks right at any size, and trusts no name."""

import base64
import gzip
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
from kedro.io import CatalogConfigResolver
from PIL import Image
from plotly.offline import get_plotlyjs

from conftest import ROOT
from helpers.browser import CHROMIUM, wait_until
from helpers.trials import make_trials
from thawline.evaluation.comparison import compare
from thawline.evaluation.metrics import count_confusion
from thawline.hooks.configuration import read_configuration
from thawline.options import CompareOptions, validate_parameters
from thawline.reports.comparison import comparison_sections
from thawline.reports.figures.data import class_balance
from thawline.reports.figures.evaluation import confusion_matrix
from thawline.reports.finetune import PARTS, finetune_sections
from thawline.reports.html import Section, html_report, kedro_command

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

EVIL = "<script>window.broken = 1</script>"
IMAGE = "<img src=x onerror='window.broken = 1'>"
LINK = '"><a href="javascript:window.broken=1">bees</a><b>bold'
CLASSES = ("ants", "</script><script>window.broken = 1</script>", "bees" * 10, IMAGE, LINK)
NAMES = {
    "head_only": 0.9,
    "freeze_to_layer3": 0.89,
    "full": 0.91,
    f"mine_{EVIL}": 0.7,
    "a_long_name_of_a_strategy_with_many_phases": 0.85,
}
FIGURES = [name for part in PARTS for name in part.figures]
PHASE = {"trainable": {"last": 1}, "epochs": 1, "lr": 0.1}
FACTS = {
    "Data": f"photos/{IMAGE}/{LINK}.csv {EVIL}",
    "Classes": ", ".join(CLASSES),
    "Backbone": "resnet18",
    "Date": "2026-11-21",
}


class Outline(HTMLParser):
    """Collect tags with their attributes, and the data of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def page() -> str:
    trials = make_trials(NAMES, images=200, classes=CLASSES)
    comparison = compare(trials)
    sections = comparison_sections(trials, comparison)
    return html_report("Comparison of strategies", FACTS, comparison.verdict["sentence"], sections)


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def test_the_page_is_one_file_with_plotly_in_it_once(page: str) -> None:
    outline = Outline(page)
    links = [a.get("href", a.get("src")) for _, a in outline.tags if a.keys() & {"src", "href"}]
    assert links and all(link.startswith("#section-") for link in links)  # nothing is loaded
    (code,) = [s for s in outline.scripts if not s.lstrip().startswith(("{", '"use strict"'))]
    assert gzip.decompress(base64.b64decode(code)).decode() == get_plotlyjs()
    assert outline.count("figure") == 2 + len(NAMES)
    assert outline.count("script") == outline.count("figure") + 2  # plotly.js, and what draws


def test_names_are_text_wherever_they_stand(page: str) -> None:
    own = page.replace(max(Outline(page).scripts, key=len), "")  # plotly.js
    assert not [name for name in (EVIL, IMAGE, LINK, CLASSES[1]) if name in own]
    assert not {name for name, _ in Outline(own).tags} & {"img", "b"}
    assert "&lt;script&gt;window.broken" in own
    for script in Outline(page).scripts[:-2]:
        assert json.loads(script)["data"]
        assert "<" not in script


def test_the_page_is_marked_up_for_readers_of_all_kinds(page: str) -> None:
    outline = Outline(page)
    assert ("html", {"lang": "en"}) in outline.tags
    assert 'content="width=device-width, initial-scale=1"' in page
    assert outline.count("h1") == 1
    assert re.findall(r"<h2[^>]*>([^<]*)", page) == [
        "Strategies", "Accuracy and cost", "Learning curves", "Confusion matrices", "Significance",
        "Reproduce", "What the words mean",
    ]  # fmt: skip
    assert {a["scope"] for tag, a in outline.tags if tag == "th"} == {"col", "row"}
    plots = [a for tag, a in outline.tags if a.get("class") == "plot"]
    assert all(a["role"] == "img" and a["aria-label"] for a in plots)
    assert outline.count("details") == len(NAMES)


def test_the_same_arguments_give_the_same_page() -> None:
    trials = make_trials({"full": 0.9}, seeds=1)
    sections = [comparison_sections(trials, compare(trials)) for _ in range(2)]
    assert len({html_report("t", {}, "v", own) for own in sections}) == 1


def test_a_row_is_repeated_by_its_command() -> None:
    full = kedro_command({"strategy": "full", "training.lr": "0.1", "views": "None"})
    assert full == "kedro run --pipeline=finetune --params=strategy=full,training.lr=0.1,views=null"
    quoted = kedro_command({"dataset.root": "my photos; rm *"})
    assert quoted == "kedro run --pipeline=finetune '--params=dataset.root=my photos; rm *'"
    trial = make_trials({"full": 0.9}, seeds=1)
    trial.settings[0]["transforms.mean"] = "[0.5, 0.5, 0.5]"
    recipe = comparison_sections(trial, compare(trial))[-2].recipes[0]
    assert recipe.commands.endswith(" # first put transforms.mean into conf/local/parameters.yml")


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [
        (360, 740, "dark"),
        (1280, 900, "light"),
        pytest.param(360, 740, "light", marks=pytest.mark.slow),
        pytest.param(1280, 900, "dark", marks=pytest.mark.slow),
    ],
)
def test_the_page_is_whole_from_the_file_system_at_any_size_and_scheme(
    page: str, browser: playwright.Browser, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    viewport = {"width": width, "height": height}
    tab = browser.new_page(viewport=viewport, color_scheme=scheme, has_touch=width < 500)
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(file.as_uri())
    wait_until(tab, "document.querySelectorAll('.plot .main-svg').length > 0")
    for plot in tab.locator(".plot").all():
        box = plot.locator(".main-svg").first.bounding_box()
        assert box and box["height"] > 100 and 200 < box["width"] <= width
        assert plot.locator(".trace, .heatmaplayer image").count()
    assert asked == [file.as_uri()]
    assert said == []
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("window.broken") is None
    fill = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    color = tab.evaluate(fill)
    assert tab.evaluate("getComputedStyle(document.body).color") == color
    tab.emulate_media(color_scheme="light" if scheme == "dark" else "dark")
    wait_until(tab, f"{fill} !== '{color}'")
    tab.close()


def test_the_button_copies_the_command(
    page: str, browser: playwright.Browser, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    tab = browser.new_page()
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto(file.as_uri())
    details = tab.locator("details").first
    details.locator("summary").click()
    details.locator("button").click()
    details.locator("button", has_text="Copied").wait_for(timeout=5000)
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied == details.locator("code").inner_text()
    assert copied.count("kedro run --pipeline=finetune") == 3
    tab.close()


@pytest.mark.slow
def test_names_are_text_in_what_is_drawn_and_in_what_a_pointer_shows(
    browser: playwright.Browser, tmp_path: Path
) -> None:
    rows = [(f"{name}/{LINK}.jpg", name, "train") for name in CLASSES]
    balance = class_balance(pd.DataFrame(rows, columns=["path", "label", "split"]))
    trials = make_trials({"full": 0.9}, seeds=1, images=200, classes=CLASSES)
    counts = confusion_matrix(count_confusion(trials.predictions))
    sections = [Section(IMAGE, LINK, illustrations={IMAGE: balance, "Counts": counts})]
    for name, text in (
        ("report.html", html_report(LINK, {}, IMAGE, sections)),
        ("balance.html", balance.to_html(include_plotlyjs=True)),  # as MLflow keeps it
        ("confusion.html", counts.to_html(include_plotlyjs=True)),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        tab = browser.new_page(viewport={"width": 1000, "height": 1600})
        asked: list[str] = []
        tab.on("request", lambda request, asked=asked: asked.append(request.url))
        tab.goto((tmp_path / name).as_uri())
        tab.wait_for_selector(".main-svg .ytick text, .main-svg .xtick text")
        for plot in tab.locator(".nsewdrag").all():
            box = plot.bounding_box()
            assert box
            seen = set()
            for idx in range(len(CLASSES)):  # along the diagonal
                share = (idx + 0.5) / len(CLASSES)
                tab.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] * share)
                tab.wait_for_timeout(120)
                seen |= set(tab.locator(".hovertext").all_text_contents())
            assert any("<img" in text for text in seen), seen
            assert any('"><a' in text for text in seen), seen
            assert tab.locator(".main-svg a, .main-svg img, .hoverlayer a").count() == 0
        assert tab.evaluate("window.broken") is None
        assert asked == [(tmp_path / name).as_uri()]
        tab.close()


def test_any_sections_make_a_page(browser: playwright.Browser, tmp_path: Path) -> None:
    sections = [
        Section("Only text", "Nothing else."),
        Section("A table", table=pd.DataFrame({"name": ["a"], "value": ["1"]})),
        Section("A figure", illustrations={"A line": go.Figure(go.Scatter(y=[1, 2]))}),
        Section("A picture", illustrations={"Red": Image.new("RGB", (300, 40), "red")}),
    ]
    file = tmp_path / "report.html"
    file.write_text(html_report("Title", {}, "Verdict.", sections), encoding="utf-8")
    tab = browser.new_page()
    tab.goto(file.as_uri())
    assert tab.locator("h2").all_inner_texts() == ["Only text", "A table", "A figure", "A picture"]
    tab.wait_for_selector(".plot .scatterlayer .trace")
    assert tab.evaluate("document.querySelector('img').naturalWidth") == 300
    tab.close()


def test_the_report_on_a_training_leaves_out_what_is_empty_and_says_how_to_repeat_it() -> None:
    shown: dict[str, go.Figure | Image.Image | pd.DataFrame] = {
        name: go.Figure(go.Scatter(y=[1]), layout={"title": {"text": f"Drawn {name}"}})
        for name in FIGURES
    }
    tables = {name: pd.DataFrame({"a": [1]}) for part in PARTS for name in part.tables}
    shown |= tables | {"outliers": pd.DataFrame({"a": []})}
    shown |= {"candidates_figure": go.Figure(), "misclassified_images": Image.new("RGB", (9, 9))}
    strategies = {name: {"phases": [PHASE]} for name in ("mine", *CompareOptions().strategies)}
    parameters = validate_parameters({"seed": 3, "strategy": "mine", "strategies": strategies})
    *sections, repeat, words = finetune_sections(parameters, shown)
    captions = [caption for section in sections for caption in section.illustrations]
    assert sum(caption.startswith("Drawn ") for caption in captions) == len(FIGURES) - 2
    assert captions.count("Misclassified images.") == 1
    assert {name for section in sections for name in section.tables} == tables.keys() - {"outliers"}
    (recipe,) = repeat.recipes
    assert {"ECE", "Thaw line", "Loss, nats"} <= words.terms.keys()
    assert recipe.commands == "kedro run --pipeline=finetune --params=seed=3,strategy=mine"
    assert kedro_command({}) == "kedro run --pipeline=finetune"


def test_the_tables_of_a_page_are_saved_from_it_without_a_network() -> None:
    table = pd.DataFrame({"path": ["ants/é.jpg"], "label": ["a,b"]})
    page = html_report("Report", FACTS, "Done.", [Section("Errors", tables={"errors": table})])
    (link,) = [a for tag, a in Outline(page).tags if tag == "a" and a.get("download")]
    assert link["download"] == "errors.csv"
    kind, _, content = link["href"].partition(",")
    assert kind == "data:text/csv;base64"
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(base64.b64decode(content))), table)


def test_every_figure_of_the_report_is_an_entry_that_kedro_viz_and_mlflow_show() -> None:
    catalog = read_configuration(ROOT, "base")["catalog"]
    patterns = CatalogConfigResolver(catalog)
    for name in FIGURES:
        entry = catalog.get(name) or patterns.resolve_pattern(name)
        assert entry["type"] in {"plotly.JSONDataset", "thawline.datasets.PictureDataset"}
        assert entry["metadata"]["mlflow"] == ["artifact"]
