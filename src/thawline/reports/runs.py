"""All runs of a place: as a table, and as a page that shows how accuracy came along."""

from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from thawline.reports.figures.style import COLORS, TRAIN, finish
from thawline.reports.html import Section, html_report

MAX_CHANGES = 5  # parameters that a row of the page names


class RunRow(NamedTuple):
    """A run, as MLflow has it."""

    name: str
    data: str  # dataset.root
    accuracy: float  # on the test split, 0 to 1
    low: float  # of its 95 % interval
    high: float
    seconds: float
    version: str  # of the registered model; empty if there is none
    became_champion: bool
    is_champion: bool  # now
    when: datetime
    parameters: dict[str, str]


def run_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `RunRow` as texts."""
    limits = 100 * runs[["low", "high"]].to_numpy()
    marks = runs["is_champion"].map({True: " champion", False: ""})
    return pd.DataFrame(
        {
            "run": runs["name"],
            "accuracy": runs["accuracy"].map("{:.1%}".format),
            "95 %": [f"{low:.0f}-{high:.0f}" for low, high in limits],
            "seconds": runs["seconds"].map("{:.0f}".format).replace("nan", ""),
            "version": runs["version"] + marks,
            "when": runs["when"].map("{:%m-%d %H:%M}".format),
        }
    )


def runs_page(runs: pd.DataFrame) -> str:
    """Return the page of all runs, the latest first, by their data."""
    sections = []
    for data, own in runs.groupby("data", sort=False):
        table = run_table(own).assign(changed=_changes(own))
        figures = {"Test accuracy": _figure(own)}
        sections.append(Section(str(data), table=table, illustrations=figures))
    last = runs.iloc[0]
    verdict = f"The latest of {len(runs)} runs, {last['name']}, has {last['accuracy']:.1%}."
    return html_report("Runs", {"Date": f"{datetime.now():%Y-%m-%d %H:%M}"}, verdict, sections)


def _changes(runs: pd.DataFrame) -> list[str]:
    """Return for each run which parameters differ from those of the run before it."""
    texts = []
    for now, before in pairwise(runs["parameters"]):
        names = sorted(n for n in now.keys() | before.keys() if now.get(n) != before.get(n))
        shown = [f"{name}={now.get(name, 'null')}" for name in names[:MAX_CHANGES]]
        more = [f"and {len(names) - MAX_CHANGES} more"] * (len(names) > MAX_CHANGES)
        texts.append(", ".join([*shown, *more]) or "nothing")
    return [*texts, ""]  # nothing is before the first run


def _figure(runs: pd.DataFrame) -> go.Figure:
    """Return accuracies with their intervals over time, and which became champion."""
    figure = go.Figure()
    kinds = (("champion at the time", True, "star", COLORS[2]), ("other", False, "circle", TRAIN))
    for name, became, symbol, color in kinds:
        own = runs[runs["became_champion"] == became]
        figure.add_scatter(
            x=own["when"],
            y=own["accuracy"],
            error_y={
                "array": own["high"] - own["accuracy"],
                "arrayminus": own["accuracy"] - own["low"],
            },
            mode="markers",
            marker={"size": 11, "symbol": symbol, "color": color},
            name=name,
            text=own["name"],
        )
    figure.update_yaxes(title_text="Test accuracy, 95 % interval", tickformat=".0%")
    return finish(figure, "Test accuracy of each run")
