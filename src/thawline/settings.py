"""Project settings of Kedro."""

import atexit
import gc
import os
import sys

from thawline.hooks.answer import AnswerHook
from thawline.hooks.catalog import RunCatalog
from thawline.hooks.configuration import CONFIG_LOADER_ARGS
from thawline.hooks.parameters import ParametersHook
from thawline.hooks.tracking import TrackingHook
from thawline.hooks.versions import VersionsHook

__all__ = ["CONFIG_LOADER_ARGS", "DATA_CATALOG_CLASS", "DISABLE_HOOKS_FOR_PLUGINS", "HOOKS"]

HOOKS = (ParametersHook(), VersionsHook(), TrackingHook(), AnswerHook())
DATA_CATALOG_CLASS = RunCatalog
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow",)  # TrackingHook takes the place of its hook

gc.set_threshold(10_000, 50, 50)  # imports make many objects and no garbage


@atexit.register
def _leave_objects_to_the_system() -> None:
    """Spare two seconds in which Python frees each one; Triton would print what is left of it."""
    gc.freeze()
    if "triton" in sys.modules:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
