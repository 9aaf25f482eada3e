"""Contract: what is invisible goes and is counted, presentation forms become letters, marks come in one order; no other
letter changes, no mark is lost, and text that is normalised stays as it is."""

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.clean.arabic import MarkOrder, Normalisation, normalise
from tests.cerebras_jais.data.clean.corpora import every_corpus, letters, marks, texts_of

DEFAULT = Normalisation()
FATHA, DAMMATAN, KASRA, SHADDA, SUPERSCRIPT_ALEF = "\u064e", "\u064c", "\u0650", "\u0651", "\u0670"
MADDA, HAMZA_ABOVE, HAMZA_BELOW = "\u0653", "\u0654", "\u0655"
ZWNJ, ZWJ, ZWSP, BOM, RLM = "\u200c", "\u200d", "\u200b", "\ufeff", "\u200f"


def normalised(text, language="ar", settings=DEFAULT):
    changes = Counter()
    return normalise(text, language, settings, changes), dict(+changes)


KEPT = {
    "tashkeel": f"مُحَم{SHADDA}{FATHA}دٌ رَسُولُ",
    "superscript alef and Quranic marks": f"ٱلر{SHADDA}{FATHA}حْمَـ{SUPERSCRIPT_ALEF}نِ ۝ ۖ ۩",
    "alef variants": "أحمد إسلام آمن ٱلله ا",
    "teh marbuta and alef maqsura": "مدرسة على هدى",
    "hamza forms": "سؤال شيء بئر مسؤول",
    "both sets of digits": "١٢٣ 123 ۴۵۶",
    "punctuation": "«نعم»، ثم؛ لماذا؟ ٥٠٪",
    "joiner between letters": f"می{ZWNJ}خواهم",
    "joiner between digit and letter": f"۱۰{ZWNJ}ساله",
    "joined emoji": f"👨{ZWJ}👩{ZWJ}👧 ❤\ufe0f{ZWJ}🔥",
    "no-break space": "10\u00a0كم",
    "tatweel that ends a word": 'بـ 233 لـ "ال" الـ400 هـ.',
    "tatweel alone": "نعم ـــ لا",
    "tatweel that carries a mark": f"ٱلْعَـ{SUPERSCRIPT_ALEF}لَمِينَ",
    "signs": "ﷺ ﷻ ﷼ ﷽",
    "what NFKC rewrites": "x³ ¼ … ™ ﬁ ２",
    "Persian letters": "گچپژ کی",
    "tabs and line feeds": "أ\tب\n\nج",
    "characters beyond U+FFFF": "𝒜 😅",
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_kept(case):
    assert normalised(KEPT[case]) == (KEPT[case], {})


CHANGED = {
    "tatweel between letters": ("كتـــاب بـغداد", "كتاب بغداد", {"tatweel": 4}),
    "tatweel after a mark": ("مُحَـمّد", "مُحَمّد", {"tatweel": 1}),
    "tatweel before one with a mark": (f"عـــ{FATHA}ب", f"عـ{FATHA}ب", {"tatweel": 2}),
    "zero-width spaces": (f"أغنيتهم {ZWSP}{ZWSP}الأكثر", "أغنيتهم الأكثر", {"zero_width_spaces": 2}),
    "byte order mark at the start": (f"{BOM}لقد", "لقد", {"byte_order_marks": 1}),
    "byte order mark after a line feed": (f"نعم؟\n{BOM}لقد", "نعم؟\nلقد", {"byte_order_marks": 1}),
    "byte order mark between words": (f"كتابٌ{BOM}جديد", "كتابٌ جديد", {"byte_order_marks": 1}),
    "bidi controls": (f"{RLM}\u202bفي\u202c \u2067عام\u2069\u061c", "في عام", {"bidi_controls": 6}),
    "control characters": ("أ\x00ب\x1fج\x7f\x9fد", "أبجد", {"controls": 4}),
    "line ends": ("أ\r\nب\rج\x0cد\x85ه", "أ\nب\nج\nد\nه", {"line_ends": 4}),
    "joiner at the edge of a word": (f"نعم{ZWNJ} {ZWJ}لا{ZWNJ}", "نعم لا", {"joiners": 3}),
    "joiner before a mark": (f"ل{ZWNJ}{FATHA}ا", f"ل{FATHA}ا", {"joiners": 1}),
    "presentation forms": ("ﻣﺪﺭﺳﺔ", "مدرسة", {"presentation_forms": 5}),
    "lam alef keeps its hamza": ("ﻷ ﻹ ﻵ ﻻ", "لأ لإ لآ لا", {"presentation_forms": 4}),
    "forms of Persian letters": ("ﭘﭽﮊﮔ ﯾ", "پچژگ ی", {"presentation_forms": 5}),
    "the ligature Allah": ("ﷲ", "الله", {"presentation_forms": 1}),
    "form of a mark alone": ("بﹶ", f"ب{FATHA}", {"presentation_forms": 1}),
    "form of a mark on a tatweel": ("ﹷ", f"ـ{FATHA}", {"presentation_forms": 1}),
    "form of shadda and a vowel": ("بﱞ", f"ب{SHADDA}{DAMMATAN}", {"presentation_forms": 1, "mark_order": 1}),
    "alef and madda": (f"ا{MADDA}من", "آمن", {"composed": 1}),
    "alef and hamza": (f"ا{HAMZA_ABOVE}حمد ا{HAMZA_BELOW}لى", "أحمد إلى", {"composed": 2}),
    "waw and yeh with hamza": (f"سو{HAMZA_ABOVE}ال بي{HAMZA_ABOVE}ر", "سؤال بئر", {"composed": 2}),
    "no such letter": (f"و{MADDA} ا{MADDA}{HAMZA_ABOVE}", f"و{MADDA} آ{HAMZA_ABOVE}", {"composed": 1}),
    "hamza after a vowel": (f"ا{FATHA}{HAMZA_ABOVE}حمد", f"أ{FATHA}حمد", {"composed": 1}),
    "shadda after a vowel": (f"شد{FATHA}{SHADDA}", f"شد{SHADDA}{FATHA}", {"mark_order": 1}),
    "shadda among marks": (
        f"ل{KASRA}{SUPERSCRIPT_ALEF}{SHADDA}", f"ل{SHADDA}{KASRA}{SUPERSCRIPT_ALEF}", {"mark_order": 1}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_what_changes(case):
    text, expected, changes = CHANGED[case]
    assert normalised(text) == (expected, changes)


OPTIONS = {
    "nfc puts the vowel first": (f"شد{SHADDA}{FATHA}", {"mark_order": MarkOrder.NFC}, f"شد{FATHA}{SHADDA}", {"nfc": 1}),
    "nfc composes Latin too": ("e\u0301", {"mark_order": MarkOrder.NFC}, "é", {"nfc": 1}),
    "as written": (f"ا{MADDA}{FATHA}{SHADDA}", {"mark_order": MarkOrder.AS_WRITTEN}, f"ا{MADDA}{FATHA}{SHADDA}", {}),
    "signs spelt out": ("محمد ﷺ", {"spell_out_signs": True}, "محمد صلى الله عليه وسلم", {"signs": 1}),
    "Persian letters in Arabic": ("فی کتابی", {"persian_letters": True}, "في كتابي", {"persian_letters": 3}),
    "not with gaf": ("فی گوگل", {"persian_letters": True}, "فی گوگل", {}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case):
    text, options, expected, changes = OPTIONS[case]
    assert normalised(text, settings=Normalisation(**options)) == (expected, changes)


def test_persian_letters_stay_in_documents_of_other_languages():
    assert normalised("این کتاب", "fa", Normalisation(persian_letters=True)) == ("این کتاب", {})


ALPHABET = st.sampled_from(
    "ابتهوييىةأآإئكلم" + "\u064b\u064e\u064f\u0650\u0651\u0652\u0653\u0654\u0655\u0670\u06d6" + "ـــ" + "پچگکی"
    "\u200b\u200c\u200d\u200e\u200f\u202a\u2066\ufeff\u061c" "\x00\x1f\r\n\t\x0c\x85\x7f "
    "ﺍﺎﻷﻻﷲﹷﹶﱞﭘﯾﷺ" "aé1٣،.😅"
)  # fmt: skip
TEXTS = st.text(st.one_of(ALPHABET, ALPHABET, st.characters()))
SETTINGS = st.builds(Normalisation, st.sampled_from(MarkOrder), st.booleans(), st.booleans())


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.sampled_from(["ar", "fa", "en"]), SETTINGS)
def test_normalised_text_stays_as_it_is(text, language, settings):
    once, _ = normalised(text, language, settings)
    assert normalised(once, language, settings) == (once, {})


def with_letters_for_forms(text):
    """NFKC of the Arabic presentation forms alone, canonically decomposed."""
    return unicodedata.normalize(
        "NFD",
        "".join(
            unicodedata.normalize("NFKC", char)
            if ("\ufb50" <= char <= "\ufdff" or "\ufe70" <= char <= "\ufefc") and char not in "\ufdfa\ufdfb\ufdfc"
            else char
            for char in text
        ),
    )


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.sampled_from(MarkOrder))
def test_no_letter_but_tatweel_and_no_mark_is_lost(text, order):
    found = unicodedata.normalize("NFD", normalised(text, settings=Normalisation(order))[0])
    expected = with_letters_for_forms(text)
    assert letters(found) == letters(expected)
    assert marks(found) == marks(expected)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ابوييهلaé \u064b\u064e\u0650\u0651\u0652\u0653\u0654\u0655\u0670\u06d6")))
def test_the_order_of_marks_is_canonically_equivalent(text):
    assert unicodedata.normalize("NFD", normalised(text)[0]) == unicodedata.normalize("NFD", text)


@every_corpus
def test_no_letter_of_real_text_changes_and_every_mark_stays(corpus):
    for text in texts_of(corpus):
        found, _ = normalised(text)
        assert letters(found) == letters(text)
        assert marks(found) == marks(text)
        assert normalised(found) == (found, {})
