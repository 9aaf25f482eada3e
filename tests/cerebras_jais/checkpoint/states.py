"""Nested states for property tests, and their exact comparison."""

from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from cerebras_jais.checkpoint import StoredTensor

DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "bool", "uint8"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """An array of any type and bit pattern (NaNs included), 0-d and empty ones too, in either memory order."""
    name = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    if name == "bool":
        data = bytes(byte & 1 for byte in data)
    array = np.frombuffer(data, dtype).reshape(shape)
    return np.asfortranarray(array) if array.ndim and draw(st.booleans()) else array


# Without a dot no two paths can make the same flat key.
KEYS = st.text(st.characters(exclude_characters="./\0", exclude_categories=["Cs"]), min_size=1, max_size=6)
SCALARS = st.one_of(
    st.integers(), st.booleans(), st.floats(), st.text(st.characters(exclude_categories=["Cs"])), st.none()
)


def _containers(children: st.SearchStrategy) -> st.SearchStrategy:
    texts = st.dictionaries(KEYS, children, max_size=3)
    numbers = st.dictionaries(st.integers(0, 9), children, max_size=3)
    lists = st.lists(children, max_size=3)
    return st.one_of(texts, numbers, texts.map(OrderedDict), lists, lists.map(tuple))


STATES = st.dictionaries(
    KEYS, st.recursive(st.one_of(arrays(), SCALARS), _containers, max_leaves=8), min_size=1
).filter(lambda state: any(True for _ in leaves_of(state)))


def leaves_of(value: Any) -> Any:
    """Yield the leaves in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for child in value:
            yield from leaves_of(child)
    else:
        yield value


def assert_same(ours: Any, theirs: Any) -> None:
    """Assert equality of two states in type, order, keys and every bit; tensors may be stored ones."""
    if isinstance(theirs, np.ndarray):
        values = ours.read() if isinstance(ours, StoredTensor) else ours
        assert isinstance(values, np.ndarray)
        assert (values.shape, values.dtype) == (theirs.shape, theirs.dtype)
        assert values.tobytes() == theirs.tobytes()
        return
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        assert [type(key) for key in ours] == [type(key) for key in theirs]
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs or (ours != ours and theirs != theirs)
