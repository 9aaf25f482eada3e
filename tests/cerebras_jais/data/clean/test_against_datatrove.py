"""Contract: where words are split the same way, the presets decide as datatrove's own filters do, for the same reason.

Needs datatrove and spaCy, which none of the environments has; benchmarks/cleaning.py counts what our splitter changes.
"""

import pytest

from benchmarks.cleaning import FIRST_BROKEN, Datatrove, shuffled_documents
from cerebras_jais.data.clean.presets import FINEWEB2_ARABIC, FINEWEB_ENGLISH
from cerebras_jais.data.clean.quality import SYMBOLS, TERMINAL, find_reason
from cerebras_jais.data.documents import read_documents, sample_corpus_path
from tests.xquad import xquad_files

pytest.importorskip("datatrove")
pytest.importorskip("spacy")


@pytest.mark.parametrize(("language", "rules"), [("ar", FINEWEB2_ARABIC), ("en", FINEWEB_ENGLISH)])
@pytest.mark.parametrize("corpus", ["sample", pytest.param("xquad", marks=pytest.mark.xquad)])
def test_decisions_and_reasons_are_those_of_datatrove(corpus, language, rules):
    path = sample_corpus_path() if corpus == "sample" else xquad_files()[language == "en"]
    texts = [document.text for document in read_documents(path) if document.language == language]
    filters = Datatrove(language, rules)
    reasons = set()
    for text in [*texts, *shuffled_documents(texts, 300, seed=1, damaged=True)]:
        words = filters.words(text)
        expected = filters.reason(text)
        reason = find_reason(text, language, rules, lambda *_, words=words: words)
        assert reason == (expected and FIRST_BROKEN[expected]), text
        reasons.add(reason)
    assert len(reasons) >= 7


def test_symbols_and_ends_of_sentences_are_datatroves_but_those_of_other_scripts():
    from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION

    assert set(TERMINAL) <= TERMINAL_PUNCTUATION
    assert set(SYMBOLS) <= PUNCTUATION_SET
    controls = {char for char in PUNCTUATION_SET if not char.isprintable()}
    assert PUNCTUATION_SET - TERMINAL_PUNCTUATION - controls <= set(SYMBOLS)
