"""Contract: a store gives back the examples that were put into it, in any order."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.token_store import TokenStore

EXAMPLES = st.lists(st.lists(st.tuples(st.integers(0, 511_999), st.booleans()), min_size=1, max_size=9), max_size=8)


@settings(max_examples=50, deadline=None)
@given(EXAMPLES)
def test_examples_come_back_by_number(tmp_path_factory, examples):
    store = TokenStore(tmp_path_factory.mktemp("store") / "tokens")
    for example in examples:
        ids, trained = zip(*example, strict=True)
        store.append(np.array(ids, dtype=np.int32), np.array(trained))
    store.close()
    assert len(store) == len(examples)
    assert store.lengths.tolist() == [len(example) for example in examples]
    for number in reversed(range(len(examples))):
        ids, trained = store.read(number)
        assert ids.dtype == np.int32
        assert list(zip(ids.tolist(), trained.tolist(), strict=True)) == examples[number]
