"""The names of the files in a release directory.

The names of weight files are in `safetensors` and `torch_bin`, those of the code of a Jais release in `release`.
"""

from __future__ import annotations

import os
from pathlib import Path

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.json_files import read_json

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
CARD = "README.md"
NOTICE = "NOTICE"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
OLD_CHAT_TEMPLATE = "chat_template.json"
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE,
    OLD_CHAT_TEMPLATE,
    "additional_chat_templates/*.jinja",
)
CODE_SUFFIXES = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"})
WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
    | {".h5", ".msgpack", ".gguf", ".onnx", ".npy", ".npz", ".mdl"}
)
"""Suffixes of weights and pickles, which a loader may load."""


def names_in(release: Path) -> list[str]:
    """Names of the files in a release and below it, sorted, with `/` between the parts.

    A link to a directory is named and not followed. Hidden directories (.git, the cache of a download) are left out:
    transformers loads nothing from them.

    Raises:
        ConversionError: a directory cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ConversionError(f"{error.filename}: cannot be read: {error.strerror}") from error

    names: list[str] = []
    for directory, folders, files in os.walk(release, onerror=refuse):
        here = Path(directory)
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        links = [folder for folder in folders if (here / folder).is_symlink()]
        names += [(here / name).relative_to(release).as_posix() for name in (*files, *links)]
    return sorted(names)


def has_chat_template(release: Path) -> bool:
    """Whether a release has a chat template, in its own file or, as older ones, in tokenizer_config.json."""
    if (release / CHAT_TEMPLATE).is_file():
        return True
    try:
        return "chat_template" in read_json(release / TOKENIZER_CONFIG)
    except ConversionError:  # absent, or damaged, which is for those to report who use the tokenizer
        return False
