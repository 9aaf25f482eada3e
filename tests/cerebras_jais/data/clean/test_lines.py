"""Contract: C4's rules keep prose in Arabic as in English; lines of symbols go."""

from collections import Counter

import pytest

from cerebras_jais.data.clean.lines import without_page_lines, without_symbol_lines
from cerebras_jais.data.clean.presets import C4
from cerebras_jais.data.clean.quality import Reason

PROSE = [
    "هل قرأت هذا الكتاب؟",
    "قال لي: «لا أدري».",
    "وصلنا إلى البيت!",
    "She said “we are late”",
    "It was already dark.",
]


def page(*lines):
    changes = Counter()
    return without_page_lines("\n".join(lines), C4.page, changes), changes["page_lines"]


def test_lines_that_end_a_sentence_or_a_quotation_stay():
    assert page(*PROSE) == ("\n".join(PROSE), 0)


@pytest.mark.parametrize(
    "line",
    [
        "القائمة الرئيسية للموقع",
        "اقرأ المزيد من الأخبار...",
        "اقرأ المزيد من الأخبار…",
        "نعم نعم.",
        "word " * 3 + "x" * 1001 + ".",
        "Please enable JavaScript in your browser.",
        "يرجى تفعيل جافا سكريبت في المتصفح.",
        "بالدخول توافق على سياسة الخصوصية لدينا.",
    ],
)
def test_a_line_that_is_no_prose_is_removed_and_counted(line):
    assert page(PROSE[0], f"  {line}", "", *PROSE[1:]) == ("\n".join(PROSE), 1)


@pytest.mark.parametrize("line", ["Lorem Ipsum dolor sit amet.", "function main() { return 1; }"])
def test_a_page_with_what_no_prose_has_is_dropped(line):
    assert page(*PROSE, line)[0] == Reason.REFUSED_PHRASE


def test_a_page_of_fewer_than_five_sentences_is_dropped():
    assert page(*PROSE[:4])[0] == Reason.TOO_FEW_SENTENCES
    assert page("نعم. لا. ربما؟ لا أدري! هل تعرف؟") == ("نعم. لا. ربما؟ لا أدري! هل تعرف؟", 0)


def test_lines_of_symbols_go_and_empty_lines_stay():
    changes = Counter()
    assert without_symbol_lines("أ | ب\n|\n\n | | \nج", "|", changes) == "أ | ب\n\nج"
    assert changes == {"symbol_lines": 2}
