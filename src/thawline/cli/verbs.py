"""The commands of `thawline` that run pipelines, and those that show what runs have left."""

import os
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from thawline.api import REPORT, find_place, name_parameters, read_place, run_pipeline

LATEST_RUNS = SHOWN_ROWS = 20
WATCHED_STRATEGY = "all_stages"
WORDS = ("compare.strategies", "explain.images")  # lists that `--params` takes with blanks
REST_SECONDS = 3  # after which a folder is taken for complete

environment = click.option(
    "--env",
    "-e",
    envvar="KEDRO_ENV",
    metavar="NAME",
    help="Environment of the configuration (a folder in conf/); by default local.",
)


def examples(*commands: str) -> str:
    """Return commands as the last lines of a help page, which click leaves as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


def _parse(_context: Any, _option: Any, settings: Sequence[str]) -> dict[str, Any]:
    """Return values by name of NAME=VALUE, where a value is written as in YAML."""
    import yaml

    if wrong := [setting for setting in settings if "=" not in setting]:
        raise click.BadParameter(f"{wrong[0]} is not NAME=VALUE")
    pairs = (setting.split("=", 1) for setting in settings)
    try:
        return {name: yaml.safe_load(value) for name, value in pairs}
    except yaml.YAMLError as error:
        raise click.BadParameter(f"a value is no YAML: {error}") from error


def _name_run(_context: Any, _option: Any, name: str | None) -> None:
    """Hand a name to conf/base/mlflow.yml."""
    if name:
        os.environ["THAWLINE_RUN_NAME"] = name


def with_options(*, data: bool = True, strategy: bool = True) -> Callable[[Any], Any]:
    """Add the options of every command that runs a pipeline, and of one that trains on data."""
    options = [
        click.option(
            "--set", "parameters", multiple=True, callback=_parse, metavar="NAME=VALUE",
            help="Any parameter, as in YAML: --set transforms.mean='[0.5, 0.5, 0.5]'. Repeatable.",
        ),
        click.option(
            "--name", callback=_name_run, expose_value=False, help="Name of the run in MLflow."
        ),
        environment,
        click.option("--verbose", is_flag=True, help="Print everything that the log file holds."),
    ]  # fmt: skip
    if strategy and data:
        usual = "By default that of the configuration; see thawline params strategy."
        options.insert(0, click.option("--strategy", metavar="NAME", help=usual))
    if data:
        backbone = click.option("--backbone", metavar="NAME", help="Such as resnet50.")
        options = [click.argument("data", required=False), backbone, *options]

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def run(
    pipeline: str, given: dict[str, Any], env: str | None = None, verbose: bool = False
) -> None:
    """Run a pipeline, and print the command of Kedro that does the same."""
    from thawline.cli.kedro_run import told

    if find_place().is_project:
        from thawline.reports.html import kedro_command
        from thawline.tracking.redaction import mask

        texts = {name: str(value) for name, value in given.items()}
        lists = {name: given[name] for name in WORDS if isinstance(given.get(name), list)}
        texts |= {name: " ".join(map(str, words)) for name, words in lists.items()}
        click.echo(mask(f"$ {kedro_command(texts, pipeline, env)}"))
    with told():
        run_pipeline(pipeline, given, env, verbose)


def open_page(file: Path) -> None:
    """Say where a page is, and open it in a browser."""
    click.echo(file)
    click.launch(str(file))


def _print(texts: Any) -> None:
    """Print a data frame of texts as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*texts.columns, box=None)
    for row in texts.itertuples(index=False):
        table.add_row(*row)
    Console(markup=False).print(table)


@click.command(
    epilog=examples(
        "thawline finetune photos",
        "thawline finetune photos --backbone resnet50 --strategy lp_ft",
        "thawline finetune photos --set training.epochs=10",
    )
)
@with_options()
def finetune(
    data: str | None, strategy: str | None, backbone: str | None, parameters: dict[str, Any],
    env: str | None, verbose: bool,
) -> None:  # fmt: skip
    """Fine-tune a classifier on DATA, a folder with one folder of images per class.

    DATA is what dataset.root takes; without it, the data of the configuration, or outside of a
    project the working directory, where results go to thawline-runs/.
    """
    run("finetune", name_parameters(data, strategy, backbone) | parameters, env, verbose)


@click.command(epilog=examples("thawline compare photos --strategy head_only --strategy full"))
@with_options(strategy=False)
@click.option("--strategy", "strategies", multiple=True, metavar="NAME", help="Repeatable.")
def compare(
    data: str | None, strategies: tuple[str, ...], backbone: str | None,
    parameters: dict[str, Any], env: str | None, verbose: bool,
) -> None:  # fmt: skip
    """Train several strategies on DATA, and test whether the best is better by more than chance."""
    given = name_parameters(data, None, backbone) | parameters
    given |= {"compare.strategies": list(strategies)} if strategies else {}
    run("compare", given, env, verbose)


@click.command(epilog=examples("thawline sweep photos --set sweep.trials=10"))
@with_options()
def sweep(
    data: str | None, strategy: str | None, backbone: str | None, parameters: dict[str, Any],
    env: str | None, verbose: bool,
) -> None:  # fmt: skip
    """Search for the best parameters on DATA with Optuna."""
    run("sweep", name_parameters(data, strategy, backbone) | parameters, env, verbose)


@click.command(epilog=examples("thawline watch photos"))
@with_options()
def watch(
    data: str | None, strategy: str | None, backbone: str | None, parameters: dict[str, Any],
    env: str | None, verbose: bool,
) -> None:  # fmt: skip
    """Train on the folder DATA, and again whenever it has changed and rests, until Ctrl+C.

    The strategy is all_stages unless another is given: only new images pass the frozen layers.
    """
    given = name_parameters(data, strategy or WATCHED_STRATEGY, backbone) | parameters
    folder = Path(given.get("dataset.root", ""))
    if "dataset.root" not in given or not folder.is_dir():
        raise click.ClickException("Name a folder to watch: thawline watch photos.")
    trained = None
    while True:
        found = _list_files(folder)
        time.sleep(REST_SECONDS)
        if found == trained or found != _list_files(folder):
            continue
        trained = found
        try:
            run("finetune", given, env, verbose)
        except click.ClickException as error:  # such as a class with too few images yet
            error.show()
        click.echo(f"Watching {folder} until Ctrl+C.")


def _list_files(folder: Path) -> set[tuple[str, int, int]]:
    """Return path, size and time of change of the files of a folder that are no results."""
    from thawline.data.sources import RESULTS

    found: set[tuple[str, int, int]] = set()
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != RESULTS]
        linked = [path for name in folders if (path := Path(parent, name)).is_symlink()]
        found.update(*map(_list_files, linked if Path(parent) == folder else []))  # classes
        for path in map(Path(parent).joinpath, names):
            with suppress(OSError):  # it has just been renamed or removed
                about = path.stat()
                found.add((str(path), about.st_size, about.st_mtime_ns))
    return found


@click.command(
    epilog=examples(
        "thawline predict photo.jpg",
        "thawline predict photos --model latest",
    )
)
@click.argument("images", type=click.Path(resolve_path=True))
@click.option("--model", help="predict.model: an alias, a version, latest, a run, or a folder.")
def predict(images: str, model: str | None) -> None:
    """Classify an image, or all IMAGES of a folder, with the champion."""
    if model and Path(model).is_dir():
        model = str(Path(model).resolve())
    run("predict", {"predict.root": images} | ({"predict.model": model} if model else {}))
    import pandas as pd

    place = find_place()
    entry = read_place(place)["catalog"]["folder_predictions"]
    read = pd.read_parquet if "Parquet" in entry["type"] else pd.read_csv
    rows: Any = read(place.project / entry["filepath"])
    folder = Path(images) if Path(images).is_dir() else Path(images).parent
    shown = {
        "file": rows["path"].str.removeprefix(f"{folder}/"),
        "label": rows["label"].fillna(rows.get("reason", rows["problem"])).fillna(rows["problem"]),
        "probability": rows["probability"].map("{:.3f}".format),
    }
    _print(pd.DataFrame(shown).head(SHOWN_ROWS))
    if len(rows) > SHOWN_ROWS:
        click.echo(f"The first {SHOWN_ROWS} of {len(rows)}; the table above has all of them.")


@click.command(epilog=examples("thawline runs", "thawline runs --html"))
@click.option("--all", "everything", is_flag=True, help=f"Not only the latest {LATEST_RUNS}.")
@click.option("--html", "as_page", is_flag=True, help="All of them as a page, opened in a browser.")
def runs(everything: bool, as_page: bool) -> None:
    """Show the runs of finetune with their accuracies, the latest first."""
    from thawline.cli.kedro_run import told
    from thawline.cli.run_table import list_runs
    from thawline.reports.runs import run_table, runs_page

    place = find_place()
    with told():
        found = list_runs(place, None if everything or as_page else LATEST_RUNS)
    if found.empty:
        raise click.ClickException("There is no run yet. Run thawline finetune first.")
    if not as_page:
        _print(run_table(found))
    else:
        file = place.project / REPORT.with_name("runs.html")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(runs_page(found), "utf-8")
        open_page(file)


@click.command(epilog=examples("thawline params", "thawline params rate"))
@click.argument("word", default="")
def params(word: str) -> None:
    """List parameters with default, type and meaning; WORD filters their names and meanings."""
    from thawline.options.listing import list_parameters

    rows = list_parameters(find_place().configuration / "base")
    found = [row for row in rows if word.lower() in f"{row.name} {row.meaning}".lower()]
    if not found:
        raise click.ClickException(f"No parameter has '{word}' in its name or meaning.")
    for row in found:
        click.echo(f"{click.style(row.name, bold=True)}: {row.default}  ({row.type})")
        click.echo(textwrap.indent(textwrap.fill(row.meaning, 76), "    "))
