"""Project settings of Kedro."""

import atexit
import gc

from thawline.hooks.catalog import RunCatalog
from thawline.hooks.configuration import CONFIG_LOADER_ARGS
from thawline.hooks.parameters import ParametersHook
from thawline.hooks.tracking import TrackingHook
from thawline.hooks.versions import VersionsHook

__all__ = ["CONFIG_LOADER_ARGS", "DATA_CATALOG_CLASS", "DISABLE_HOOKS_FOR_PLUGINS", "HOOKS"]

HOOKS = (ParametersHook(), VersionsHook(), TrackingHook())
DATA_CATALOG_CLASS = RunCatalog
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow",)  # TrackingHook takes the place of its hook

# Imports make many objects and no garbage: looking for some takes a second before the first node,
# and another one when the process ends.
gc.set_threshold(10_000, 50, 50)
atexit.register(gc.freeze)
