"""The check that runs a release in llama.cpp, from a GGUF file of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.release_directory import TOKENIZER
from checkpoint_convert.gate.report import Skipped
from checkpoint_convert.gate.subject import Subject, installed_transformers
from checkpoint_convert.streaming.run import Progress

TOLERANCE = 1e-2
"""Largest difference of a log-probability, in nats; assumed. In float32 rounding gives about 1e-5."""
_COMPARED = 20  # the most likely tokens


def check_gguf(subject: Subject, progress: Progress) -> str:
    """llama.cpp, with a GGUF file of the release in float32, gives the next token the log-probabilities that
    transformers gives."""
    xllamacpp = _installed()
    if installed_transformers() is None:
        raise Skipped("transformers is not installed; install cerebras_jais[eval]")
    subject.check_size()
    if not (subject.path / TOKENIZER).exists():
        raise Skipped(f"it has no {TOKENIZER}")
    import torch

    from checkpoint_convert.llamacpp.convert import convert_to_gguf
    from checkpoint_convert.verify.logits import PROMPTS, prompt_ids, transformers_errors

    with tempfile.TemporaryDirectory(prefix="release-check-") as folder:
        file = Path(folder) / "model.gguf"
        try:
            convert_to_gguf(subject.path, file, type_="f32", allow_pickle=subject.allow_pickle, progress=progress)
        except ConversionError as error:
            raise Skipped(f"llama.cpp cannot have it: {error}") from error
        model = subject.in_transformers("float32")
        config = model.config
        *rows, (*_, letter) = prompt_ids(
            subject.path, [*PROMPTS, "a"], config.vocab_size, config.max_position_embeddings - 1
        )
        prefixes = [row[:end] for row in rows for end in sorted({(len(row) + 1) // 2, len(row)})]
        server = _server(xllamacpp, file, max(map(len, prefixes)) + 1)
        largest = 0.0
        for ids in prefixes:
            with torch.inference_mode(), transformers_errors(subject.path):
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            expected = logits.double().log_softmax(-1)
            for token, found in _most_likely(server, ids, letter).items():
                largest = max(largest, abs(found - expected[token].item()))
    if not largest <= TOLERANCE:
        raise ConversionError(
            f"{subject.path}: log-probabilities in llama.cpp differ from those in transformers by {largest:.2g}, more "
            f"than {TOLERANCE:g}; this release of llama.cpp computes another model"
        )
    return f"largest difference {largest:.2g} of log-probabilities after {len(prefixes)} prefixes"


def _installed() -> Any:
    try:
        import gguf  # noqa: F401  the conversion needs it
        import xllamacpp
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed; install cerebras_jais[gguf] and xllamacpp") from error
    return xllamacpp


def _server(xllamacpp: Any, file: Path, context: int) -> Any:
    """llama.cpp with a model on the processor, keys and values in 32 bits, so that nothing is rounded."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
    params.port, params.warmup, params.verbosity = 0, False, -1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def _most_likely(server: Any, ids: Sequence[int], letter: int) -> Mapping[int, float]:
    """The most likely next tokens in llama.cpp, with their log-probabilities.

    llama.cpp gives none beside a token that ends the text or that is a part of a letter. It is therefore made to choose
    a letter; the log-probabilities are those before that.
    """
    answer = server.handle_completions(
        {
            "prompt": list(ids),
            "max_tokens": 1,
            "logprobs": _COMPARED,
            "logit_bias": [[letter, 1000.0]],
            "cache_prompt": False,
        }
    )
    (choice,) = answer["choices"]
    (token,) = choice["logprobs"]["content"]
    return {one["id"]: one["logprob"] for one in token["top_logprobs"]}
