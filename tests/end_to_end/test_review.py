"""A person looks through the images on a page, by mouse, keyboard or finger, and corrects them."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import QUICK, copy_project, run_kedro
from helpers.browser import PHONE, needs_chromium, serious_problems, served, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [pytest.mark.xdist_group("review"), needs_chromium]


@pytest.fixture(scope="module")
def reviewed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with a review of photographs, of which two have each other's label."""
    folder = tmp_path_factory.mktemp("review")
    data = Path(shutil.copytree(photos, folder / "photos"))
    (data / "flower" / "07.jpg").rename(data / "temple" / "wrong.jpg")
    new = folder / "new"
    new.mkdir()
    for idx in (3, 4):
        (data / "temple" / f"0{idx}.jpg").rename(new / f"{idx}.jpg")
    project = copy_project(folder / "project")
    common = f"dataset.root={data},seed=3,{QUICK}"  # by which the wrong label is found
    run_kedro(project, "run", "--pipeline=finetune", f"--params={common}")
    run_kedro(project, "run", "--pipeline=review", f"--params={common},review.unlabeled={new}")
    return project


@pytest.fixture
def opened(reviewed: Path, page: playwright.Page) -> Iterator[playwright.Page]:
    """Return the page from the file system, as if for the first time."""
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((reviewed / "data/08_reporting/review.html").as_uri())
    page.evaluate("localStorage.clear()")
    page.reload()
    page.wait_for_selector("#list li")
    yield page
    assert not problems
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def corrections(page: playwright.Page) -> list[dict[str, str]]:
    """Return what the page saves."""
    with page.expect_download() as waiting:
        page.click("#save")
    with Path(waiting.value.path()).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_probable_label_errors_are_accepted_by_one_click(opened: playwright.Page) -> None:
    wrong = opened.locator("button[aria-label^='wrong.jpg']")
    assert opened.locator("#list li", has_text="temple").filter(has=wrong).count() == 1
    opened.click("#accept-all")
    rows = {row["path"]: row for row in corrections(opened)}
    row = rows["temple/wrong.jpg"]
    assert (row["action"], row["label"]) == ("relabel", "flower") and len(row["sha256"]) == 64
    opened.reload()  # what was decided is kept
    assert "relabeled" in opened.inner_text("#summary")
    assert {row["path"] for row in corrections(opened)} == rows.keys()


def test_an_image_is_shown_large_with_its_neighbors_and_dropped(opened: playwright.Page) -> None:
    opened.locator("#list .pick").first.click()
    wait_until(opened, "document.querySelector('#image img.large').naturalWidth > 100")
    assert opened.locator("#image button .thumb").count() >= 1
    opened.click("#image button[aria-label^='Drop']")
    assert [row["action"] for row in corrections(opened)] == ["drop"]
    opened.click("#undo")
    assert corrections(opened) == []


def test_the_keyboard_alone_is_enough(opened: playwright.Page) -> None:
    opened.locator("#tabs button", has_text="Least certain").click()
    for key in ("ArrowRight", "d", "f", "1", "u"):
        opened.keyboard.press(key)
    assert [row["action"] for row in corrections(opened)] == ["drop", "fine"]


def test_is_fine_keeps_a_label_that_was_corrected_and_is_nothing_to_an_unlabeled_image(
    opened: playwright.Page,
) -> None:
    opened.click("#accept-all")
    before = corrections(opened)
    opened.locator("#list .pick").first.click()
    opened.keyboard.press("f")
    opened.locator("#tabs button", has_text="Label these next").click()
    opened.locator("#list .pick").first.click()
    wait_until(opened, "document.querySelector('#image img.large').naturalWidth > 100")
    opened.keyboard.press("f")
    assert corrections(opened) == before


def test_several_images_found_by_their_names_are_relabeled_together(
    opened: playwright.Page,
) -> None:
    opened.fill("#search", "flower/0")
    opened.keyboard.press("Enter")
    count = opened.locator("#list li").count()
    opened.select_option("#together select", "temple")
    assert count >= 8 and {row["label"] for row in corrections(opened)} == {"temple"}
    opened.click("#undo")
    assert corrections(opened) == []


def test_the_map_is_zoomed_and_moved_and_a_lasso_selects_on_it(opened: playwright.Page) -> None:
    for color in ("prediction", "split", "correct", "confidence", "label"):
        opened.select_option("#color", color)
    assert opened.inner_text("#legend").split() == ["flower", "temple", "unlabeled"]
    box = opened.locator("#map").bounding_box()
    assert box
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = opened.evaluate("({...view})")
    opened.mouse.move(*middle)
    opened.mouse.wheel(0, -300)
    opened.mouse.down()
    opened.mouse.move(middle[0] + 50, middle[1] + 20, steps=5)
    opened.mouse.up()
    after = opened.evaluate("({...view})")
    assert after["size"] < before["size"] and after["x"] != before["x"]
    opened.click("#whole")
    opened.click("#lasso")
    corners = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0.02)]
    width, height = box["width"] - 2, box["height"] - 2
    places = [(box["x"] + 1 + x * width, box["y"] + 1 + y * height) for x, y in corners]
    opened.mouse.move(*places[0])
    opened.mouse.down()
    for place in places[1:]:
        opened.mouse.move(*place, steps=5)
    opened.mouse.up()
    assert opened.inner_text("#list-title") == "Selection"
    assert opened.locator("#list li").count() == 40


def test_an_image_on_the_map_is_shown_by_a_click(opened: playwright.Page) -> None:
    place = opened.evaluate(
        "(() => { const { scale, left, top } = projection();"
        " return [(images.x[7] - left) * scale, (images.y[7] - top) * scale]; })()"
    )
    opened.locator("#map").click(position={"x": place[0], "y": place[1]})
    assert opened.evaluate("images.path[7]") in opened.inner_text("#image")


def test_what_is_to_be_labeled_next_is_added_with_its_label(opened: playwright.Page) -> None:
    opened.locator("#tabs button", has_text="Label these next").click()
    assert opened.locator("#list li").count() == 2
    opened.click("#accept-all")
    assert {row["action"] for row in corrections(opened)} == {"add"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_in_its_width(opened: playwright.Page, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size(PHONE)
    opened.locator("#list .pick").first.click()
    assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert serious_problems(opened) == []
    opened.emulate_media(color_scheme="light")


@pytest.mark.slow
def test_a_served_page_writes_the_file_itself(reviewed: Path, page: playwright.Page) -> None:
    command = ("thawline", "review", "--serve", "--set", "transforms.size=64")
    file = reviewed / "corrections.csv"
    with served(reviewed, *command) as address:
        page.goto(address)
        page.wait_for_selector("#list li")
        page.locator("#list .pick").first.click()
        wait_until(page, "document.querySelector('#image img.large').naturalWidth > 100")
        page.click("#image button[aria-label^='Drop']")
        page.wait_for_timeout(500)
        assert ",drop," in file.read_text()
        file.write_text("path,action\nx.jpg,fly\n")  # by hand, and wrong
        page.reload()
        wait_until(page, "document.querySelector('#summary').textContent.includes(\"'fly'\")")
        page.locator("#list .pick").first.click()
        page.click("#image button[aria-label^='Drop']")
        wait_until(page, "document.querySelector('#summary').textContent.includes('not be saved')")
    assert file.read_text() == "path,action\nx.jpg,fly\n"
