"""A served model is tried on a page, and refuses what it should not read."""

import base64
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from fastapi.testclient import TestClient
from PIL import Image

from conftest import latest
from helpers.browser import PHONE, needs_chromium, serious_problems, served, wait_until
from thawline.serving.mlflow_model import SERVING
from thawline.serving.server import make_app

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

MANY = 200  # requests at a time

pytestmark = [pytest.mark.xdist_group("finished project"), needs_chromium]


@pytest.fixture(scope="module")
def address(finished_project: Path) -> Iterator[str]:
    with served(finished_project, "thawline", "serve") as address:
        yield address


@pytest.fixture
def opened(address: str, page: playwright.Page) -> Iterator[playwright.Page]:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(address)
    yield page
    assert not problems


def test_a_photograph_is_answered_with_what_speaks_for_it(
    opened: playwright.Page, photos: Path
) -> None:
    opened.set_input_files("#files", photos / "flower/01.jpg")
    opened.wait_for_selector("#details:not([hidden])")
    assert " %" in opened.inner_text("#answer")
    assert opened.locator("#classes tr").count() == 2
    wait_until(opened, "document.querySelector('#attribution').width === 64")
    captions = opened.locator("#nearest figcaption").all_inner_texts()
    assert len(captions) == 3 and {*captions} <= {"flower", "temple"}


def test_a_training_image_is_most_similar_to_itself(
    address: str, finished_project: Path, photos: Path
) -> None:
    splits = pd.read_csv(latest(finished_project, "05_model_input/splits.csv"))
    row = splits[splits["split"] == "train"].iloc[0]
    content = (photos / row["path"]).read_bytes()
    found = requests.post(f"{address}/explain", content, timeout=60).json()
    assert found["nearest"][0] == [row["label"], found["view"]]


def test_many_photographs_are_a_table_that_can_be_saved(
    opened: playwright.Page, photos: Path
) -> None:
    opened.set_input_files("#files", sorted((photos / "flower").iterdir())[:3])
    opened.wait_for_selector("text=3 images")
    with opened.expect_download() as waiting:
        opened.click("#save")
    lines = Path(waiting.value.path()).read_text().splitlines()
    assert len(lines) == 4 and lines[0] == '"path","label","probability","problem"'


def test_a_file_that_is_no_image_is_named_a_problem(
    opened: playwright.Page, tmp_path: Path
) -> None:
    file = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    file.write_text("no image")
    opened.set_input_files("#files", file)
    opened.wait_for_selector("#problem:has-text('cannot be read')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_in_its_width(
    opened: playwright.Page, photos: Path, scheme: str
) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size(PHONE)
    opened.set_input_files("#files", photos / "flower/01.jpg")
    opened.wait_for_selector("#details:not([hidden])")
    assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert serious_problems(opened) == []
    opened.emulate_media(color_scheme="light")


def test_requests_at_the_same_time_are_all_answered(address: str, photos: Path) -> None:
    content = base64.b64encode((photos / "temple/00.jpg").read_bytes()).decode()
    body = {"dataframe_split": {"columns": [0], "data": [[content]]}}

    def ask(_: int) -> str:
        answer = requests.post(f"{address}/invocations", json=body, timeout=60)
        return str(answer.json()["predictions"][0]["label"])

    with ThreadPoolExecutor(MANY) as pool:
        assert len(set(pool.map(ask, range(MANY)))) == 1


def test_what_should_not_be_read_is_refused(address: str) -> None:
    bomb = BytesIO()
    Image.fromarray(np.zeros((10_000, 20_000), np.uint8)).save(bomb, "png")
    answer = requests.post(f"{address}/explain", data=bomb.getvalue(), timeout=60)
    assert answer.status_code == 400 and "200000000 pixels" in answer.json()["error"]
    for text in ("/etc/passwd", "http://127.0.0.1/x.jpg"):
        body = {"dataframe_split": {"columns": [0], "data": [[text]]}}
        answer = requests.post(f"{address}/invocations", json=body, timeout=60)
        assert answer.status_code == 400


def test_a_gigabyte_is_refused_before_it_is_sent(address: str) -> None:
    place = urlsplit(address)
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {10**9}\r\n\r\n"
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_any_other_address_needs_a_token(
    finished_project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVING, "true")  # MLflow's server sets it, for all later tests
    mlflow.set_tracking_uri(f"sqlite:///{finished_project}/mlflow.db")
    (model,) = mlflow.MlflowClient().search_registered_models()
    client = TestClient(make_app(f"models:/{model.name}/1", "the page", token="secret"))
    content = (photos / "flower/01.jpg").read_bytes()
    assert client.get("/").status_code == 401
    assert client.post("/explain", content=content).status_code == 401
    assert client.get("/?token=secret").text == "the page"
    headers = {"Authorization": "Bearer secret"}
    assert client.post("/explain", content=content, headers=headers).json()["classes"]
