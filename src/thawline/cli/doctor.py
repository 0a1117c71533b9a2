"""Check what a run needs, change nothing, and say what to fix."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from thawline.cli import doctor_checks as checks
from thawline.errors import ThawlineError


class CheckResult(NamedTuple):
    """What a check found, and unless ok what to do."""

    name: str  # of what was checked
    state: Literal["ok", "warning", "problem"]
    message: str


def run_check(name: str, check: Callable[..., str], *arguments: Any) -> CheckResult:
    """Return what a check found or raised."""
    try:
        return CheckResult(name, "ok", check(*arguments))
    except checks.Advice as advice:
        return CheckResult(name, "warning", str(advice))
    except (ThawlineError, OSError) as error:
        return CheckResult(name, "problem", str(error))


def examine(env: str | None = None, params: str = "") -> Iterator[CheckResult]:
    """Run all checks, in the order in which to fix problems; the options are `kedro run`'s."""
    versions = run_check("versions", checks.check_versions)
    yield versions
    if versions.state == "problem":
        return
    yield run_check("extra onnx", checks.check_extra)
    from kedro.config import MissingConfigException
    from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from thawline.hooks.configuration import find_project, read_configuration
    from thawline.options import TrainingOptions, validate_parameters

    unreadable = (OSError, ValueError, MissingConfigException, OmegaConfBaseException, YAMLError)
    try:
        project = find_project()
        configuration = read_configuration(project, env, params)
        options = validate_parameters(configuration["parameters"])
        mlflow = KedroMlflowConfig.model_validate(configuration["mlflow"])
        catalog = configuration["catalog"]
        images, store = (project / catalog[n]["filepath"] for n in ("raw_images", "activations"))
    except unreadable as error:
        yield run_check("device", checks.check_device, TrainingOptions())
        yield CheckResult("configuration", "problem", str(error))
        return
    yield CheckResult("configuration", "ok", f"{project / 'conf'}, environment {env or 'local'}")
    uri, experiment = mlflow.server.mlflow_tracking_uri or "mlruns", mlflow.tracking.experiment.name
    planned: list[tuple[Any, ...]] = [
        ("device", checks.check_device, options.training),
        ("memory", checks.check_memory),
        ("shared memory", checks.check_shared_memory, options.training, options.transforms.size),
        ("weights", checks.check_weights, options.model),
        ("data", checks.check_data, options.dataset, options.data_seed, project, images),
        ("activations", checks.check_activations, store, options.activations.max_gb),
        ("tracking", checks.check_tracking, uri, experiment),
        ("disk", checks.check_disk, project),
    ]
    results = (run_check(*check) for check in planned)
    yield from (result for result in results if result.message)
