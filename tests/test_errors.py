"""Clauses that several messages share."""

import pytest

from thawline.errors import alternatives, did_you_mean, first_line, summarize_names


def test_many_names_are_counted_and_the_first_shown() -> None:
    assert summarize_names(["a", "b", "c", "d"]) == "4 (a, b, c, …)"
    assert summarize_names(["a", "b", "c"]) == "3 (a, b, c)"


def test_the_closest_name_is_suggested_before_all_possible_ones() -> None:
    assert did_you_mean("heda", ["tail", "head"]) == "; did you mean 'head'?"
    assert did_you_mean("xyz", ["tail", "head"]) == ""
    said = alternatives("heda", ["tail", "head"])
    assert said == "; did you mean 'head'? (possible: head, tail)"


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("one\ntwo"), "one"), (MemoryError(), "MemoryError")]
)
def test_an_error_has_a_first_line_even_without_a_message(error: Exception, line: str) -> None:
    assert first_line(error) == line
