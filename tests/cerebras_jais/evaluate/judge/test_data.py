"""The files of the package: FastChat's as they were, whole Arabic questions, a NOTICE, and all of it in the wheel."""

import configparser
import hashlib
import unicodedata
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest

from cerebras_jais.data.clean.languages import detect_language
from cerebras_jais.evaluate.judge.asking import judge_prompts
from cerebras_jais.evaluate.judge.questions import DATA, read_questions

ROOT = Path(__file__).parents[4]
# `git ls-tree` of FastChat's commit 0e6d3e4b: fastchat/llm_judge/data/vicuna_bench/question.jsonl, judge_prompts.jsonl
BLOBS = {
    "vicuna_en.jsonl": "223642384936578e66cf127936251dda6a51d595",
    "judge_prompts.jsonl": "4ec7524cbcdf308766fddc52df31e203316ad75f",
}
CATEGORIES = {
    **dict.fromkeys(
        ("generic", "knowledge", "roleplay", "common-sense", "fermi", "counterfactual", "writing"),
        10,
    ),
    "coding": 7,
    "math": 3,
}


@pytest.mark.parametrize("name", BLOBS)
def test_a_file_of_fastchat_is_the_blob_of_its_repository_that_the_notice_names(name):
    content = (DATA / name).read_bytes()
    assert hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == BLOBS[name]
    assert name in (DATA / "NOTICE").read_text()


def test_the_notice_names_source_commit_licence_and_changes():
    notice = (DATA / "NOTICE").read_text()
    for said in (
        "github.com/lm-sys/FastChat",
        "0e6d3e4beaab66f4d3f93db72541a4abab8af28d",
        "Apache License, Version 2.0",
    ):
        assert said in notice
    assert notice.count("unchanged") == 2


def test_every_file_is_in_the_wheel():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["cerebras_jais.evaluate.judge"].split(", ")
    names = sorted(file.name for file in DATA.iterdir())
    assert names == ["NOTICE", "judge_prompts.jsonl", "vicuna_ar.jsonl", "vicuna_en.jsonl"]
    assert all(any(fnmatch(f"data/{name}", pattern) for pattern in patterns) for name in names)


@pytest.mark.parametrize(("name", "language"), [("vicuna-en", "en"), ("vicuna-ar", "ar")])
def test_a_set_has_80_questions_in_nine_categories_in_its_language(name, language):
    found = read_questions(name)
    assert [question.id for question in found] == list(range(1, 81))
    assert Counter(question.category for question in found) == CATEGORIES
    assert len({question.text for question in found}) == 80
    assert {question.language for question in found} == {language}
    assert {detect_language(question.text) for question in found} == {language}


def test_the_arabic_questions_are_clean_and_have_references_where_a_judge_needs_them():
    found = read_questions("vicuna-ar")
    for question in found:
        text = question.text + (question.reference or "")
        assert unicodedata.is_normalized("NFC", text)
        assert "\u0640" not in text and not any(unicodedata.category(char) in ("Cf", "Co", "Cn") for char in text)
        assert question.text == " ".join(question.text.split())
        assert (question.reference is not None) == question.needs_reference
        assert question.text.endswith((".", "؟"))


def test_the_four_prompts_of_one_turn_are_known_by_name():
    assert {"pair-v2", "pair-math-v1", "single-v1", "single-math-v1"} <= set(judge_prompts())
