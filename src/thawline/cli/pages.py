"""The commands of `thawline` that open a page, and those that serve one."""

import os
import secrets
from pathlib import Path
from typing import Any

import click

from thawline.api import REPORT, find_place, read_place
from thawline.cli.verbs import examples, open_page, run, with_options
from thawline.errors import ThawlineError

LOCAL = "127.0.0.1"
PORT = 5001  # of the server of a model; `kedro mlflow ui` has 5000
IMAGE = r"""{\"dataframe_split\": {\"columns\": [0], \"data\": [[\"$(base64 < photo.jpg)\"]]}}"""
ASK = f"""Serving %s; to try it, open %s. By a program (docs/serving.md):
  echo "{IMAGE}" | tr -d '\\n' |
  curl -s %s/invocations%s -H 'Content-Type: application/json' -d @-"""

QUEUE_SECONDS = "600"  # that a request may wait for those before it; MLflow's 60 are for few

REVIEW_PORT = 5002
DRIFT = Path("data", "08_reporting", "drift_report.html")
REVIEW = Path("data", "08_reporting", "review.html")
CORRECTIONS = "corrections.csv"


@click.command(epilog=examples("thawline report"))
def report() -> None:
    """Open the report of the last run in a browser."""
    file = find_place().project / REPORT
    if not file.is_file():
        raise click.ClickException(f"{file} does not exist yet. Run thawline finetune first.")
    open_page(file)


@click.command(epilog=examples("thawline serve --port 8000"))
@click.option("--model", default="champion", show_default=True, help="An alias or a version.")
@click.option("--host", default=LOCAL, show_default=True, help="Any other address needs a token.")
@click.option("--port", default=PORT, show_default=True)
def serve(model: str, host: str, port: int) -> None:
    """Serve a registered model over HTTP, with a page to try it, until Ctrl+C."""
    from thawline.cli.kedro_run import told

    os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", QUEUE_SECONDS)
    token = None if host == LOCAL else secrets.token_urlsafe()
    with told():
        import mlflow
        import uvicorn

        from thawline.cli.run_table import find_registered
        from thawline.reports.html import render
        from thawline.serving.server import make_app

        uri = find_registered(find_place(), model)
        about: Any = mlflow.models.get_model_info(uri).metadata
        name, names = uri.removeprefix("models:/"), about["class_names"]
        app = make_app(uri, render("try.html", name=name, classes=names), token)
    address = f"http://{host}:{port}"
    key = f" -H 'Authorization: Bearer {token}'" if token else ""
    click.echo(ASK % (uri, f"{address}/?token={token}" if token else address, address, key))
    uvicorn.run(app, host=host, port=port, log_level="warning")


def _check_trained(env: str | None) -> None:
    """Raise ClickException if `finetune` has saved no classifier yet."""
    from thawline.cli.kedro_run import told

    place = find_place()
    with told():
        folder = place.project / read_place(place, env)["catalog"]["classifier"]["filepath"]
    if not any(folder.glob("*")):
        raise click.ClickException("There is no classifier yet. Run thawline finetune first.")


@click.command(epilog=examples("thawline drift new_photos"))
@click.argument("images", type=click.Path(resolve_path=True))
@with_options(data=False)
def drift(images: str, parameters: dict[str, Any], env: str | None, verbose: bool) -> None:
    """Say whether IMAGES, a folder, are like those that the last classifier was evaluated on."""
    _check_trained(env)
    run("drift", {"drift.root": images, **parameters}, env, verbose)
    folder = find_place().project / DRIFT
    open_page(max(folder.iterdir()) / folder.name)


@click.command(
    epilog=examples(
        "thawline review",
        "thawline review --unlabeled new_photos",
        "thawline review --serve",
    )
)
@click.option("--unlabeled", metavar="FOLDER", help="Say which of its images to label next.")
@click.option("--serve", is_flag=True, help="Let the page write corrections.csv, until Ctrl+C.")
@click.option("--port", default=REVIEW_PORT, show_default=True)
@with_options(data=False)
def review(
    unlabeled: str | None, serve: bool, port: int, parameters: dict[str, Any], env: str | None,
    verbose: bool,
) -> None:  # fmt: skip
    """Show the images of the last run on a page, to find and correct wrong labels."""
    _check_trained(env)
    project = find_place().project
    if unlabeled:
        parameters = {"review.unlabeled": str(Path(unlabeled).resolve()), **parameters}
    run("review", parameters, env, verbose)
    if not serve:
        open_page(project / REVIEW)
        return
    import uvicorn

    from thawline.serving.review_server import make_app

    try:
        app = make_app(project / REVIEW, project / CORRECTIONS)
    except ThawlineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"http://127.0.0.1:{port} writes {project / CORRECTIONS} until Ctrl+C.")
    uvicorn.run(app, port=port, log_level="warning")
