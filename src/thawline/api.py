"""Run pipelines from Python, in a project or in any folder.

from thawline import finetune

model = finetune("photos", strategy="auto")
model.predict("x.jpg")
model.report()
"""

import os
import webbrowser
from collections.abc import Mapping
from importlib.metadata import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from thawline.errors import ParameterError, ProjectError

if TYPE_CHECKING:
    import pandas as pd

    from thawline.networks.classifier import Classifier
    from thawline.options import Parameters as Options

REPORT = Path("data", "08_reporting", "latest.html")
CLASSIFIERS = Path("data", "06_models", "classifier")
CORRECTIONS = "dataset.corrections"
PATHS_FROM_HERE = ("dataset.root", CORRECTIONS)  # relative to the working directory
Parameters = Mapping[str, Any]  # values by dotted name


class Place(NamedTuple):
    """Where a command reads its configuration and writes its results."""

    project: Path
    configuration: Path

    @property
    def is_project(self) -> bool:
        """Whether it is a Kedro project, in which `kedro run` does the same."""
        return self.configuration.is_relative_to(self.project)

    @property
    def env(self) -> str | None:
        """The environment where none is given: None is local, which only a project has."""
        return None if self.is_project else "base"


def find_place() -> Place:
    """Return the project around the working directory, else its folder of results."""
    from thawline.data.sources import RESULTS
    from thawline.hooks.configuration import find_project

    try:
        project = find_project()
        return Place(project, project / "conf")
    except ProjectError:
        return Place(Path.cwd() / RESULTS, packaged_configuration())


def read_place(place: Place, env: str | None = None, params: Any = "") -> Mapping[str, Any]:
    """Return the configuration of a place, as `read_configuration` does."""
    from thawline.hooks.configuration import read_configuration

    source = str(place.configuration)
    return read_configuration(place.project, env or place.env, params, source)


def log_as_configured() -> None:
    """Tell Kedro, before it is imported, how to log where it finds no conf/logging.yml."""
    if not Path("conf", "logging.yml").is_file():
        os.environ.setdefault("KEDRO_LOGGING_CONFIG", str(packaged_configuration() / "logging.yml"))


def packaged_configuration() -> Path:
    """Return the folder conf of the package's repository, or else the one installed with it."""
    own = Path(__file__).parents[2] / "conf"
    if own.is_dir():
        return own
    (settings,) = [file for file in files("thawline") or [] if file.name == "logging.yml"]
    return Path(str(settings.locate())).parent.resolve()


def run_pipeline(
    pipeline: str, parameters: Parameters, env: str | None = None, verbose: bool = False
) -> tuple[str, "Options"]:
    """Run a pipeline where `find_place` says; return the version that it saved, and its options.

    Raises:
        ThawlineError: if parameters, data or weights cannot be used.
    """
    log_as_configured()
    place = find_place()
    place.project.mkdir(exist_ok=True)
    os.environ.setdefault("KEDRO_DISABLE_TELEMETRY", "1")
    from omegaconf import OmegaConf

    from thawline.hooks.configuration import show_all_logs
    from thawline.options import validate_parameters

    if verbose:
        show_all_logs()
    tree: Any = OmegaConf.create({})
    for name, value in parameters.items():
        OmegaConf.update(tree, name, _from_here(name, value, place.project))
    given: Any = OmegaConf.to_container(tree)
    source, env = str(place.configuration), env or place.env
    try:
        raw = read_place(place, env, given)["parameters"]
    except TypeError as error:  # OmegaConf merges no list into a group
        lists = [n for n, value in parameters.items() if isinstance(value, list | tuple | dict)]
        raise ParameterError(
            f"{', '.join(lists) or 'conf/'}: a list cannot replace a group of parameters, nor a"
            " group a list. Set each parameter of a group, such as dataset.fractions.train=0.8."
        ) from error
    options = validate_parameters(raw)
    # Now that a wrong parameter has been told.
    from kedro.framework.project import configure_project
    from kedro.framework.session import KedroSession

    configure_project("thawline")
    session: Any = KedroSession.create(
        place.project, env=env, runtime_params=given, conf_source=source
    )
    with session:
        session.run(pipeline_names=[pipeline])
    return str(session.session_id), options


def _from_here(name: str, value: Any, project: Path) -> Any:
    """Return a value; a path as absolute, unless a configuration would find it in the project."""
    if name not in PATHS_FROM_HERE or not value or not isinstance(value, str | Path):
        return value
    path = Path(value).expanduser()
    is_missing = name == CORRECTIONS and not (project / path).exists()
    return str(path.resolve() if path.exists() or is_missing else value)


class Model:
    """A classifier that a run has saved."""

    def __init__(self, project: Path, version: str, options: "Options") -> None:
        """Take the folder of results, and the version of the classifier in it with its options."""
        self._options = options
        self.folder = project / CLASSIFIERS / version / CLASSIFIERS.name
        self._report = project / REPORT

    @property
    def classifier(self) -> "Classifier":
        """Network, class names and preprocessing."""
        from thawline.networks.classifier import load_classifier

        return load_classifier(self.folder, self._options.model)

    def predict(self, path: str | Path, top_k: int = 1) -> "pd.DataFrame":
        """Return label and probability of an image file, or of each one in a folder.

        The columns are those of `evaluation.predictions.predict_files`.

        Raises:
            DataError: if there is no such file or folder.
        """
        from thawline.data.sources import find_files
        from thawline.evaluation.predictions import predict_files

        paths, options = find_files(str(path), Path.cwd()), self._options
        size = options.evaluation.batch_size
        return predict_files(self.classifier, paths, size, top_k, options.training)

    def report(self) -> Path:
        """Open the report of the last run in a browser, and return its path."""
        webbrowser.open(self._report.as_uri())
        return self._report


def finetune(
    data: str | Path | None = None,
    *,
    strategy: str | None = None,
    backbone: str | None = None,
    parameters: Parameters | None = None,
) -> Model:
    """Fine-tune a classifier on `dataset.root`, with other parameters by their dotted names.

    What is None is as the configuration says.

    Raises:
        ThawlineError: if parameters, data or weights cannot be used.
    """
    given = name_parameters(data, strategy, backbone) | dict(parameters or {})
    return Model(find_place().project, *run_pipeline("finetune", given))


def name_parameters(
    data: str | Path | None, strategy: str | None = None, backbone: str | None = None
) -> dict[str, Any]:
    """Return parameters by name; without data, a folder that is no project is the data itself."""
    from thawline.data.packaged_datasets import LIBRARIES

    if data is None and not find_place().is_project:
        data = Path.cwd()
    if data is not None and str(data).partition(":")[0] not in LIBRARIES:
        data = Path(data).expanduser().resolve()
    given = {"dataset.root": data, "strategy": strategy, "model.backbone": backbone}
    return {name: str(value) for name, value in given.items() if value is not None}
