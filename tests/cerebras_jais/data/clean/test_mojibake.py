"""Contract: UTF-8 that was read as Windows-1256, Windows-1252 or Latin-1 comes back exactly; what only looks like it
stays."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.clean.mojibake import repair_mojibake
from tests.cerebras_jais.data.clean.corpora import every_corpus, texts_of

TEXT = "السلام عليكم ورحمة الله، «مرحبًا» بكم في 2024؟"


def repaired(text):
    changes = Counter()
    return repair_mojibake(text, changes), changes["mojibake"]


def misread(text, code_page):
    """As software reads it that keeps the bytes that the code page leaves undefined."""
    return "".join(bytes([byte]).decode(code_page, "ignore") or chr(byte) for byte in text.encode("utf-8"))


code_pages = pytest.mark.parametrize("code_page", ["cp1256", "cp1252", "latin-1"])


@code_pages
def test_a_misread_text_is_read_back(code_page):
    assert repaired(misread(TEXT, code_page)) == (TEXT, 1)


@code_pages
def test_only_the_damaged_part_changes(code_page):
    sound = "نص سليم فيه § 5 و Ø 12 mm و £ و ×.\n"
    assert repaired(sound + misread(TEXT, code_page) + "\n" + sound) == (sound + TEXT + "\n" + sound, 1)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "§ 5, Ø 12 mm, Â£ 3, 4 × 5 ÷ 2, 20 °C, Ûber, Øresund, Ù",
        "فقط، وسط؛ لحظ؟ حفظ» خط… ط© ظ®",
        "الحروف: ض، ط، ظ، ع",
        "Ã©tÃ© and â€œquotesâ€\x9d",  # mojibake of Latin text, which has no share of Arabic to raise
        "Ø§Ù",  # cut off: two bytes of a letter, then half of one
        "ط§ظ",
        "غگغگ عکس ظک",
    ],
)
def test_what_only_looks_like_mojibake_stays(text):
    assert repaired(text) == (text, 0)


@every_corpus
@code_pages
def test_real_text_stays_and_is_read_back_where_it_is_misread(corpus, code_page):
    for text in texts_of(corpus):
        assert repaired(text) == (text, 0)
        found = repaired(misread(text, code_page))[0]
        assert found == text or not re.search("[ء-ْ]{2}", text)


@settings(deadline=None)
@given(st.text(st.sampled_from("طظعغØÙÚÛ§¨©،؛€پ\x81\xa0 aâ„¢")))
def test_repaired_text_stays_as_it_is(text):
    once, _ = repaired(text)
    assert repaired(once) == (once, 0)
