"""XQuAD's questions and answers as conversations, and its files, for tests marked `xquad`; not a test itself."""

import json
import os
from pathlib import Path

import pytest

LANGUAGES = ("ar", "en")


def xquad_files():
    """The Arabic and the English file of XQuAD; skips where XQUAD_DIR does not name their folder."""
    folder = os.environ.get("XQUAD_DIR")
    if not folder:
        pytest.skip("XQUAD_DIR is not set")
    return [Path(folder, f"xquad.{language}.json") for language in LANGUAGES]


def xquad_texts(*languages):
    """The contexts and questions of XQuAD in some languages, 1,430 texts of each."""
    texts = []
    for file in [file for file, language in zip(xquad_files(), LANGUAGES, strict=True) if language in languages]:
        for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                texts += [paragraph["context"], *(qa["question"] for qa in paragraph["qas"])]
    return texts


def write_xquad_conversations(path):
    """Each question with its answer as one line, and all those of a paragraph as one of several turns; their number."""
    lines = []
    for file, language in zip(xquad_files(), LANGUAGES, strict=True):
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        for paragraph in [paragraph for article in articles for paragraph in article["paragraphs"]]:
            pairs = [(qa["question"], qa["answers"][0]["text"]) for qa in paragraph["qas"]]
            lines += [{"prompt": question, "response": answer} for question, answer in pairs]
            if len(pairs) > 1:
                turns = [(("user", question), ("assistant", answer)) for question, answer in pairs]
                messages = [{"role": role, "content": text} for turn in turns for role, text in turn]
                lines.append({"messages": messages, "language": language, "source": "xquad"})
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return len(lines)
