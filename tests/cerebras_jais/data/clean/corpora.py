"""Real texts that cleaning must not harm: of the bundled sample, or of XQuAD (tests marked `xquad`)."""

import unicodedata

import pytest

from cerebras_jais.data.documents import read_documents, sample_corpus_path
from tests.xquad import LANGUAGES, xquad_texts

every_corpus = pytest.mark.parametrize("corpus", ["sample", pytest.param("xquad", marks=pytest.mark.xquad)])


def texts_of(corpus, *languages):
    """The texts of the sample, or of XQuAD, in these languages, or in Arabic and English."""
    languages = languages or LANGUAGES
    if corpus == "xquad":
        return xquad_texts(*languages)
    return [document.text for document in read_documents(sample_corpus_path()) if document.language in languages]


def letters(text):
    """The letters of a text in order, tatweel left out."""
    return [char for char in text if unicodedata.category(char)[0] == "L" and char != "\u0640"]


def marks(text):
    """The combining marks of a text, sorted."""
    return sorted(char for char in text if unicodedata.category(char)[0] == "M")
