"""No password comes out: not in a text, a log, a tag or the address of a server."""

import io
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kedro.logging import RichHandler
from mlflow.entities import RunTag
from mlflow.utils.credentials import read_mlflow_creds
from rich.console import Console

from conftest import ROOT, empty_tracking_store
from thawline.datasets import ChildRunsDataset
from thawline.tracking.redaction import (
    PASSWORD,
    USERNAME,
    mask,
    mask_logs,
    mask_traceback,
    strip_credentials,
)

SECRET = "pa55word"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("a=postgresql://user:pa55word@host/db,b=1", "a=postgresql://user:***@host/db,b=1"),
        ("postgresql://user:p@pa55word@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:1/pa55word@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:55@host:5432/db", "postgresql://user:***@host:5432/db"),
        ("redis://:pa55word@host/0", "redis://:***@host/0"),
        ("https://pa55word@host/org/repo", "https://***@host/org/repo"),
        ("sqlite:///file:a?uri=true&password=pa55word&x=1", None),
        ("{'password': 'pa55word', 'user': 'me'}", "{'password': '***', 'user': 'me'}"),
        ('{"api_key": "pa55word"}', '{"api_key": "***"}'),
        ("MLFLOW_TRACKING_TOKEN=pa55word", "MLFLOW_TRACKING_TOKEN=***"),
        ("model.backbone_kwargs.hf_token=pa55word,seed=1", None),
        ("http://127.0.0.1:5000/a@b, models:/thawline@champion", None),  # none of these is one
        ("http://host:80,predict.model=models:/thawline@champion", None),
        ("postgresql://user@host/db", None),
        ("class_token: 1 x 768, num_tokens=5, token: None", None),
        ("photos/me@home/1.jpg: not an image", None),
    ],
)
def test_passwords_become_stars_and_all_else_stays(text: str, masked: str | None) -> None:
    assert mask(text) == (masked or text.replace(SECRET, "***"))


WORD = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@given(WORD, st.text(st.characters(codec="ascii", exclude_characters="@ \n"), min_size=1), WORD)
def test_no_password_of_a_url_is_left(user: str, password: str, host: str) -> None:
    secret = f"<{password.strip()}>"
    if not any(c.isspace() for c in secret):
        assert secret not in mask(f"run --params=a=db://{user}:{secret}@{host}/x,b=2")


@pytest.fixture
def masked_logs() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    mask_logs()
    mask_logs()  # a second time changes no output
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("masked_logs")
def test_logs_and_their_tracebacks_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("anyone")
    logger.warning("%s of %d", "http://user:pa55word@host", 3)
    try:
        raise ValueError("no http://user:pa55word@host")
    except ValueError as error:
        logger.exception("failed")
        assert SECRET not in str(mask_traceback(error))
    assert mask_traceback(ValueError("nothing secret")) is None
    logger.warning("plain %s", "text")
    assert SECRET not in caplog.text
    assert "http://user:***@host of 3" in caplog.text and "ValueError" in caplog.text
    assert "plain text" in caplog.text


def test_the_address_of_a_server_has_no_password_but_mlflow_knows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (USERNAME, PASSWORD):
        monkeypatch.setenv(name, "")
    assert strip_credentials("https://me:pa%2F55@host:5000/x") == "https://host:5000/x"
    credentials = read_mlflow_creds()
    assert (credentials.username, credentials.password) == ("me", "pa/55")
    for other in ("sqlite:///mlflow.db", "http://host", "postgresql://u:p@h/d", "http://[::"):
        assert strip_credentials(other) == other
    assert os.environ[USERNAME] == "me"


def test_the_tags_of_a_child_run_are_texts_as_a_server_wants_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{shutil.copy(empty_tracking_store(), tmp_path)}")
    mlflow.set_experiment(experiment_id="0")  # not one that an earlier test has left
    start = mlflow.start_run

    def start_on_server(tags: dict[str, str], **others: Any) -> mlflow.ActiveRun:
        assert [RunTag(*tag).to_proto().value for tag in tags.items()] == ["1"]
        return start(tags=tags, **others)

    with start():
        monkeypatch.setattr(mlflow, "start_run", start_on_server)
        with ChildRunsDataset().load()("trial 1", {}, {"trial": 1}):
            pass


def test_a_log_takes_no_name_of_a_file_for_markup() -> None:
    settings = yaml.safe_load((ROOT / "conf" / "logging.yml").read_text())["handlers"]["rich"]
    del settings["class"], settings["rich_tracebacks"]
    page = io.StringIO()
    handler = RichHandler(**settings, console=Console(file=page, width=200))
    handler.emit(logging.makeLogRecord({"msg": "%s is cut", "args": ("photos/[/b]/[red]1.jpg",)}))
    assert "photos/[/b]/[red]1.jpg is cut" in page.getvalue()
