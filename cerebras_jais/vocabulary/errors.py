"""The error of this folder."""

from cerebras_jais.errors import UserError


class VocabularyError(UserError):
    """Tokenizers or checkpoints that do not fit together. The message names the file and says what to do."""
