"""MLflow's server is looked for before a run begins, and its password is hidden."""

import os
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

from helpers.servers import free_port
from thawline.errors import TrackingError
from thawline.tracking import connection

SERVER = "https://mlflow.example.org"


@pytest.mark.parametrize(
    ("uri", "location", "expected"),
    [
        (SERVER, "mlartifacts", None),
        (SERVER, "s3://bucket/runs", "s3://bucket/runs"),
        (SERVER, "/mnt/runs", "/mnt/runs"),
        ("sqlite:///mlflow.db", "mlartifacts", "mlartifacts"),
    ],
)
def test_a_server_keeps_files_at_its_own_place_unless_they_have_one_that_all_can_reach(
    uri: str, location: str, expected: str | None
) -> None:
    experiment = {"create_experiment_kwargs": {"artifact_location": location}}
    settings = {"server": {"mlflow_tracking_uri": uri}, "tracking": {"experiment": experiment}}
    config = connection.read_settings(settings)
    assert config.tracking.experiment.create_experiment_kwargs.artifact_location == expected


@pytest.fixture
def failing_server() -> Iterator[str]:
    """Return the address of a server that fails, with status 200 for those whom it knows."""
    known = {f"Basic {b64encode(b'me:pa55word').decode()}", "Bearer 123"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] in known:
                self.send_response(200)
                self.end_headers()
            else:
                self.send_error(503)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_fails_or_does_not_answer_is_named_without_its_password(
    failing_server: str,
) -> None:
    assert connection.find_server_problem(failing_server).endswith("answers with status 503")
    problem = connection.find_server_problem(f"http://me:pa55word@127.0.0.1:{free_port()}")
    assert "127.0.0.1" in problem and "does not answer" in problem and "pa55word" not in problem
    assert connection.find_server_problem("sqlite:///mlflow.db") == ""


@pytest.mark.parametrize(
    "known", [{"USERNAME": "me", "PASSWORD": "pa55word"}, {"TOKEN": "123"}, {"USERNAME": "you"}]
)
def test_a_proxy_is_asked_with_the_password_or_token_that_mlflow_has(
    failing_server: str, known: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in known.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    assert bool(connection.find_server_problem(failing_server)) == (known == {"USERNAME": "you"})


def test_a_deleted_experiment_beside_the_main_one_is_restored(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    client.create_experiment("main")
    beside = connection.find_experiment("main", ["predict"])
    client.delete_experiment(beside)
    assert connection.find_experiment("main", ["predict"]) == beside
    assert client.get_experiment(beside).lifecycle_stage == "active"


def test_without_a_server_nothing_begins() -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    settings = {"mlflow": {"server": {"mlflow_tracking_uri": uri}}}
    with pytest.raises(TrackingError, match=rf"{uri} does not answer .*mlflow_tracking_uri"):
        connection.connect(SimpleNamespace(config_loader=settings))


def test_mlflow_retries_by_default() -> None:
    assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 5  # MLflow's own is 7, for minutes


@pytest.mark.parametrize("before", [None, "5"])
def test_a_variable_of_the_environment_is_what_it_was(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THAWLINE_TEST", raising=False)
    if before:
        monkeypatch.setenv("THAWLINE_TEST", before)
    with connection.restore("THAWLINE_TEST"):
        os.environ["THAWLINE_TEST"] = "0"
    assert os.environ.get("THAWLINE_TEST") == before
