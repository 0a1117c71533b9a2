"""The documentation builds strictly, says nothing of what does not exist, and needs no network."""

import os
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from conftest import ROOT, run_command
from thawline.cli.main import main
from thawline.hooks.configuration import read_configuration
from thawline.options import validate_parameters
from thawline.pipeline_registry import register_pipelines

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^```(?:bash|console|yaml).*?\n(.*?)^```|`([^`\n]+)`", re.S | re.M)
OWN_STRATEGIES = ("mine",)  # that a page defines as an example


def commands(page: Path, program: str) -> list[list[str]]:
    """Return the words of each command of a program that a page has, without what follows it."""
    blocks = ["".join(match) for match in CODE.findall(page.read_text(encoding="utf-8"))]
    lines = [x for block in blocks for x in re.split(r"\n| && | & ", block.replace("\\\n", ""))]
    texts = [line.strip().removeprefix("$ ") for line in lines]
    return [shlex.split(t, comments=True)[1:] for t in texts if t.startswith(f"{program} ")]


def option(words: list[str], names: str) -> list[str]:
    return [w.partition("=")[2] for w in words if re.fullmatch(f"--({names})", w.partition("=")[0])]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site; a link or heading that does not exist fails."""
    target = tmp_path_factory.mktemp("site")
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={target}")
    run_command(ROOT, *command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return target


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    urls = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(https?:[^\"'> ]+)")
    assert {url for page in pages for url in urls.findall(page.read_text("utf-8"))} == set()


def test_every_public_module_is_in_the_api_reference(site: Path) -> None:
    pages = "".join(page.read_text("utf-8") for page in (site / "api").rglob("*.html"))
    source = ROOT / "src"
    files = [f.relative_to(source).with_suffix("") for f in source.rglob("thawline/**/*.py")]
    modules = {".".join(file.parts).removesuffix(".__init__") for file in files}
    names = {name for name in modules if "._" not in name}
    assert len(names) > 40
    without = {"thawline", "thawline.settings"}  # a version, three constants that Kedro reads
    assert {name for name in names - without if f'id="{name}"' not in pages} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pipelines_and_parameters_that_a_page_names_exist(page: Path) -> None:
    pipelines = register_pipelines()
    for words in commands(page, "kedro run"):
        for name in option(words, "pipelines?"):
            assert name in pipelines, f"{page.name}: {name}"
        for name in option(words, "env"):
            assert name == "best" or (ROOT / "conf" / name).is_dir(), f"{page.name}: {name}"
        for params in option(words, "params"):
            given = ",".join(item for item in params.split(",") if "=" in item)
            tree = read_configuration(ROOT, "hymenoptera", given)["parameters"]
            for name in OWN_STRATEGIES:
                tree["strategies"][name] = tree["strategies"]["full"]
            validate_parameters(tree)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_thawline_commands_that_a_page_names_exist(page: Path) -> None:
    for words in commands(page, "thawline"):
        command = main.get_command(click.Context(main), words[0])
        assert command, f"{page.name}: thawline {words[0]}"
        command.make_context(words[0], words[1:])


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_a_page_outside_the_site_lead_to_files(name: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_architecture_names_functions_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"\? \| `(\w+)` \| `(\w+\.py)` \| `(\w+)` \|", text)
    assert len(rows) == 18
    for folder, file, function in rows:
        source = (ROOT / "src" / "thawline" / folder / file).read_text(encoding="utf-8")
        assert f"def {function}(" in source, f"{folder}/{file}: {function}"
