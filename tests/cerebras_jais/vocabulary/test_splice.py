"""Splicing pieces into byte-pair encoding, on small random vocabularies.

Contract: the segmentation is that of `tokenizers`; a base of random merges keeps its segmentation of every text without
a new letter; every new piece is reached from its own text; exactly so many are added as there is room for, if there are
enough; what is asked for twice is added once.
"""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from cerebras_jais.vocabulary.splice import Reason, splice

OLD, NEW = "abc", "xyz"
# An old letter stands for the space, which is only ever the first.
WANTED = st.lists(st.from_regex(f"a?[{NEW}]{{1,6}}", fullmatch=True), max_size=25)


@st.composite
def bases(draw, every_split):
    """Pieces with ids, and merges with ranks, learnt by joining neighbours at random; a new letter may be there."""
    pieces = [*OLD, *draw(st.sampled_from(["", "x"]))]
    merges = {}
    for _ in range(draw(st.integers(0, 8))):
        left, right = draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces))
        piece = left + right
        if piece in pieces or len(piece) > 8 or (every_split and segment(pieces, merges, piece) != [left, right]):
            continue
        pieces.append(piece)
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))] if every_split else [(left, right)]
        for pair in splits:
            if pair[0] in pieces and pair[1] in pieces:
                merges[pair] = len(merges)
    return pieces, merges


def bpe(pieces, merges):
    ids = {piece: number for number, piece in enumerate(pieces)}
    return Tokenizer(models.BPE(vocab=ids, merges=sorted(merges, key=merges.get)))


def segment(pieces, merges, text):
    return bpe(pieces, merges).encode(text).tokens


def extended(base, wanted, room, every_split):
    pieces, merges = base
    grown = splice(pieces, merges, wanted, room, every_split=every_split)
    everything = [*pieces, *grown.added]
    new = grown.merges({piece: number for number, piece in enumerate(everything)})
    return grown, bpe(everything, {pair: rank for rank, pair in enumerate([*sorted(merges, key=merges.get), *new])})


@given(st.booleans().flatmap(lambda s: st.tuples(bases(s), st.just(s))), WANTED, st.integers(0, 40), st.data())
def test_every_new_piece_is_reached_and_old_texts_stay(drawn, wanted, room, data):
    base, every_split = drawn
    grown, tokenizer = extended(base, wanted, room, every_split)
    assert [piece for piece in grown.added if tokenizer.encode(piece).tokens != [piece]] == []
    text = data.draw(st.text(alphabet=OLD, max_size=30))
    assert tokenizer.encode(text).tokens == segment(*base, text)
    text = data.draw(st.text(alphabet=OLD + NEW, max_size=30)).translate({ord(c): None for c in NEW if c not in grown})
    assert grown.segment(text) == tokenizer.encode(text).tokens


@given(WANTED, st.integers(0, 40))
def test_no_more_are_added_than_there_is_room_for_and_all_where_there_is_enough(wanted, room):
    every, _ = extended((list(OLD), {}), wanted, 10_000, True)
    assert set(wanted) <= set(every.added)
    grown, _ = extended((list(OLD), {}), wanted, room, True)
    assert len(grown.added) <= room


def test_a_wanted_neighbour_pair_is_the_way_to_a_longer_piece():
    """Without the wish for yz, the shortest pair of neighbours comes first, the left one of two."""
    grown, _ = extended((list("abxyz"), {}), ["xyz", "yz"], 10, False)
    assert grown.added == {"yz": Reason.TOKEN, "xyz": Reason.TOKEN}
    grown, _ = extended((list("abxyz"), {}), ["xyz"], 10, False)
    assert grown.added == {"xy": Reason.INTERMEDIATE, "xyz": Reason.TOKEN}


def test_merges_of_the_base_that_cut_across_a_piece_do_not_keep_it_from_being_reached():
    """The donor has xy + z; the base joins yz first, so the merge is x + yz."""
    grown, tokenizer = extended((["x", "y", "z", "yz"], {("y", "z"): 0}), ["xy", "xyz"], 10, False)
    assert grown.merges({}) == [("x", "y"), ("x", "yz")]
    assert tokenizer.encode("xyz").tokens == ["xyz"]


def test_what_does_not_fit_is_passed_over_for_what_does():
    grown, _ = extended((list("wxyz"), {}), ["wxyz", "xy"], 1, False)
    assert list(grown.added) == ["xy"]
