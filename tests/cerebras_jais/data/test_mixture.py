"""Contract: at any place of a mixture each source has its share of the tokens within half of a document; every document
of a source comes once before one comes twice; the order depends on seed, name, shard and number alone; what is repeated
and left over is known beforehand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.documents import DataError
from cerebras_jais.data.mixture import Band, Source, folder_weights, mix
from cerebras_jais.data.order import mixture_indices
from cerebras_jais.data.token_store import Store
from tests.cerebras_jais.data.stores import tokens_of

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)
WEIGHTS = st.sampled_from([980, 490, 196, 1, 0.25, 3.7])


def store(*shards):
    """Documents of given lengths."""
    return Store([tokens_of([[7] * length for length in lengths]) for lengths in shards])


def source_of(mixture, sources):
    """Of each document drawn, the source."""
    firsts = np.cumsum([len(source.store) for source in sources])
    return np.searchsorted(firsts, mixture.order, side="right")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(LENGTHS, WEIGHTS), min_size=1, max_size=4), st.none() | st.integers(61, 400), st.integers(0, 9)
)
def test_at_every_place_each_source_has_its_share_within_half_of_a_document(given_sources, tokens, seed):
    sources = [Source(str(n), store(lengths), weight) for n, (lengths, weight) in enumerate(given_sources)]
    shares = np.array([source.weight for source in sources]) / sum(source.weight for source in sources)
    mixture = mix(sources, tokens=tokens, seed=seed)
    drawn_of, lengths = source_of(mixture, sources), mixture.store.lengths[mixture.order]
    longest = np.array([source.store.lengths.max() for source in sources])
    so_far = np.zeros(len(sources))
    for origin, length in zip(drawn_of, lengths, strict=True):
        total = (so_far[origin] + length / 2) / shares[origin]
        assert (abs(so_far - total * shares) <= longest / 2 + 1e-6).all()
        so_far[origin] += length
        assert (abs(so_far - total * shares) <= longest / 2 + 1e-6).all()
    wanted = min(source.store.tokens / share for source, share in zip(sources, shares, strict=True))
    wanted = wanted if tokens is None else tokens
    assert (abs(so_far - wanted * shares) <= longest / 2 + 1e-6).all()
    assert [part.tokens for part in mixture.parts] == so_far.tolist()
    assert mixture.tokens == so_far.sum()


@settings(max_examples=80, deadline=None)
@given(LENGTHS, LENGTHS, st.integers(1, 300))
def test_a_document_comes_again_only_when_all_others_have_come(first, second, tokens):
    sources = [Source("a", store(first), 2), Source("b", store(second), 1)]
    mixture = mix(sources, tokens=tokens + 30)
    drawn_of = source_of(mixture, sources)
    for origin, (source, part) in enumerate(zip(sources, mixture.parts, strict=True)):
        times = np.bincount(mixture.order[drawn_of == origin] - (len(first) if origin else 0), minlength=part.there)
        assert len(times) == part.there == len(source.store)
        assert times.max() - times.min() <= 1
        assert (part.times > 1) == (times.max() > 1)
        assert part.documents == times.sum()


def test_without_a_number_of_tokens_the_first_source_to_end_is_seen_once():
    sources = [Source("long", store([10] * 90), 1), Source("short", store([10] * 20), 1)]
    mixture = mix(sources)
    assert [(part.documents, part.times) for part in mixture.parts] == [(20, 20 / 90), (20, 1.0)]
    assert list(mixture.lines()) == [
        "long: 50.00% of the tokens, 50.00% asked; 20 of 90 documents drawn, 200 of 900 tokens",
        "  left over: 70 documents",
        "short: 50.00% of the tokens, 50.00% asked; 20 of 20 documents drawn, 200 of 200 tokens",
    ]


def test_repeats_are_said_with_the_place_where_they_begin():
    sources = [Source("long", store([10] * 90), 3), Source("short", store([10] * 20), 1)]
    mixture = mix(sources, tokens=1200)
    assert "  repeated: seen 1.50 times, again from 800 tokens of all on" in list(mixture.lines())
    order = mixture.order[source_of(mixture, sources) == 1] - 90
    assert sorted(order[:20]) == list(range(20))
    assert order[20:].tolist() != order[:10].tolist(), "another order when it begins again"
    place = np.flatnonzero(source_of(mixture, sources) == 1)[20]
    assert abs(mixture.store.lengths[mixture.order[:place]].sum() - 800) <= 20
    assert mixture.record()[1] == {
        "source": "short",
        "asked": 0.25,
        "achieved": 0.25,
        "documents": 30,
        "tokens": 300,
        "documents_there": 20,
        "tokens_there": 200,
    }


def test_the_order_of_a_source_depends_on_seed_name_shard_and_number_alone():
    def order(name="a", others=(), seed=1, shards=((5,) * 40, (5,) * 40)):
        sources = [*others, Source(name, store(*shards), 1)]
        mixture = mix(sources, seed=seed)
        first = sum(len(source.store) for source in others)
        return [number - first for number in mixture.order.tolist() if number >= first]

    assert order() == order(others=[Source("other", store([3] * 500), 1)])
    assert len({tuple(order()), tuple(order(seed=2)), tuple(order(name="b"))}) == 3
    grown = order(shards=((5,) * 40, (5,) * 40, (5,) * 10))
    assert [number for number in grown if number < 80] == order(), "a shard more changes the place of no other document"
    assert order() != sorted(order())


def test_bands_choose_by_length_and_say_how_many_long_documents_there_are():
    sources = [Source("texts", store([5] * 50 + [40] * 5), 1), Source("code", store([6] * 30), 1)]
    mixture = mix(sources, tokens=600, bands=[Band(0, 0.5), Band(32, 0.5)])
    parts = {(part.source, part.least): part for part in mixture.parts}
    assert set(parts) == {("texts", 0), ("texts", 32), ("code", 0)}, "no band without a document"
    assert (parts["texts", 32].there, parts["texts", 32].tokens, parts["texts", 32].share) == (5, 160, 0.25)
    assert parts["code", 0].share == 0.5, "its bands share what the one without documents had"
    assert parts["texts", 32].repeats_from == 800
    drawn = mixture.store.lengths[mixture.order]
    assert drawn[drawn > 6].sum() == 160
    short = [Source("short", store([2]), 1)]
    with pytest.raises(DataError, match="no document of 8 tokens or more, the longest has 2"):
        mix(short, bands=[Band(8, 1.0)])


def test_only_the_documents_that_are_given_are_drawn():
    shards = ((4, 9, 4, 9), (4, 4, 9, 4))
    chosen = np.array([0, 3, 5])
    mixture = mix([Source("a", store(*shards), 1, chosen), Source("b", store((5,) * 40), 1)])
    assert sorted(mixture.order[mixture.order < 8]) == chosen.tolist()
    assert (mixture.parts[0].there, mixture.parts[0].tokens_there) == (3, 17)
    with pytest.raises(DataError, match="source a has no document"):
        mix([Source("a", store(*shards), 1, chosen[:0])])


def test_what_cannot_be_mixed_is_refused_by_name():
    good = Source("a", store([3]), 1)
    for sources, said in (
        ([], "names of their own"),
        ([good, good], "names of their own"),
        ([good, Source("empty", Store([]), 1)], "source empty has no document"),
        ([good, Source("b", store([1]), 0)], "source b has weight 0"),
    ):
        with pytest.raises(DataError, match=said):
            mix(sources)
    with pytest.raises(DataError, match="bands must rise"):
        mix([good], bands=[Band(5, 1), Band(0, 1)])
    for tokens, said in ((0, "0 tokens"), (1, "less than half of any first document")):
        with pytest.raises(DataError, match=said):
            mix([good], tokens=tokens)


def test_folder_weights_give_the_shares_of_tokens_in_the_order_of_the_model_zoo():
    rows = {"ar": (300, 300 * 50), "en": (500, 500 * 100)}  # rows half full, and full
    parts = folder_weights(rows, {"ar": 1, "en": 2})
    assert [part["data_dir"] for part in parts] == ["ar", "en"]
    source, _ = mixture_indices([300, 500], [part["weight"] for part in parts], interleave=True, seed=0)
    tokens = np.bincount(source) * [50, 100]
    assert tokens[1] / tokens[0] == pytest.approx(2, rel=0.01)
