"""Read the configuration of a project as Kedro does, without a session, a run or a file written."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

from kedro.config import MissingConfigException, OmegaConfigLoader
from kedro.utils import find_kedro_project
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from thawline.errors import ProjectError

# An environment overrides single options; the default would replace a whole group, such as all
# strategies by the one that conf/local adds.
CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "mlflow": "soft"},
    # Kedro itself knows ${oc.env:NAME} in credentials.yml alone.
    "custom_resolvers": {"oc.env": oc.env},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},  # kedro-mlflow's own
}

# What is raised where a configuration cannot be read.
UNREADABLE = (MissingConfigException, OmegaConfBaseException, YAMLError)

# Kedro calls an OmegaConf function by its old name.
warnings.filterwarnings("ignore", "register_new_resolver", module="kedro.config")


def find_project() -> Path:
    """Return the root of the Kedro project that the working directory lies in.

    Where Thawline is installed as a package, it is the working directory, with conf/ in it.

    Raises:
        ProjectError: where there is neither.
    """
    here = Path.cwd()
    if root := find_kedro_project(here):
        return Path(root)
    if not (here / "conf" / CONFIG_LOADER_ARGS["base_env"]).is_dir():
        raise ProjectError(
            f"no Kedro project in {here} or a folder above it. Run this in the folder that"
            " holds Thawline's pyproject.toml and conf/, or below it."
        )
    return here


def read_configuration(
    project: Path,
    env: str | None = None,
    params: str | dict[str, Any] = "",
    source: str | None = None,
) -> OmegaConfigLoader:
    """Return what conf/ says: a mapping with `parameters`, `catalog` and `mlflow`, read when asked.

    `env` (None: that of KEDRO_ENV, or local), `params` (a tree, or NAME=VALUE separated by commas)
    and `source` (None: conf/ of the project) are those of `kedro run`.
    """
    given: Any = params
    if isinstance(params, str):
        items = [item.strip() for item in params.split(",") if item.strip()]
        given = OmegaConf.to_container(OmegaConf.from_dotlist(items))
    register_project_path(project)
    source, env = source or str(project / "conf"), env or os.environ.get("KEDRO_ENV")
    return OmegaConfigLoader(source, env, runtime_params=given, **CONFIG_LOADER_ARGS)


def register_project_path(project: Path) -> None:
    """Make ``${project_path:}`` in configuration files stand for the root of the project."""
    root = project.as_posix()
    OmegaConf.register_resolver("project_path", lambda: root, replace=True)


def show_all_logs() -> None:
    """Print everything that the log file of a run holds."""
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.DEBUG)
    kedro = logging.getLogger("kedro")
    kedro.propagate, kedro.handlers = True, []
