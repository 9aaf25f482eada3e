"""The one error of this folder."""

from __future__ import annotations

from cerebras_jais.errors import UserError


class VocabularyError(UserError):
    """A tokenizer or a choice of tokens that cannot be used; names the file or option and the remedy."""
