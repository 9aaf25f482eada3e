"""A release seen in the Cerebras layout has the tensors of the checkpoint that it was made of.

Contract: bit for bit, whole and in bands of rows, for every kind of operation: transposed, stacked, rotated.
"""

import numpy as np
import pytest

from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.open_model import opening
from checkpoint_convert.streaming.layout import in_cerebras_layout
from checkpoint_convert.streaming.run import bands
from tests.checkpoint_convert.examples import DTYPES, VARIANTS, random_model, state_of, write_checkpoint
from tests.marks import slow_except


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", slow_except(["jais-20-heads-untied", "llama-40-heads-grouped"], VARIANTS))
def test_a_release_has_the_tensors_of_its_checkpoint(tmp_path, name, dtype):
    checkpoint = write_checkpoint(
        tmp_path / "c.mdl", VARIANTS[name], state_of(random_model(VARIANTS[name]), DTYPES[dtype])
    )
    convert_to_hf(checkpoint, tmp_path / "release")
    with opening(checkpoint) as first, opening(tmp_path / "release") as second:
        views = in_cerebras_layout(second.config, second.side, second.tensors)
        assert views.keys() == first.tensors.keys()
        for tensor, view in views.items():
            kept = first.tensors[tensor].read()
            assert (view.shape, view.dtype, view.nbytes) == (kept.shape, first.tensors[tensor].dtype, kept.nbytes)
            np.testing.assert_array_equal(view.read().view(np.uint8), kept.view(np.uint8))
            for start, rows in bands(view, 4, 1000):
                np.testing.assert_array_equal(rows.view(np.uint8), kept[start : start + len(rows)].view(np.uint8))
