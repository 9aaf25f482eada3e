"""Contract: a document comes back cleaned, with its language and what was changed, or is dropped for one fixed reason;
code is left as it is; rules of quality are those of the document's language."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.clean.arabic import Normalisation
from cerebras_jais.data.clean.cleaner import Cleaned, Cleaner, CleanerSettings, Dropped
from cerebras_jais.data.clean.quality import Reason
from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.errors import UserError
from tests.cerebras_jais.data.clean.corpora import every_corpus, letters, marks, texts_of

MOJIBAKE = "السلام عليكم".encode().decode("cp1256")


def clean(text, language=None, **settings):
    return Cleaner(CleanerSettings(**settings))(text, language)


CASES = {
    "nothing to do": ("نعم يا صديقي", None, {}, Cleaned("نعم يا صديقي", "ar", {})),
    "several changes": (
        f"\ufeff{MOJIBAKE} كتـاب", None, {},
        Cleaned("السلام عليكم كتاب", "ar", {"mojibake": 1, "byte_order_marks": 1, "tatweel": 1}),
    ),
    "the source's tag is kept": ("نعم يا صديقي", "arz", {}, Cleaned("نعم يا صديقي", "arz", {})),
    "mojibake left": (MOJIBAKE, None, {"mojibake": False}, Cleaned(MOJIBAKE, "ur", {})),
    "characters left": ("كتـاب", None, {"normalisation": None}, Cleaned("كتـاب", "ar", {})),
    "Persian letters in an Arabic document": (
        "إنها فی المدرسة الجديدة", None, {"normalisation": Normalisation(persian_letters=True)},
        Cleaned("إنها في المدرسة الجديدة", "ar", {"persian_letters": 1}),
    ),
    "code": ("x = '\u200fكتـاب'\r\n", "code", {"languages": ("code",)}, Cleaned("x = '\u200fكتـاب'\r\n", "code", {})),
    "code under rules": ("x = 1", "code", {"quality": "fineweb"}, Cleaned("x = 1", "code", {})),
    "another language under rules": ("Это", None, {"quality": "fineweb"}, Cleaned("Это", "und", {})),
    "empty": (" \n", None, {}, Dropped(Reason.EMPTY, None)),
    "empty once it is cleaned": ("\ufeff\u200b\n", "ar", {}, Dropped(Reason.EMPTY, "ar")),
    "half a character": ("نعم \ud83d", None, {}, Dropped(Reason.LONE_SURROGATE, None)),
    "unwanted": ("yes", None, {"languages": ("ar",)}, Dropped(Reason.UNWANTED_LANGUAGE, "en")),
    "unwanted code": ("x = 1", "code", {"languages": ("ar",)}, Dropped(Reason.UNWANTED_LANGUAGE, "code")),
    "not what its source says": ("yes", "ar", {"check_language": True}, Dropped(Reason.OTHER_LANGUAGE, "ar")),
    "what its source says": ("نعم", "ar", {"check_language": True}, Cleaned("نعم", "ar", {})),
    "broken rules": ("نعم " * 60, None, {"quality": "fineweb"}, Dropped(Reason.TOP_NGRAM, "ar")),
    "broken rules of pages": ("Menu\nHome", None, {"quality": "c4"}, Dropped(Reason.TOO_FEW_SENTENCES, "en")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_document(case):
    text, language, settings, expected = CASES[case]
    assert clean(text, language, **settings) == expected


def test_pages_lose_the_lines_that_are_no_prose():
    prose = "هل قرأت هذا الكتاب؟ نعم. لا. ربما. لا أدري."
    assert clean(f"القائمة\n{prose}", quality="c4") == Cleaned(prose, "ar", {"page_lines": 1})


def test_what_cannot_be_loaded_is_refused_before_the_first_document():
    with pytest.raises(UserError, match="no such rules"):
        clean("نعم", quality="best")
    with pytest.raises(UserError, match="no such file"):
        clean("نعم", language_model="nowhere")


@settings(deadline=None)
@given(st.text(st.characters(codec=None)))
def test_any_string_is_cleaned_to_a_text_or_dropped(text):
    found = clean(text, quality="fineweb")
    assert isinstance(found, Cleaned | Dropped)
    if isinstance(found, Cleaned):
        assert found.text.encode("utf-8")


HOSTILE = [
    "a.",
    "\u064e",
    "ـ",
    "لـ",
    "\ufeff",
    "\u200c",
    "طآ",
    "Ø§",
    "Ø§ a",
    ")",
    "ب)",
    "1,",
    "\n",
    "a\n",
    "؟ ",
    "نعم ",
]


@pytest.mark.parametrize("part", HOSTILE)
@pytest.mark.parametrize("rest", ["", "b", "َّ"])
def test_long_runs_take_no_more_than_linear_time(part, rest):
    # A step that took quadratic time would need hours.
    for quality in ("fineweb", "c4", "jais"):
        assert isinstance(clean("نعم" + part * 100_000 + rest, quality=quality), Cleaned | Dropped)


@every_corpus
def test_real_text_keeps_its_letters_and_marks_and_is_clean_afterwards(corpus):
    cleaner = Cleaner(CleanerSettings())
    for text in texts_of(corpus):
        found = cleaner(text, None)
        assert letters(found.text) == letters(text)
        assert marks(found.text) == marks(text)
        assert cleaner(found.text, found.language) == Cleaned(found.text, found.language, {})


def test_the_sample_is_kept_but_its_short_documents_under_the_rules_of_the_jais_paper():
    cleaner = Cleaner(CleanerSettings(quality="jais"))
    found = [cleaner(document.text, document.language) for document in read_documents(sample_corpus_path())]
    assert all(isinstance(document, Cleaned) for document in found)
