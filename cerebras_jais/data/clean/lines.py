"""Single lines removed from a document: C4's rules for web pages, with Arabic punctuation and phrases, and symbols."""

from __future__ import annotations

import re
from collections import Counter

from cerebras_jais.data.clean.presets import PageRules
from cerebras_jais.data.clean.quality import ELLIPSES, TERMINAL, Reason

# A quotation may end a line, as in C4, whose list has the two ASCII quotation marks.
_LINE_ENDS = (*TERMINAL, '"', "'", "\u00bb", "\u201d", "\u2019")
_SENTENCE_END = re.compile(f"[{re.escape(''.join(sorted(TERMINAL)))}](?!\\S)|[{re.escape(''.join(_LINE_ENDS))}]$", re.M)


def without_page_lines(text: str, rules: PageRules, changes: Counter[str]) -> str | Reason:
    """Return the text with the lines that keep the rules, stripped, or the reason to drop all of it.

    Counts the lines that are removed as "page_lines".
    """
    lowered = text.lower()
    if any(phrase in lowered for phrase in rules.refused):
        return Reason.REFUSED_PHRASE
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if _is_prose(line, rules)]
    changes["page_lines"] += sum(map(bool, lines)) - len(kept)
    text = "\n".join(kept)
    if len(_SENTENCE_END.findall(text)) < rules.minimum_sentences:
        return Reason.TOO_FEW_SENTENCES
    return text


def _is_prose(line: str, rules: PageRules) -> bool:
    words = line.split()
    if len(words) < rules.minimum_words or max(map(len, words)) > rules.longest_word:
        return False
    if not line.endswith(_LINE_ENDS) or line.endswith(ELLIPSES):
        return False
    lowered = line.lower()
    return not any(phrase in lowered for phrase in rules.removed)


def without_symbol_lines(text: str, symbols: str, changes: Counter[str]) -> str:
    """Return the text without the lines of nothing but these symbols and spaces; counts them as "symbol_lines"."""
    lines = text.split("\n")
    kept = [line for line in lines if line.strip(symbols + " ") or not line.strip()]
    changes["symbol_lines"] += len(lines) - len(kept)
    return "\n".join(kept)
