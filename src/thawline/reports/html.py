"""Write a report as one HTML file that needs only a browser."""

import base64
import gzip
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from plotly.offline import get_plotlyjs

from thawline.data.splitting import class_names

HEIGHT = 420  # px, of a figure without a height of its own
MAX_LISTED_CLASSES = 10
MAX_SAVED_ROWS = 10_000


class Recipe(NamedTuple):
    """How to reproduce a training: its name, command lines and settings."""

    name: str
    commands: str
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Section:
    """A part of a report, whose pieces come in this order."""

    title: str
    text: str = ""
    table: pd.DataFrame | None = None  # of texts; the first column names the row
    # figures and pictures by caption, side by side where there is room
    illustrations: Mapping[str, go.Figure | Image.Image] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # CSV files to save, by name
    recipes: Sequence[Recipe] = ()  # folded up
    terms: Mapping[str, str] = field(default_factory=dict)  # what words of the page mean


def html_report(
    title: str, facts: Mapping[str, str], verdict: str, sections: Sequence[Section]
) -> str:
    """Return a page that opens from the file system without a network, on a phone too.

    The page contains plotly.js, and follows the reader's light or dark scheme. All texts are
    escaped. The same arguments give the same page. `facts` are data, backbone and the like, by
    name; `verdict` is the main result in one sentence.
    """
    return render(
        "report.html",
        title=title,
        facts=facts,
        verdict=verdict,
        sections=sections,
        plain=_plain,
        data_uri=_data_uri,
        csv_uri=_csv_uri,
        max_rows=MAX_SAVED_ROWS,
        plotly_js=_compressed(get_plotlyjs()),
    )


def render(template: str, **names: Any) -> str:
    """Return a template with these names filled in, escaped."""
    environment = Environment(
        loader=PackageLoader("thawline.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(names)


def with_captions(
    figures: Mapping[str, go.Figure | Image.Image],
) -> dict[str, go.Figure | Image.Image]:
    """Return figures by their titles, and pictures, which contain theirs, by their entries' names.

    An empty figure is left out.
    """
    captioned: dict[str, go.Figure | Image.Image] = {}
    for name, figure in figures.items():
        if isinstance(figure, Image.Image):
            captioned[f"{name.removesuffix('_grid').replace('_', ' ').capitalize()}."] = figure
        elif figure.data:
            captioned[f"{figure.layout.title.text}."] = figure
    return captioned


def data_facts(root: str, backbone: str, splits: pd.DataFrame) -> dict[str, str]:
    """Return data, backbone, classes, images and the date, with which every report begins."""
    images, names = splits["split"].value_counts(), class_names(splits)
    listed = f": {', '.join(names)}" if len(names) <= MAX_LISTED_CLASSES else ""
    return {
        "Data": root,
        "Backbone": backbone,
        "Classes": f"{len(names)}{listed}",
        "Images": f"{images['train']:,} training, {images['val']:,} validation,"
        f" {images['test']:,} test",
        "Date": f"{datetime.now():%Y-%m-%d %H:%M}",
    }


def closing_sections(recipes: Sequence[Recipe], terms: Mapping[str, str]) -> list[Section]:
    """Return the last sections of a report: how to reproduce it, and what its words mean."""
    how = (
        "Other parameters have their defaults. Where there is no Kedro project, thawline finetune"
        " takes the same ones, each after --set."
    )
    reproduce = Section("Reproduce", how, recipes=recipes)
    return [reproduce, Section("What the words mean", terms=terms)]


def kedro_command(
    settings: Mapping[str, str], pipeline: str = "finetune", env: str | None = None
) -> str:
    """Return the command line that runs a pipeline with these parameters, quoted for a shell.

    Values with a comma are named in a comment, since `--params` separates parameters by commas.
    """
    given = ",".join(
        f"{name}={'null' if value == 'None' else value}"
        for name, value in settings.items()
        if "," not in value
    )
    arguments = [f"--env={env}"] if env else []
    arguments += [shlex.quote(f"--params={given}")] if given else []
    if left_out := [name for name, value in settings.items() if "," in value]:
        arguments.append(f"# first put {', '.join(left_out)} into conf/local/parameters.yml")
    return " ".join([f"kedro run --pipeline={pipeline}", *arguments])


def _compressed(text: str) -> str:
    """Return a text as base64 of gzip, which is 40 % of plotly.js."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), mtime=0)).decode("ascii")


def _data_uri(figure: go.Figure | Image.Image) -> str:
    """Return a picture as the source of an <img>, or nothing for a figure."""
    if isinstance(figure, go.Figure):
        return ""
    return f"data:image/webp;base64,{encode_webp(figure, quality=85)}"


def encode_webp(picture: Image.Image, **options: int) -> str:
    """Return a picture as WebP in base64; the options are those of Pillow."""
    buffer = io.BytesIO()
    picture.save(buffer, format="webp", **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _csv_uri(table: pd.DataFrame) -> str:
    """Return the first rows of a table as the address of a CSV file within the page."""
    text = table.head(MAX_SAVED_ROWS).to_csv(index=False)
    return f"data:text/csv;base64,{base64.b64encode(text.encode('utf-8')).decode('ascii')}"


def _plain(figure: go.Figure) -> dict[str, Any]:
    """Return a figure without title and template: the page has a caption and colors of its own."""
    plain = go.Figure(figure).update_layout(
        template=None, title=None, margin_t=None, height=figure.layout.height or HEIGHT
    )
    data: dict[str, Any] = json.loads(plain.to_json())  # arrays as plotly.js reads them
    return data
