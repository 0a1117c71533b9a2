"""Project settings of Kedro."""

from thawline.hooks import ProjectHook, TrackingHook

HOOKS = (ProjectHook(), TrackingHook())

# TrackingHook is kedro-mlflow's own hook with a few changes; both at once would log twice.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow",)
