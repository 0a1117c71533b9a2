"""Draw how well a classifier does, and where it errs."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from thawline.figures.style import MOST_TICK_LETTERS, shorten

MOST_NUMBERED = 30  # classes up to which a cell of the confusion matrix has its number written in


def confusion_matrix(confusion: pd.DataFrame) -> go.Figure:
    """Return counts of true against predicted classes, coloured by the share of the true class."""
    share = confusion.div(confusion.sum(axis=1).clip(lower=1), axis=0)
    numbered = len(confusion) <= MOST_NUMBERED
    figure = go.Figure(
        go.Heatmap(
            z=share.to_numpy(),
            x=list(confusion.columns),
            y=list(confusion.index),
            text=confusion.to_numpy(),
            texttemplate="%{text}" if numbered else None,
            hovertemplate="true %{y}, predicted %{x}: %{text} (%{z:.1%})<extra></extra>",
            colorscale="Blues",
            zmin=0,
            zmax=1,
            colorbar={"title": {"text": "share of<br>true class"}, "tickformat": ".0%"},
        )
    )
    short = {name: shorten(str(name), MOST_TICK_LETTERS) for name in confusion.columns}
    axis = {"type": "category", "labelalias": short}
    figure.update_xaxes(title_text="Predicted class", **axis)
    figure.update_yaxes(title_text="True class", autorange="reversed", **axis)
    return figure.update_layout(
        title={"text": "Confusion matrix of the test split"}, template="plotly_white"
    )
