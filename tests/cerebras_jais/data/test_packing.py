"""Contract: packing loses no token and adds only end of text and padding; every trained label is the token that
follows its input in the same document (or, in a stream, in the stream); packed documents see only themselves."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.documents import DataError
from cerebras_jais.data.packing import pack_stream, pack_vsl
from tests.cerebras_jais.data.stores import store_of

EOS, PAD = 0, 1


def random_documents(seed, count=200, longest=70):
    """Documents whose tokens are all different, so that a token tells where it came from."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, size=count)
    ends = np.cumsum(lengths) + 10
    return [list(range(end - n, end)) for n, end in zip(lengths, ends, strict=True)]


@pytest.mark.parametrize("length", [1, 2, 7, 16, 64, 100_000])
def test_stream_predicts_every_token_but_the_first_exactly_once(length):
    documents = random_documents(1)
    stream = [t for d in documents if d for t in (*d, EOS)]
    packed = pack_stream(store_of(documents, EOS), length, EOS)
    rows = list(packed)
    ids, mask, labels = np.stack(rows).transpose(1, 0, 2).reshape(3, -1)
    used = mask == 1
    assert ids[used].tolist() == stream[:-1]
    assert labels[used].tolist() == stream[1:]
    assert (ids[~used] == EOS).all()
    assert (labels[~used] == EOS).all()
    assert all(row.dtype == np.int32 and row.shape == (3, length) for row in rows)
    assert np.all(np.diff(mask) <= 0), "padding only at the very end"
    report = packed.report
    assert (report.documents, report.tokens, report.rows) == (sum(map(bool, documents)), len(stream), len(rows))
    assert report.fill == pytest.approx((len(stream) - 1) / (len(rows) * length))


def test_stream_of_a_known_case():
    rows = list(pack_stream(store_of([[11, 12, 13], [21, 22]], 99), 4, 7))
    assert rows[0].tolist() == [[11, 12, 13, 99], [1, 1, 1, 1], [12, 13, 99, 21]]
    assert rows[1].tolist() == [[21, 22, 7, 7], [1, 1, 0, 0], [22, 99, 7, 7]]
    assert len(rows) == 2


def test_stream_that_ends_on_a_row_has_no_row_of_padding():
    assert len(list(pack_stream(store_of([[11, 12, 13, 14]], EOS), 4, EOS))) == 1
    assert list(pack_stream(store_of([], EOS), 4, EOS)) == []


@pytest.mark.parametrize("length", [1, 2, 7, 16, 64, 128])
@pytest.mark.parametrize("window", [10, 10**6])
def test_vsl_trains_each_token_of_each_document_once(length, window):
    documents = random_documents(2)
    packed = pack_vsl(store_of(documents, EOS), length, PAD, window=window)
    rows = np.stack(list(packed))
    assert rows.dtype == np.int32
    ids, mask, labels, _, _ = rows.transpose(1, 0, 2).reshape(5, -1)
    pairs = sorted(zip(ids[mask == 1].tolist(), labels[mask == 1].tolist(), strict=True))
    expected = sorted((a, b) for d in documents for a, b in itertools.pairwise([*d, EOS]))
    assert pairs == expected
    assert (ids[mask == 0] == PAD).all()
    assert packed.report.documents == sum(map(bool, documents))
    assert packed.report.tokens == sum(len(d) + 1 for d in documents if d)
    assert packed.report.trained_positions == len(expected)


@pytest.mark.parametrize("length", [5, 16, 128])
def test_vsl_documents_attend_only_within_themselves(length):
    """The mask, built from attention_span as the Model Zoo defines it, against what the tokens say."""
    documents = random_documents(3, count=80)
    document_of = {token: i for i, d in enumerate(documents) for token in d}
    for row in pack_vsl(store_of(documents, EOS), length, PAD):
        ids, mask, _, span, position = row
        q, k = np.indices((length, length))
        seen = (q >= k) & (q - k <= span[k])
        owner = np.array([document_of[t] if m else -1 - i for i, (t, m) in enumerate(zip(ids, mask, strict=True))])
        assert np.array_equal(seen, (q >= k) & (owner[q] == owner[k]))
        starts = np.flatnonzero((position == 0) & (mask == 1))
        assert len(starts) == len({o for o in owner if o >= 0}), "each document lies in one piece"
        assert (np.diff(ids)[(mask[1:] == 1) & (position[1:] > 0)] == 1).all()
        assert (span[mask == 0] == 0).all()
        assert (position[mask == 0] == 0).all()


def test_vsl_of_a_known_case_with_a_folded_document():
    rows = list(pack_vsl(store_of([[21, 22], [11, 12, 13, 14, 15, 16, 17]], 99), 5, 7))
    assert sorted(row.tolist() for row in rows) == [
        [[11, 12, 13, 14, 15], [1] * 5, [12, 13, 14, 15, 16], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4]],
        [[21, 22, 16, 17, 7], [1, 1, 1, 1, 0], [22, 99, 17, 99, 7], [1, 0, 1, 0, 0], [0, 1, 0, 1, 0]],
    ]


def test_vsl_row_order_is_shuffled_but_repeatable():
    store = store_of(random_documents(4, count=100), EOS)
    first, again, other = (np.stack(list(pack_vsl(store, 64, PAD, seed=s))) for s in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    documents_per_row = (first[:, 4] == 0).sum(1)
    assert not np.all(np.diff(documents_per_row) >= 0)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=40),
    st.integers(1, 24),
    st.lists(st.integers(0, 39), max_size=60),
    st.integers(0, 2**32),
    st.sampled_from([3, 1000]),
)
def test_every_document_of_an_order_is_found_token_for_token_as_often_as_it_comes(
    lengths, context, order, seed, window
):
    """Documents of tokens that are all different: so a token tells its document, and labels that cross one show."""
    ends = np.cumsum(lengths) + 10
    documents = [list(range(end - n, end)) for n, end in zip(lengths, ends.tolist(), strict=True)]
    order = [number % len(documents) for number in order] or list(range(len(documents)))
    store = store_of(documents, EOS)

    rows = list(pack_stream(store, context, PAD, order=np.array(order)))
    ids, mask, labels = np.stack(rows).transpose(1, 0, 2).reshape(3, -1)
    stream = [int(ids[0]), *labels[mask == 1].tolist()]
    assert stream == [token for number in order for token in (*documents[number], EOS)]

    packed = pack_vsl(store, context, PAD, order=np.array(order), seed=seed, window=window)
    parts = defaultdict(Counter)
    for ids, mask, labels, span, position in packed:
        start, filled = 0, int(mask.sum())
        assert mask[:filled].all()
        while start < filled:
            end = start + int(span[start]) + 1
            assert position[start:end].tolist() == list(range(end - start))
            assert span[start:end].tolist() == list(range(end - start))[::-1]
            piece = [*ids[start:end].tolist(), int(labels[end - 1])]
            assert labels[start : end - 1].tolist() == piece[1:-1], "labels are the inputs shifted by one"
            (owner,) = {int(np.searchsorted(ends, token, side="right")) for token in piece if token != EOS}
            parts[owner][tuple(piece)] += 1
            start = end
    assert packed.report.documents == len(order)
    for number, times in Counter(order).items():
        whole = [*documents[number], EOS]
        cut = [tuple(whole[at : at + context + 1]) for at in range(0, len(whole) - 1, context)]
        assert parts.pop(number) == Counter(dict.fromkeys(cut, times)), "whole, or in parts that follow each other"
    assert not parts


def test_length_below_1_is_refused():
    for packed in (pack_stream, pack_vsl):
        with pytest.raises(DataError):
            packed(store_of([[1]], EOS), 0, PAD)
