"""Contract: words are runs of letters, digits and marks; symbols stand alone; nothing but white space is left out."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.clean.words import split_words

ZWNJ = "\u200c"
CASES = {
    "Arabic": ("ar", "ذهبتُ إلى المدرسةِ، ثم عدتُ؟", "ذهبتُ|إلى|المدرسةِ|،|ثم|عدتُ|؟"),
    "joiners and tatweel are inside": ("ar", f"می{ZWNJ}خواهم بـ \u200fفي", f"می{ZWNJ}خواهم|بـ|\u200fفي"),
    "numbers": ("ar", "1,234.5 ١٢٫٥ 12/11/2024 10:30 1939–1945 -18", "1,234.5|١٢٫٥|12/11/2024|10:30|1939–1945|-18"),
    "Arabic full stop after a letter": ("ar", "قال نعم.", "قال|نعم|."),
    "after a mark, a digit or a bracket": ("ar", "حقاً. عام 2007. (نعم). لا.", "حقاً.|عام|2007.|(|نعم).|لا|."),
    "quotation marks and brackets": ("ar", "«نعم» [1] \"لا\"", "«|نعم|»|[|1|]|\"|لا|\""),
    "runs of full stops": ("ar", "نعم... لا…", "نعم|...|لا|…"),
    "English": ("en", "It's the 2nd well-known case, isn't it?", "It|'s|the|2nd|well|-|known|case|,|isn|'t|it|?"),
    "English full stop after a digit": ("en", "In 2007. Yes.", "In|2007|.|Yes|."),
    "initials": ("en", "The U.S. and J. Smith, e.g. here.", "The|U.S.|and|J.|Smith|,|e.g.|here|."),
    "hyphen before a digit": ("en", "oxygen-18, 7-day, 3-4", "oxygen-18|,|7|-|day|,|3|-|4"),
    "Latin marks and emoji": ("en", "cafe\u0301 😅😅", "cafe\u0301|😅|😅"),
    "white space only": ("en", " \n\t\u00a0", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_words(case):
    language, text, expected = CASES[case]
    assert split_words(text, language) == [word for word in expected.split("|") if word]


@settings(deadline=None)
@given(
    st.text(st.one_of(st.sampled_from("ابًّ. -'1٢,:/)]»\"aé…\u200c\ufeff\n"), st.characters())),
    st.sampled_from(["ar", "en"]),
)
def test_words_hold_all_of_a_text_but_its_white_space(text, language):
    words = split_words(text, language)
    assert "".join(words) == re.sub(r"\s", "", text)
    assert all(words)
