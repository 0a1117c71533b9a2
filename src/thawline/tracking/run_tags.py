"""Tags that tell how a run came about: command, commit, device, versions."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from thawline.options import AUTO, FINE_TUNE, PROBE, Parameters, flatten
from thawline.tracking.redaction import mask

OWN_GROUPS = {  # of the pipelines of that name
    "compare", "drift", "explain", "export", "lr_find", "predict", "review", "sweep",
}  # fmt: skip
PACKAGES = ("thawline", "torch", "torchvision", "timm", "kedro", "mlflow")


def describe_run(run_params: dict[str, Any]) -> dict[str, str]:
    """Return the tags of a run: what is set of Kedro's `run_params`, and how it came about."""
    given = {name: mask(str(value)) for name, value in run_params.items() if value}
    return given | {
        "kedro_command": command_line(),
        "runner": run_params["runner"].split()[0].rpartition(".")[2],
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        **_commit(Path(run_params["project_path"])),
    }


def name_run(parameters: Parameters, pipelines: Collection[str], trains: bool) -> str:
    """Return the name of a run: data, strategy and backbone, or what else it does."""
    data = PurePath(parameters.dataset.root.replace(":", "/")).name
    if not trains:
        return f"{data} · {'+'.join(pipelines)}"
    backbone = parameters.model.backbone.rpartition("/")[2].removeprefix("tf_")
    return f"{data} · {parameters.strategy} · {backbone}"


def own_parameters(parameters: Parameters, pipelines: Collection[str]) -> dict[str, str]:
    """Return what a run depends on, as texts by dotted name, masked.

    Left out are null, of other pipelines their own groups, and the strategies that are not asked
    for; of these, what is not the default of a phase.
    """
    others = {"strategies", *(OWN_GROUPS - {*pipelines})}
    tree = parameters.model_dump(mode="json", exclude=others, exclude_none=True)
    asked = {PROBE, FINE_TUNE} if parameters.strategy == AUTO else {parameters.strategy}
    asked |= {*parameters.compare.strategies} if "compare" in pipelines else set()
    tree["strategies"] = {
        name: parameters.strategies[name].model_dump(mode="json", exclude_defaults=True)
        for name in sorted(asked & parameters.strategies.keys())
    }
    values = ((name, value) for name, value in flatten(tree) if value not in (None, {}, []))
    return {n: mask(f"{n}={value}").removeprefix(f"{n}=") for n, value in values}


def command_line() -> str:
    """Return the command line as typed, without the path of the command and passwords."""
    path = Path(sys.argv[0])
    packaged = path.parts[-2:] == ("thawline", "__main__.py")
    name = "python -m thawline" if packaged else "thawline" if path.stem == "thawline" else "kedro"
    return mask(f"{name} {shlex.join(sys.argv[1:])}".rstrip())


def describe_device(wanted: str) -> str:
    """Return the device that `training.device` stands for on this machine."""
    import torch

    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if wanted in ("auto", "mps") and torch.backends.mps.is_available():
        return "mps"
    return f"cpu ({platform.processor() or platform.machine()})"


def _commit(project: Path) -> dict[str, str]:
    """Return the commit and whether files differ from it; nothing outside a repository."""
    command = ["git", "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no repository
        return {}
    commit, *others = done.stdout.splitlines()
    is_dirty = any(not line.startswith("#") for line in others)
    return {"git_commit": commit.removeprefix("# branch.oid "), "git_dirty": str(is_dirty)}
