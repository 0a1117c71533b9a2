"""Tags of a run say how it came about."""

import sys

import pytest

from thawline.tracking.run_tags import command_line


def test_a_command_can_be_repeated_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["/venv/bin/kedro", "run", "--params=compare.strategies=full lp_ft"]
    monkeypatch.setattr(sys, "argv", given)
    assert command_line() == "kedro run '--params=compare.strategies=full lp_ft'"
