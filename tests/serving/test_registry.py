"""The default name of a registered model follows from data set and classes."""

import re

from thawline.serving.registry import default_name


def test_the_default_name_follows_from_data_set_and_classes() -> None:
    digits = [str(label) for label in range(10)]
    assert default_name("sklearn:digits", digits) == "digits-29dd21"
    assert default_name("../my photos/", ("b", "a")) == default_name("/x/my photos", ("a", "b"))
    names = {default_name(root, labels) for root in ("a", "b", "c.csv") for labels in ("xy", "xyz")}
    assert len(names) == 6 and all(re.fullmatch(r"[abc]-[0-9a-f]{6}", name) for name in names)
    roots = ("a.v1", "a.v2", "C:/photos", "蟻/蜂", "", "a.parquet")
    readable = [default_name(root, "xy")[:-7] for root in roots]
    assert readable == ["a-v1", "a-v2", "photos", "蜂", "images", "a"]
