"""The console command `thawline`: look at what a run needs or has left, without running it."""

import json
import textwrap
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

import thawline
from thawline.api import find_place, log_as_configured, read_place
from thawline.cli import pages, verbs
from thawline.cli.verbs import environment, examples
from thawline.errors import ThawlineError
from thawline.tracking.redaction import mask

NUM_CLASSES = 1000  # of ImageNet, for which papers and model cards give sizes
COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.group(
    epilog=examples(
        "thawline finetune photos        train on a folder with one folder per class",
        "thawline report                 see what came of it",
        "thawline predict photo.jpg      use it",
        "thawline runs                   list all trainings",
        "thawline doctor                 check your setup",
    )
)
@click.version_option(thawline.__version__)
def main() -> None:
    """Fine-tune image classifiers. In a Kedro project, `kedro run` does the same and more."""
    log_as_configured()


for command in (
    verbs.finetune, verbs.predict, verbs.compare, verbs.sweep, verbs.watch, verbs.runs,
    verbs.params,
    pages.drift, pages.report, pages.review, pages.serve,
):  # fmt: skip
    main.add_command(command)


@main.command(
    epilog=examples(
        "thawline stages convnext_tiny",
        "thawline stages timm/resnet50 --size=160",
        "thawline stages my_networks:ChannelwiseResNet --own-head",
    )
)
@click.argument("backbone")
@click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Side of the images; by default that of the pretrained weights.",
)
@click.option(
    "--own-head", is_flag=True, help="As with model.head=builtin, for a network of your own."
)
def stages(backbone: str, size: int | None, own_head: bool) -> None:
    """Show the stages of BACKBONE, which a strategy freezes or trains by name.

    BACKBONE is what model.backbone takes: a classifier of torchvision (resnet18), timm/NAME, or
    package.module:Factory for your own. It is built with random weights and a head for 1000
    classes; nothing is downloaded. Compute is the share of a forward pass's multiply-adds.
    """
    from thawline.networks.building import build_network, pretrained_preprocessing
    from thawline.networks.stages import stage_table
    from thawline.options import ModelOptions

    head = "builtin" if own_head else "linear"
    options = ModelOptions(backbone=backbone, weights="none", head=head)
    try:
        size = size or pretrained_preprocessing(options).size
        network, _ = build_network(options, NUM_CLASSES, size, seed=0)
        rows = stage_table(network, size)
    except ThawlineError as error:
        raise click.ClickException(str(error)) from error
    table = Table("stage")
    for title in ("parameters", f"output at {size} px", "compute"):
        table.add_column(title, justify="right")
    for row in rows.itertuples(index=False):
        table.add_row(str(row.stage), f"{row.parameters:,}", str(row.output), f"{row.compute:.1%}")
    Console(markup=False).print(table)
    last = ", ".join(rows["stage"][-2:])
    click.echo(
        f"A phase trains the last two with `trainable: [{last}]` or `trainable: {{last: 2}}`."
    )


@main.command(epilog=examples("thawline inspect best.pth"))
@click.argument("file", type=click.Path(path_type=Path))
def inspect(file: Path) -> None:
    """Describe a weights FILE without executing anything in it.

    FILE is what model.weights takes (.pth, .pt, .safetensors, …), or the folder of a classifier
    that a run saved.
    """
    import yaml

    from thawline.networks.checkpoints import describe_checkpoint  # torch takes seconds to import

    try:
        description = describe_checkpoint(file)
    except ThawlineError as error:
        raise click.ClickException(str(error).removeprefix("model.weights: ")) from error
    shown = {name: value for name, value in description.items() if value not in (None, "", [], {})}
    plain = json.loads(json.dumps(shown))  # a checkpoint's numbers may be NumPy's
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None)
    click.echo(_printable(text))


@main.command(epilog=examples("thawline activations", "thawline activations --clear"))
@environment
@click.option("--clear", is_flag=True, help="Remove all of it.")
@click.option("--empty", is_flag=True, hidden=True)
def activations(env: str | None, clear: bool, empty: bool) -> None:
    """Show or clear the cache of frozen layers' activations (data/04_feature/activations).

    A run recomputes what is missing.
    """
    if empty:
        raise click.UsageError("--empty was renamed to --clear.")
    from thawline.options import validate_parameters
    from thawline.thaw.cache import ActivationCache

    place = find_place()
    try:
        configuration = read_place(place, env)
        max_gb = validate_parameters(configuration["parameters"]).activations.max_gb
    except ThawlineError as error:
        raise click.ClickException(str(error)) from error
    folder = place.project / configuration["catalog"]["activations"]["filepath"]
    store = ActivationCache(folder, max_gb)
    contents = store.contents()
    table = Table(*contents.columns)
    for row in contents.itertuples(index=False):
        table.add_row(*map(str, row))
    Console(markup=False).print(table)
    total = f"{contents['MB'].sum():.1f} MB of at most {max_gb:g} GB in {store.folder}"
    if clear:
        store.clear()
        total += " were removed"
    click.echo(total)


@main.command(
    epilog=examples(
        "thawline doctor",
        "thawline doctor --params=dataset.root=photos,model.backbone=resnet50",
        "thawline doctor --env=hymenoptera",
    )
)
@environment
@click.option(
    "--params", default="", metavar="NAME=VALUE,…", help="Parameters, as of `kedro run --params`."
)
def doctor(env: str | None, params: str) -> None:
    """Check your setup and say what to fix. Changes and downloads nothing.

    Looks at versions, device and memory, the weights that the configuration names, the images, the
    activation cache, and MLflow's store. Ends with status 1 if a run would fail.
    """
    from thawline.cli.doctor import examine

    states = []
    for finding in examine(env, params):
        states.append(finding.state)
        state = click.style(f"{finding.state:8}", fg=COLORS[finding.state])
        indented = textwrap.indent(_printable(mask(finding.message)), " " * 24).lstrip()
        click.echo(f"{state} {finding.name:14} {indented}")
    if "problem" in states:
        raise SystemExit(1)


def _printable(text: str) -> str:
    """Return a text without what could steer the terminal: a stranger may have written it."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
