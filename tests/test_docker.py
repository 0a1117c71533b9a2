"""What docker-compose.yml says can be read, although no containers run where the tests do."""

import re

import yaml

from conftest import ROOT

COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES = yaml.safe_load(COMPOSE)["services"]


def test_all_that_differs_between_teams_is_in_the_pattern_of_env() -> None:
    pattern = (ROOT / ".env.example").read_text(encoding="utf-8")
    offered = set(re.findall(r"^#?([A-Z]\w*)=", pattern, re.M))
    assert set(re.findall(r"\$\{(\w+)", COMPOSE)) == offered
    assert re.search(r"^POSTGRES_PASSWORD=$", pattern, re.M)
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_every_service_says_when_it_is_well_and_what_it_waits_for() -> None:
    assert {*SERVICES} == {"postgres", "mlflow", "ray-head", "ray-worker"}
    for service in SERVICES.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        for name, wanted in service.get("depends_on", {}).items():
            assert name in SERVICES and wanted == {"condition": "service_healthy"}


def test_files_and_volumes_that_services_use_exist() -> None:
    volumes = yaml.safe_load(COMPOSE)["volumes"]
    for service in SERVICES.values():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in volumes or source == "${IMAGES" or (ROOT / source).is_file(), source
    recipe = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY --chown=\w+ (.+) \S+$", recipe, re.M)
    assert copied and all((ROOT / name).exists() for line in copied for name in line.split())
