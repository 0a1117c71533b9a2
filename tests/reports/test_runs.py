"""The page of all runs says what each run changed, and which became champion."""

from datetime import datetime

import pandas as pd

from thawline.reports.runs import RunRow, run_table, runs_page


def rows() -> pd.DataFrame:
    """Return three runs of two data sets, the latest first."""

    def row(day: int, data: str, accuracy: float, became: bool, **parameters: str) -> RunRow:
        return RunRow(
            f"run {day}", data, accuracy, accuracy - 0.1, accuracy + 0.05, 60.0, str(day),
            became, became and day == 3, datetime(2026, 1, day), parameters,
        )  # fmt: skip

    return pd.DataFrame(
        [
            row(3, "photos", 0.9, True, seed="1", strategy="full"),
            row(2, "<b>", 0.8, False, seed="1"),
            row(1, "photos", 0.7, True, seed="0", strategy="full"),
        ]
    )


def test_a_table_has_accuracies_with_intervals_and_marks_the_champion() -> None:
    table = run_table(rows())
    assert table["accuracy"].tolist() == ["90.0%", "80.0%", "70.0%"]
    assert table["95 %"].tolist() == ["80-95", "70-85", "60-75"]
    assert table["version"].tolist() == ["3 champion", "2", "1"]


def test_each_data_set_has_its_runs_and_what_they_changed() -> None:
    page = runs_page(rows())
    assert "The latest of 3 runs, run 3, has 90.0%." in page
    assert page.index("photos</h2>") < page.index("&lt;b&gt;</h2>")
    assert "<td>seed=1</td>" in page and "strategy=full" not in page
