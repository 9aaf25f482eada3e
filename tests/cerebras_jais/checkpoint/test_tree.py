"""Contract: the structure of a state is parsed and written exactly as torch's pytree does; damage is a clear error."""

import json
from collections import OrderedDict, deque

import pytest
from hypothesis import given, settings

from cerebras_jais.checkpoint import CheckpointError
from cerebras_jais.checkpoint import tree as treespec
from tests.cerebras_jais.checkpoint.states import STATES, assert_same

STATE = {"model": OrderedDict([("a.weight", 1), ("b", [2, (3,)])]), "state": {0: {"x": 4}, 1: {}}, "none": [None]}


def test_dumps_equals_torch_character_for_character() -> None:
    pytree = pytest.importorskip("torch").utils._pytree
    _, theirs = pytree.tree_flatten(STATE)
    _, _, ours = treespec.flatten(STATE)
    assert treespec.dumps(ours) == pytree.treespec_dumps(theirs)


def test_torch_rebuilds_the_state_from_our_text() -> None:
    pytree = pytest.importorskip("torch").utils._pytree
    _, leaves, spec = treespec.flatten(STATE)
    rebuilt = pytree.tree_unflatten(leaves, pytree.treespec_loads(treespec.dumps(spec)))
    assert_same(rebuilt, STATE)


@settings(max_examples=60, deadline=None)
@given(STATES)
def test_flatten_dumps_loads_unflatten_is_the_identity(state: dict) -> None:
    keys, leaves, spec = treespec.flatten(state)
    again = treespec.loads(treespec.dumps(spec))
    assert again == spec
    assert treespec.flat_keys(again) == keys
    assert_same(treespec.unflatten(again, iter(leaves)), state)


def test_keys_are_joined_with_dots_and_lists_are_numbered() -> None:
    keys, leaves, _ = treespec.flatten(STATE)
    assert keys == ["model.a.weight", "model.b.0", "model.b.1.0", "state.0.x", "none.0"]
    assert leaves == [1, 2, 3, 4, None]


def test_a_dropped_leaf_leaves_a_mapping_but_keeps_its_place_in_a_list() -> None:
    _, _, spec = treespec.flatten({"a": 1, "b": [2, 3], "c": (4,)})
    gone = treespec.DROPPED
    assert treespec.unflatten(spec, iter([gone, gone, 3, gone])) == {"b": [None, 3], "c": (None,)}


def test_skeleton_shows_the_state_or_nothing() -> None:
    assert treespec.skeleton(treespec.flatten({"a": [1, {0: 2}]})[2]) == {"a": ["*", {0: "*"}]}
    assert treespec.skeleton(treespec.flatten({"a": {1}})[2]) is None


def test_two_leaves_of_one_flat_name_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'a\.b'"):
        treespec.flatten({"a": {"b": 1}, "a.b": 2})
    with pytest.raises(CheckpointError, match="'0'"):
        treespec.flatten({0: 1, "0": 2})


def test_cycles_depth_and_odd_keys_are_refused() -> None:
    cycle: list = []
    cycle.append(cycle)
    deep: list = []
    for _ in range(300):
        deep = [deep]
    for state, message in [
        (cycle, "contains itself"),
        (deep, "nested deeper"),
        ({("a", 1): 1}, "keys must be"),
        ({float("nan"): 1}, "keys must be"),
        ([deque([1], maxlen=3)], "maximal length"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            treespec.flatten(state)


LEAF: dict = {"type": None, "context": None, "children_spec": []}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"type": "collections.defaultdict", "context": "{}", "children_spec": []}, "defaultdict"),
        ({"type": ["x"], "context": "null", "children_spec": []}, "container of type"),
        ({"type": "builtins.dict", "context": '["a"]', "children_spec": []}, "do not fit"),
        ({"type": "builtins.dict", "context": '["a", "a"]', "children_spec": [LEAF, LEAF]}, "twice"),
        ({"type": "builtins.dict", "context": '[["a"]]', "children_spec": [LEAF]}, "do not fit"),
        ({"type": "builtins.dict", "context": None, "children_spec": []}, "cannot be parsed"),
        ({"type": "builtins.list", "context": "[1]", "children_spec": [LEAF]}, "unknown context"),
        ({"type": None, "context": None, "children_spec": [LEAF]}, "leaf with content"),
        ({"type": "builtins.list"}, "malformed"),
        (7, "malformed"),
    ],
)
def test_a_malformed_node_is_refused(node: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        treespec.loads(json.dumps([1, node]))


@pytest.mark.parametrize("text", ["", "[1]", "{}", "3", "[2, {}]", "[" * 100_000])
def test_a_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError):
        treespec.loads(text)


def test_a_hostile_depth_is_refused() -> None:
    text = '{"type": "builtins.list", "context": "null", "children_spec": [' * 400 + json.dumps(LEAF) + "]}" * 400
    with pytest.raises(CheckpointError, match="nested deeper"):
        treespec.loads(f"[1, {text}]")
