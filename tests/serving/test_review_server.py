"""The server of a review shows the images of its page and keeps corrections, and nothing else."""

from pathlib import Path

import pandas as pd
import pytest
from fastapi.testclient import TestClient

from thawline.data.corrections import COLUMNS
from thawline.reports.review import review_page
from thawline.serving.review_server import make_app

LINES = "path,action,label,sha256\nflower/00.jpg,relabel,temple,\n"


@pytest.fixture
def client(photos: Path, tmp_path: Path) -> TestClient:
    """Return a client of the server of a page of three images."""
    paths = [str(photos / f"flower/0{idx}.jpg") for idx in range(3)]
    columns = {"label": "flower", "split": "train", "prediction": "flower", "confidence": 1.0}
    images = pd.DataFrame({"path": paths, **columns, "margin": 1.0, "x": 0.5, "y": 0.5})
    images = images.assign(nearest="1 2", rank=0)
    images.attrs["root"] = str(photos)
    names = ["flower", "temple"]
    page = tmp_path / "review.html"
    empty = pd.DataFrame(columns=COLUMNS)
    page.write_text(review_page(images, [], {}, empty, tmp_path, names), "utf-8")
    return TestClient(make_app(page, tmp_path / "corrections.csv"), base_url="http://127.0.0.1")


def test_an_image_of_the_page_is_read_from_its_file(client: TestClient, photos: Path) -> None:
    answer = client.get("/images/1")
    assert answer.content == (photos / "flower/01.jpg").read_bytes()
    assert answer.headers["content-type"] == "image/jpeg"
    assert "Review of " in client.get("/").text


@pytest.mark.parametrize("path", ["images/3", "images/-1", "images/..%2F..%2Fsecret", "etc/passwd"])
def test_no_other_file_is_shown(client: TestClient, path: str) -> None:
    assert client.get(f"/{path}").status_code in (404, 422)


def test_corrections_are_written_and_read_again(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/corrections").json() == []
    assert client.put("/corrections", content=LINES).status_code == 204
    assert (tmp_path / "corrections.csv").read_text() == LINES
    (row,) = client.get("/corrections").json()
    assert row["path"] == "flower/00.jpg" and row["label"] == "temple"


def test_what_is_no_table_of_corrections_replaces_none(client: TestClient, tmp_path: Path) -> None:
    client.put("/corrections", content=LINES)
    answer = client.put("/corrections", content="path,action\nflower/00.jpg,explode\n")
    assert answer.status_code == 422 and "'explode'" in answer.json()["detail"]
    assert (tmp_path / "corrections.csv").read_text() == LINES


def test_a_page_of_another_site_cannot_reach_it(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
