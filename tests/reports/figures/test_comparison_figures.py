"""Figures of a comparison tell strategies and seeds apart."""

import numpy as np

from helpers.trials import make_trials
from thawline.evaluation.comparison import compare
from thawline.reports.figures import comparison as figures


def test_every_seed_and_strategy_is_drawn_in_a_look_of_its_own() -> None:
    trials = make_trials({f"strategy {i}": 0.9 for i in range(10)}, seeds=2)
    table = compare(trials).table
    means = [t for t in figures.compared_curves(trials.histories, table).data if t.showlegend]
    looks = {(line.line.color, line.line.dash, line.marker.symbol) for line in means}
    assert len(means) == len(looks) == 10
    figure = figures.comparison_figure(trials.table, table)
    dots = [x for trace in figure.data if trace.mode == "markers" for x in np.asarray(trace.x)]
    assert {*trials.table["test_accuracy"]} <= {*dots}


def test_a_mean_curve_ends_with_the_first_of_its_seeds() -> None:
    trials = make_trials({"full": 0.9}, seeds=2)
    shorter = trials.histories.drop(trials.histories.index[-2:])
    curves = figures.compared_curves(shorter, compare(trials).table)
    assert sorted(len(trace.x) for trace in curves.data) == [3, 3, 3, 3, 5, 5]


def test_the_cost_figure_names_every_strategy_in_its_legend() -> None:
    trials = make_trials({"a_long_name_of_a_strategy_with_many_phases": 0.9, "<b>full": 0.8})
    figure = figures.comparison_figure(trials.table, compare(trials).table)
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert named == ["a_long_name_…many_phases", "&lt;b&gt;full"]
