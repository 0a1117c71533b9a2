"""What the constraints files pin is what pyproject.toml allows, and what that names is there."""

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from conftest import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, MUTMUT = SETTINGS["project"], SETTINGS["tool"]["mutmut"]


def required(*extras: str) -> dict[str, Requirement]:
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    found = [Requirement(text) for text in texts]
    return {canonicalize_name(one.name): one for one in found if one.name != PROJECT["name"]}


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in pairs}


def test_the_lowest_constraints_are_the_bounds_of_pyproject() -> None:
    lowest = pinned("constraints-lowest.txt")
    bounds = {
        name: Version(spec.version)
        for name, requirement in required("onnx", "postgres").items()
        for spec in requirement.specifier
        if spec.operator in (">=", "~=")
    }
    assert {name: Version(version) for name, version in lowest.items()} == bounds


def test_the_newest_constraints_fit_and_name_every_direct_dependency() -> None:
    newest = pinned("constraints.txt")
    for name, requirement in required("docs", "onnx", "postgres", "ray", "test", "dev").items():
        assert requirement.specifier.contains(newest[name]), name


def test_modules_and_tests_that_mutants_are_made_of_exist() -> None:
    selection = MUTMUT["pytest_add_cli_args_test_selection"]
    named = [*MUTMUT["only_mutate"], *(text.removeprefix("--deselect=") for text in selection)]
    assert len(named) > 9
    for text in named:
        path, _, test = text.partition("::")
        files = [*ROOT.glob(path)]
        assert files, text
        if test:
            assert f"def {test.partition('[')[0]}" in files[0].read_text("utf-8"), text
