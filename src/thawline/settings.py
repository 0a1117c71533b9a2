"""Project settings of Kedro."""

from thawline.hooks.configuration import CONFIG_LOADER_ARGS
from thawline.hooks.hooks import AtomicSaveHook, ProjectHook, TrackingHook

__all__ = ["CONFIG_LOADER_ARGS", "DISABLE_HOOKS_FOR_PLUGINS", "HOOKS"]

HOOKS = (ProjectHook(), AtomicSaveHook(), TrackingHook())

# TrackingHook is kedro-mlflow's own hook with a few changes; both at once would log twice.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow",)
