"""Draw a network stage by stage: frozen and trainable parts, thaw lines, weight change."""

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thawline.evaluation.stage_summary import FROZEN, PARTLY, TRAINED, line_positions
from thawline.networks.stages import HEAD
from thawline.reports.figures.style import COLORS, TRAIN, VALIDATION, finish, shorten

ROW = 34  # px, height of a stage
MAX_STAGE_LETTERS = 22  # of a stage's name
PARTLY_TRAINED = "partly trained"
STATE_COLORS = {FROZEN: COLORS[4], PARTLY_TRAINED: VALIDATION, TRAINED: VALIDATION}
STATE_PATTERNS = {FROZEN: "", PARTLY_TRAINED: "/", TRAINED: ""}
LEGEND = {
    "orientation": "h", "x": 0, "xref": "container",
    "y": 0, "yref": "container", "yanchor": "bottom", "title": None,
}  # fmt: skip
HEADING = "<b>Stage, the input at the bottom</b><br>output · parameters · compute"


def stage_figure(table: pd.DataFrame) -> go.Figure:
    """Return the `describe_stages` from input to head, one column per phase, with the thaw line."""
    names = [shorten(str(name), MAX_STAGE_LETTERS) for name in table["stage"]]
    sizes = [
        f"{str(stage.output) or 'no output'} · {stage.parameters:,} · {stage.compute:.1%}"
        for stage in table.itertuples()
    ]
    rows = table.assign(row=range(len(table)), name=names, size=sizes, width=0.9)
    phases = [column for column in table if str(column).startswith("phase_")]
    cells = rows.melt(["row", "name", "size", "width"], phases, "phase", "state")
    cells = cells.replace({"state": {PARTLY: PARTLY_TRAINED}})
    cells["phase"] = cells["phase"].str.removeprefix("phase_").astype(int)
    figure = px.bar(
        cells, "width", "row", base=cells["phase"] - 0.45, orientation="h", barmode="overlay",
        color="state", color_discrete_map=STATE_COLORS, opacity=1,
        pattern_shape="state", pattern_shape_map=STATE_PATTERNS,
        hover_data=["phase", "name", "size"],
    )  # fmt: skip
    hover = "phase %{customdata[0]}, %{customdata[1]}<br>%{customdata[2]}"
    figure.update_traces(width=0.86, hovertemplate=hover)
    places = line_positions(table)
    if places:
        figure.add_scatter(
            x=[edge for number in places for edge in (number - 0.5, number + 0.5)],
            y=[place - 0.5 for place in places.values() for _ in range(2)],
            mode="lines",
            name="thaw line",
            hoverinfo="skip",
            line={"color": COLORS[2], "width": 5},
        )
    labels = [f"<b>{name}</b><br>{size}" for name, size in zip(names, sizes, strict=True)]
    figure.update_xaxes(
        title_text="Phase", range=[0.5, len(phases) + 0.5], tick0=1,
        dtick=max(1, -(-len(phases) // 12)), showgrid=False, zeroline=False,
    )  # fmt: skip
    figure.update_yaxes(
        title_text=None, range=[-0.6, len(table) + 0.4], tickvals=[*range(len(table) + 1)],
        ticktext=[*labels, HEADING], tickfont={"size": 11}, showgrid=False, zeroline=False,
        automargin=True,
    )  # fmt: skip
    return finish(
        figure,
        "Frozen and trained stages per phase, and the thaw line",
        height=220 + ROW * (len(table) + 1),
        legend=LEGEND,
        margin={"l": 10, "r": 15, "t": 70, "b": 110},
    )


def weight_change_figure(change: pd.DataFrame) -> go.Figure:
    """Return the `measure_weight_change` of each stage and the CKA of its output.

    The change of the new head is given as a number: a bar would dwarf all others.
    """
    names = [shorten(str(name), MAX_STAGE_LETTERS) for name in change["stage"]]
    titles = {"relative_l2": "weights", "statistics_l2": "batch norm statistics"}
    rows = change.assign(row=range(len(change)), name=names).rename(columns=titles)
    is_head = change["stage"] == HEAD
    stages, head = rows[~is_head], rows[is_head].iloc[0]
    measures = [title for title in titles.values() if stages[title].notna().any()]
    bars = px.bar(
        stages, measures, "row", orientation="h", text_auto=".2~g",
        hover_data={"row": False, "name": True, "value": ":.4~g"},
        color_discrete_sequence=(TRAIN, COLORS[4]),
    )  # fmt: skip
    bars.update_traces(textposition="outside", cliponaxis=False)
    points = px.scatter(
        stages, "cka", "row", hover_data={"row": False, "name": True, "cka": ":.5~f"},
        symbol_sequence=["diamond"], color_discrete_sequence=[VALIDATION],
    )  # fmt: skip
    points.update_traces(
        name="CKA of the output", showlegend=True, marker={"size": 9}, mode="markers+text",
        texttemplate="%{x:.3f} ", textposition="middle left",
    )  # fmt: skip
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.08)
    figure.add_traces(bars.data, rows=1, cols=1)
    figure.add_traces(points.data, rows=1, cols=2)
    for column, text in ((1, f"new, changed by {head['weights']:.2g}"), (2, "new")):
        figure.add_annotation(
            text=text, x=0, xref="x domain", xanchor="left", y=len(stages), showarrow=False,
            row=1, col=column,
        )  # fmt: skip
    furthest = stages[measures].max().max()
    span = max(0.1, 1 - float(stages["cka"].min()))
    figure.update_xaxes(nticks=4)
    figure.update_xaxes(
        title_text="Relative change (L2)", range=[0, 1.35 * furthest or 1], row=1, col=1
    )
    figure.update_xaxes(title_text="CKA", range=[1 - 1.6 * span, 1 + 0.1 * span], row=1, col=2)
    figure.update_yaxes(range=[-0.6, len(stages) + 0.6], showgrid=False, zeroline=False)
    figure.update_yaxes(
        tickvals=rows["row"], ticktext=names, tickfont={"size": 11}, automargin=True, row=1, col=1
    )
    return finish(
        figure,
        "Weight change per stage",
        bargap=0.25,
        height=250 + ROW * len(names),
        legend=LEGEND,
        margin={"l": 10, "r": 15, "t": 70, "b": 140},
    )
