"""Close a run with its answer, and keep all that it has logged in a file."""

import logging
import time
from pathlib import Path
from typing import Any

import mlflow
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.utils import find_kedro_project
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from thawline.reports.answer import FILES, TEXTS, Rows, answer

FOLDER = "data/logs"
LOGGERS = (None, "kedro")  # the latter hands no lines on: they would fill the console
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NOTE = "mlflow.note.content"  # the tag of a run's description
FIRST_PORT = "http://127.0.0.1:5000"  # of `kedro mlflow ui`
STEPS = "http://127.0.0.1:4141/?types=nodes"  # of `kedro viz run`, without the data between them


class AnswerHook:
    """Prints what a run came to, and where to look; its log is data/logs/VERSION.log."""

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any]) -> None:
        """Begin the log."""
        self._start = time.perf_counter()
        self._file = Path(run_params["project_path"], FOLDER, f"{run_params['run_id']}.log")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._handler = logging.FileHandler(self._file, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter(FORMAT))
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self._handler)

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Print the answer, and log the log."""
        saved = pipeline.all_outputs()
        texts = {name: catalog.load(name) for name in TEXTS if name in saved}
        files = {name: _path(catalog, name) for name in FILES if name in saved}
        rows = answer(texts, files)
        if run := mlflow.active_run():
            command = "kedro mlflow ui"
            if find_kedro_project(Path(run_params["project_path"])):
                rows.append(("Pipeline", f"kedro viz run, then {STEPS}"))
            else:
                command = f"mlflow ui --backend-store-uri {mlflow.get_tracking_uri()}"
            runs = f"{FIRST_PORT}/#/experiments/{run.info.experiment_id}/runs"
            rows.append(("All runs", f"{command}, then {runs}"))
            mlflow.set_tag(NOTE, "\n".join(f"- **{name}**: {text}" for name, text in rows))
            mlflow.log_metric("time/run_seconds", time.perf_counter() - self._start)
        if rows:
            Console().print(_panel(" ".join(run_params["pipeline_names"] or ["finetune"]), rows))
        self._close()

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Close the log; where MLflow has just failed, it is not asked again."""
        self._close(is_logged=not isinstance(error, mlflow.MlflowException))

    def _close(self, is_logged: bool = True) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self._handler)
        self._handler.close()
        if is_logged and mlflow.active_run():
            mlflow.log_artifact(str(self._file))


def _path(catalog: DataCatalog, name: str) -> str:
    """Return where an entry was saved, as short as possible."""
    config = catalog.config_resolver.resolve_pattern(name)
    path = Path(config["filepath"])
    if config.get("versioned"):
        path = path / str(catalog[name].resolve_load_version()) / path.name  # type: ignore[attr-defined]
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _panel(title: str, rows: Rows) -> Panel:
    """Return rows in a frame."""
    grid = Table.grid(padding=(0, 2))
    for name, text in rows:
        grid.add_row(Text(name, style="bold"), Text(text))
    return Panel(grid, title=title, title_align="left", expand=False)
