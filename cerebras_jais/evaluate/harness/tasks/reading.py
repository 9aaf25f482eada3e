"""Reading comprehension on a file in SQuAD's format: its questions, its prompts, exact match and F1.

The two scores are SQuAD's own (evaluate-v1.1 and v2.0): over the answers that are given, the best one counts. What is
compared is normalised as there (lower case, no punctuation, no articles, single spaces), and Arabic text by the rules
of `normalised` as well, which leave a text without Arabic as SQuAD's rules have it.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebras_jais.data.clean.arabic import BIDI_CONTROLS, JOINERS, MARKS, TATWEEL
from cerebras_jais.data.clean.languages import detect_language
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, parse_json, read_bytes, shown_path

if TYPE_CHECKING:
    from datasets import Dataset

_LARGEST = 64 * MIB
_ARABIC_PUNCTUATION = "،؛؟٪٫٬٭۔«»"
_DROPPED = re.compile(f"[{MARKS}{TATWEEL}{JOINERS}{BIDI_CONTROLS}]")
_LETTERS = str.maketrans({"أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ة": "ه", "ؤ": "و", "ئ": "ي"})
_DIGITS = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹", "0123456789" * 2)
_PUNCTUATION = str.maketrans("", "", string.punctuation + _ARABIC_PUNCTUATION)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ARABIC_ARTICLE = re.compile(r"\bال(?=\w{2})")
_PROMPTS = {"ar": ("النص", "السؤال", "الجواب"), "en": ("Text", "Question", "Answer")}


def normalised(text: str) -> str:
    """A text as it is compared.

    SQuAD's rules, and for Arabic: no marks, tatweel, joiners or direction marks; the forms of alef, and hamza on waw
    and yeh, as the bare letter; alef maqsura as yeh, teh marbuta as heh; Arabic digits as 0 to 9; Arabic punctuation as
    punctuation; and no article ال before two or more letters, as English has no "the".
    """
    text = _DROPPED.sub("", text.lower()).translate(_LETTERS).translate(_DIGITS).translate(_PUNCTUATION)
    return " ".join(_ARABIC_ARTICLE.sub("", _ARTICLES.sub(" ", text)).split())


def exact_match(answer: str, gold: str) -> float:
    """1 where the normalised texts are equal, else 0."""
    return float(normalised(answer) == normalised(gold))


def f1(answer: str, gold: str) -> float:
    """The harmonic mean of precision and recall of the words, 0 to 1; a text without words equals only another."""
    mine, golden = normalised(answer).split(), normalised(gold).split()
    if not mine or not golden:
        return float(mine == golden)
    common = sum((Counter(mine) & Counter(golden)).values())
    if not common:
        return 0.0
    precision, recall = common / len(mine), common / len(golden)
    return 2 * precision * recall / (precision + recall)


def load(reading: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The questions of a file, whose name is in the metadata of the task; raises UserError."""
    from datasets import Dataset

    if reading is None:
        raise UserError("the task `reading` has no file; give one in SQuAD's format with --reading")
    return {"test": Dataset.from_list(list(questions(Path(reading))))}


def questions(file: Path) -> Iterator[dict[str, Any]]:
    """The questions of a file in SQuAD's format that have an answer, with their contexts; raises UserError."""
    where = shown_path(file)
    found = False
    try:
        tree = parse_json(read_bytes(file, _LARGEST).decode("utf-8-sig"), where)
        for article in tree["data"]:
            for paragraph in article["paragraphs"]:
                for number, question in enumerate(paragraph["qas"]):
                    answers = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
                    texts = [paragraph["context"], question["question"], *answers]
                    if not all(isinstance(text, str) for text in texts):
                        raise TypeError
                    if answers:
                        found = True
                        yield {
                            "id": str(question.get("id", number)),
                            "context": texts[0],
                            "question": texts[1],
                            "answers": answers,
                        }
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: is not in SQuAD's format (data, paragraphs, context and qas, with question and answers, each "
            "with text); give such a file with --reading"
        ) from error
    if not found:
        raise UserError(f"{where}: has no question with an answer; give another file with --reading")


def prompt(doc: dict[str, Any]) -> str:
    """Context and question, behind which the answer is wanted, in the language of the question."""
    language = "ar" if detect_language(doc["question"]) == "ar" else "en"
    text, question, answer = _PROMPTS[language]
    return f"{text}: {doc['context']}\n{question}: {doc['question']}\n{answer}:"


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Both scores of an answer against the best of the given ones."""
    return {
        "exact_match": max(exact_match(results[0], gold) for gold in doc["answers"]),
        "f1": max(f1(results[0], gold) for gold in doc["answers"]),
    }
