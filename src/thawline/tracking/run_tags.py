"""Tags that tell how a run came about: command, commit, device, versions."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from thawline.tracking.redaction import mask

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


def command_line() -> str:
    """Return the command line as typed, without the path of the command and passwords."""
    path = Path(sys.argv[0])
    packaged = path.parts[-2:] == ("thawline", "__main__.py")
    name = "python -m thawline" if packaged else "thawline" if path.stem == "thawline" else "kedro"
    return mask(" ".join([name, *sys.argv[1:]]))


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
