"""YAML made for people is the YAML that machines read.

Contract: what `to_yaml` writes is read back equal by PyYAML (YAML 1.1), floats as floats and text as text; comments,
anchors and remarks change nothing.
"""

import pytest
import yaml

from cerebras_jais.catalog.types import assumed, published
from cerebras_jais.catalog.yaml_writer import Alias, Anchor, Note, Remark, to_yaml


@pytest.mark.parametrize(
    "value",
    [
        *(1, 0, -3, 1e-5, 8e-10, 1e16, 2.0, 0.1, 1.4999999999999999e-05, True, False, None),
        *([0.9, 0.95], ["a/b", "c d"], [], {}),
        *("null", "yes", "1e-5", "3", "a: b", "it's", "#", "", "*", r"x\.", "$HOME"),
    ],
    ids=repr,
)
def test_a_value_is_read_back_with_its_type(value):
    found = yaml.safe_load(to_yaml({"key": value, "list": [{"inner": value, "other": 1}]}))
    assert found == {"key": value, "list": [{"inner": value, "other": 1}]}
    assert type(found["key"]) is type(value)


def test_comments_anchors_and_remarks_change_nothing():
    tree = {
        "remark": Remark("said above"),
        "a": Anchor("one", {"x": published(1, "card")}),
        "b": Alias("one"),
        "c": Note(assumed("linear", "why # not"), "first"),
        "d": [{"Name": Note({"y": 2}, "beside the name")}],
    }
    text = to_yaml(tree, ["header: with # and '"])
    assert yaml.safe_load(text) == {"a": {"x": 1}, "b": {"x": 1}, "c": "linear", "d": [{"Name": {"y": 2}}]}
    assert "x: 1 # published: card" in text
    assert "c: linear # first; assumed: why # not" in text
    assert "# said above" in text
