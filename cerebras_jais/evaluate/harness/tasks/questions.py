"""Where the questions of the task files beside this one come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def bundled(name: str, **_: Any) -> dict[str, Dataset]:
    """The questions of a file in this folder."""
    from datasets import Dataset

    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def all_parts(path: str, split: str, **_: Any) -> dict[str, Dataset]:
    """A split of a data set with all its parts, one behind the other; each question says which part it is of.

    Args:
        path: of a folder, or the name on the Hugging Face hub.
    """
    from datasets import concatenate_datasets, get_dataset_config_names, load_dataset

    found = []
    for name in sorted(get_dataset_config_names(path)):
        part = load_dataset(path, name, split=split)
        found.append(part.add_column("part", [name] * len(part)))
    return {"test": concatenate_datasets(found)}


def options_of(doc: dict[str, Any]) -> list[str]:
    """The options of a question of MadinahQA, which has two to five."""
    return [doc[f"Option {number}"] for number in range(1, 6) if doc[f"Option {number}"]]


def madinahqa_prompt(doc: dict[str, Any]) -> str:
    """A question of MadinahQA behind its context, where it has one."""
    context = f"{doc['Context']}\n\n" if doc["Context"] else ""
    options = "".join(f"{letter}. {option}\n" for letter, option in zip("أبجده", options_of(doc), strict=False))
    return f"{context}السؤال: {doc['Question']}\n{options}الجواب:"


def madinahqa_letters(doc: dict[str, Any]) -> list[str]:
    """The letters of its options."""
    return list("أبجده"[: len(options_of(doc))])


def madinahqa_answer(doc: dict[str, Any]) -> int:
    """The number of its right option."""
    return "ABCDE".index(doc["Answer Key"])
