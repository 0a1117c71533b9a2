"""Check what a run needs, change nothing, and say what to fix."""

import logging
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement

from thawline.errors import ThawlineError

SHOWN = ("torch", "torchvision", "timm", "kedro", "kedro-mlflow", "kedro-viz", "mlflow")


class Advice(Exception):
    """A run works, but something should be known."""


class CheckResult(NamedTuple):
    """What a check found, and unless ok what to do."""

    name: str  # of what was checked
    state: Literal["ok", "warning", "problem"]
    message: str


def run_check(name: str, check: Callable[..., str], *arguments: Any) -> CheckResult:
    """Return what a check found or raised."""
    try:
        return CheckResult(name, "ok", check(*arguments))
    except Advice as advice:
        return CheckResult(name, "warning", str(advice))
    except (ThawlineError, OSError) as error:
        return CheckResult(name, "problem", str(error))


def examine(env: str | None = None, params: str = "") -> Iterator[CheckResult]:
    """Run all checks, in the order in which to fix problems; the options are `kedro run`'s."""
    versions = run_check("versions", check_versions)
    yield versions
    if versions.state == "problem":
        return
    yield run_check("extra onnx", check_extra)
    logging.disable(logging.INFO)  # imported, Kedro tells where its logging is configured
    from thawline.cli.doctor_checks import examine_project

    logging.disable(logging.NOTSET)
    yield from examine_project(env, params)


def check_versions() -> str:
    """Return the versions of Python and of the main packages, if all fit together."""
    if problems := _unmet("thawline") or _unmet("torchvision"):
        raise ThawlineError("\n".join([*problems, "The rest was not checked."]))
    shown = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    return f"Python {platform.python_version()}, {shown}"


def check_extra() -> str:
    """Return whether the packages of `kedro run --pipeline=export` are installed."""
    if problems := _unmet("thawline", "onnx"):
        names = ", ".join(problem.partition(":")[0] for problem in problems)
        return f"without {names}; pip install 'thawline[onnx]' if you want --pipeline=export"
    return "installed"


def _unmet(package: str, extra: str = "") -> list[str]:
    """Return the requirements of a package, or of its extra, that are not met."""
    problems = []
    for needed in map(Requirement, requires(package) or []):
        if needed.marker and not needed.marker.evaluate({"extra": extra}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            found = "nothing"
        if found == "nothing" or not needed.specifier.contains(found, prereleases=True):
            repair = f'pip install "{needed.name}{needed.specifier}"'
            problems.append(f"{needed.name}: {found} is here, {package} needs another: {repair}")
    return problems
