"""Reading comprehension: SQuAD's scores, Arabic normalisation, and files that are not in the format.

Contract: on text without Arabic, exact match and F1 are those of the published formulas, written out here anew; a model
that answers as the file does gets 1 and 1; each rule of Arabic normalisation has its row in a table.
"""

import json
import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.harness.tasks.reading import exact_match, f1, normalised, prompt, questions, score

WORDS = st.lists(
    st.sampled_from(["a", "The", "an", "cat's", "dog", "dog,", "theatre", "1,000", "U.S.", "-", "é", "!", "an-other"]),
    max_size=6,
).map(" ".join)


def official(text):
    """SQuAD v1.1's normalize_answer, as its paper's script describes it."""
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def official_f1(answer, gold):
    """SQuAD v2.0's compute_f1."""
    mine, golden = official(answer).split(), official(gold).split()
    if not mine or not golden:
        return float(mine == golden)
    same = sum((Counter(mine) & Counter(golden)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(mine), same / len(golden)
    return 2 * precision * recall / (precision + recall)


@given(WORDS, WORDS)
def test_scores_of_text_without_arabic_are_squads(answer, gold):
    assert exact_match(answer, gold) == float(official(answer) == official(gold))
    assert f1(answer, gold) == official_f1(answer, gold)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("مُحَمَّدٌ", "محمد"),
        ("كتـــاب", "كتاب"),
        ("أحمد إبراهيم آدم ٱسم", "احمد ابراهيم ادم اسم"),
        ("مستشفى", "مستشفي"),
        ("مدرسة", "مدرسه"),
        ("مسؤول سائل", "مسوول سايل"),
        ("١٩٧١ ۲۰", "1971 20"),
        ("نعم، لا؛ لماذا؟ «قول»", "نعم لا لماذا قول"),
        ("الكتاب", "كتاب"),
        ("المدرسة الكبيرة", "مدرسه كبيره"),
        ("ألف ال", "الف ال"),
        ("وقال", "وقال"),
        ("\u200fالإمارات\u200e", "امارات"),
        ("می\u200cخواهم", "میخواهم"),
        ("The قمر", "قمر"),
    ],
)
def test_arabic_is_normalised_by_these_rules(text, wanted):
    assert normalised(text) == wanted


def test_f1_counts_words_that_are_there_twice_twice():
    assert f1("قطة قطة كلب", "القطة الكلب الكلب") == pytest.approx(2 / 3)


def write(path, *pairs):
    qas = [{"question": question, "answers": [{"text": text} for text in answers]} for question, answers in pairs]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "نص", "qas": qas}]}]}))
    return path


def test_a_model_that_answers_as_the_file_does_gets_everything_right(tmp_path):
    file = write(tmp_path / "s.json", ("سؤال؟", ["جواب", "ردّ آخر"]), ("question?", ["the answer"]), ("none?", []))
    read = list(questions(file))
    assert [doc["question"] for doc in read] == ["سؤال؟", "question?"]
    for doc in read:
        for gold in doc["answers"]:
            assert score(doc, [f" {gold} "]) == {"exact_match": 1.0, "f1": 1.0}
    assert prompt(read[0]) == "النص: نص\nالسؤال: سؤال؟\nالجواب:"
    assert prompt(read[1]) == "Text: نص\nQuestion: question?\nAnswer:"


@pytest.mark.parametrize("content", ["[]", '{"data": 1}', '{"data": [{"paragraphs": [{"qas": []}]}]}', "{", "\ud800"])
def test_another_file_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "s.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"s\.json"):
        list(questions(tmp_path / "s.json"))
