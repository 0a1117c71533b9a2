"""Project settings of Kedro."""

from thawline.hooks import ProjectHook, TrackingHook

HOOKS = (ProjectHook(), TrackingHook())

# TrackingHook is kedro-mlflow's own hook with a few changes; both at once would log twice.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow",)

# An environment overrides single options; the default would replace a whole group, such as all
# strategies by the one that conf/local adds.
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "mlflow": "soft"},
}
