"""What is known not to work with a layout as the hub has it, and the commands that make a repaired copy.

Each line rests on the release's own files and the installed transformers, or on what its docstring names.
"""

from __future__ import annotations

import ast
import importlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import TOKENIZER_CONFIG, TOKENIZER_FILES
from checkpoint_convert.formats.safetensors import INDEX, SINGLE
from checkpoint_convert.gate.subject import Subject
from checkpoint_convert.verify.release_code import read_code

_OLD_KEYS = {
    "embeddings_scale": "mup_embeddings_scale",
    "width_scale": "mup_output_alpha * mup_width_scale",
    "scale_qk_dot_by_d": "mup_scale_qk_dot_by_d",
}


def known_problems(subject: Subject) -> Iterator[str]:
    """What does not work with the release as it is, one line each; nothing of it is run.

    Sources: the code of the release itself; vLLM's pull request 43784; the code of the first Jais releases as in
    transformers' pull request 32436; the snippet of the model card, which sets the padding token.
    """
    keys = subject.config_json
    if keys.get("model_type") != "jais":
        if keys.get("pad_token_id") is None:
            yield "no pad token in config.json: set pad_token = eos_token before padding a batch, as the card does"
        return
    code = read_code(subject.path)
    if code.problems or not code.files:
        for name, content in code.files.items():
            yield from _imports_that_fail(name, content)
        for where, what in code.elsewhere.items():
            yield f"{where}: {what}, another repository, so loading downloads and runs code from there"
        if any(b"past_key_values[0][0]" in content for content in code.files.values()):
            yield (
                "modeling_jais.py keeps keys and values as tuples only; transformers 5 gives its cache objects to "
                "`generate`, so generation with a cache fails there"
            )
        yield (
            "in bfloat16 and float16 the published code rounds ALiBi's distances from 256 and 2,048 tokens on, and its "
            "first version drops ALiBi under gradient checkpointing"
        )
    yield "vLLM has no class of its own for Jais after release 0.22; this package has a plugin (docs/serving.md)"
    old = [f"{key} ({new})" for key, new in _OLD_KEYS.items() if key in keys]
    if old:
        yield f"config.json has keys of the first Jais code: {', '.join(old)}; other programs may ignore them"
    if "tie_word_embeddings" not in keys:
        yield "config.json does not say tie_word_embeddings: programs whose default is false look for a separate head"


def _imports_that_fail(name: str, content: bytes) -> Iterator[str]:
    """The names that a Python file imports from transformers and that the installed one does not have."""
    try:
        import transformers

        tree = ast.parse(content)
    except (ImportError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    absent: list[str] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level or not (node.module or "").startswith("transformers"):
            continue
        try:
            module = importlib.import_module(str(node.module))
        except Exception:
            absent.append(str(node.module))
            continue
        absent += [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
    if absent:
        yield f"{name} imports {', '.join(absent)}, which transformers {transformers.__version__} does not have"


def repair_commands(subject: Subject) -> tuple[str, ...]:
    """The two commands that make a release of this package from a published one, in the current directory."""
    path, name = subject.path, subject.path.resolve().name
    pickled = not any((path / file).is_file() for file in (INDEX, SINGLE))
    tokenizer = any(file.is_file() for pattern in TOKENIZER_FILES for file in path.glob(pattern))
    checkpoint, copy = Path(f"{name}.mdl"), Path(f"{name}-repaired")
    there = [shlex.quote(str(word)) for word in (path, checkpoint, copy)]
    return (
        f"checkpoint-convert to-cerebras {there[0]} --output {there[1]}" + (" --allow-pickle" if pickled else ""),
        f"checkpoint-convert to-hf {there[1]} --output {there[2]} --card card.yaml"
        + (f" --tokenizer {there[0]}" if tokenizer else "")
        + _chat_option(subject),
    )


def _chat_option(subject: Subject) -> str:
    """--chat for a release whose name says that it is a chat model, though it has no template."""
    try:
        has_template = "chat_template" in read_json(subject.path / TOKENIZER_CONFIG)
    except ConversionError:
        has_template = False
    return " --chat" if has_template or subject.path.resolve().name.endswith("-chat") else ""
