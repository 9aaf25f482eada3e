"""The quick start of the family's model card and the two prompts in it, as published."""

import ast
from pathlib import Path

QUICK_START = (Path(__file__).parent / "card_quick_start.txt").read_text(encoding="utf-8")
_STRINGS = {
    target.id: node.value.value
    for node in ast.parse(QUICK_START).body
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    for target in node.targets
    if isinstance(target, ast.Name)
}
MODEL_PATH = _STRINGS["model_path"]
PROMPTS = {"ar": _STRINGS["prompt_ar"], "en": _STRINGS["prompt_eng"]}


def prompt(language: str, question: str) -> str:
    """The prompt of a question, as the card makes it."""
    return PROMPTS[language].format_map({"Question": question})


def quick_start(path: Path) -> str:
    """The quick start with the path of a release in place of the model's name."""
    assert QUICK_START.count(f'"{MODEL_PATH}"') == 1
    return QUICK_START.replace(f'"{MODEL_PATH}"', repr(str(path)))
