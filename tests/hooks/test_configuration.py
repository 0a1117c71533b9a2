"""What holds a password comes from conf/local or from the environment."""

from pathlib import Path

import pytest
from omegaconf.errors import InterpolationResolutionError

from thawline.hooks.configuration import read_configuration
from thawline.options import validate_parameters

SERVER, DATABASE = "https://mlflow.example.org", "postgresql://me:pa55word@host/sweeps"


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "THAWLINE_SWEEP_STORAGE"):
        monkeypatch.delenv(name, raising=False)


def read(project: Path) -> tuple[str, str | None]:
    """Return where runs and trials go."""
    configuration = read_configuration(project)
    storage = validate_parameters(configuration["parameters"]).sweep.storage
    uri = configuration["mlflow"]["server"]["mlflow_tracking_uri"]
    return uri, storage.get_secret_value() if storage else None


def test_runs_and_trials_are_in_the_project_unless_the_environment_or_conf_local_names_a_place(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(project) == (f"sqlite:///{project}/mlflow.db", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setenv("THAWLINE_SWEEP_STORAGE", DATABASE)
    assert read(project) == (SERVER, DATABASE)
    local = project / "conf" / "local"
    (local / "mlflow.yml").write_text("server: { mlflow_tracking_uri: http://other }")
    (local / "parameters.yml").write_text("sweep: { storage: '${oc.env:OWN_NAME}' }")
    monkeypatch.setenv("OWN_NAME", "sqlite:///own.db")
    assert read(project) == ("http://other", "sqlite:///own.db")
    monkeypatch.delenv("OWN_NAME")
    with pytest.raises(InterpolationResolutionError, match=r"(?s)OWN_NAME.*sweep\.storage"):
        read(project)
