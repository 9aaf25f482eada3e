"""Checks that run a release: loading, logits, generation, bits per byte."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.release_directory import TOKENIZER
from checkpoint_convert.gate.report import Skipped, require_none
from checkpoint_convert.gate.subject import Subject
from checkpoint_convert.streaming.run import Progress

_TYPES = ("float32", "bfloat16", "float16")
_BITS_TOLERANCE = 0.01  # relative, assumed: what a quantised file of 8 bits may lose
_NEW_TOKENS = 16


def check_loading(subject: Subject) -> str:
    """transformers loads the model, with no weight missing, left over or of another shape."""
    transformers = _transformers()
    subject.check_size()
    model = subject.in_transformers("float32")
    return f"transformers {transformers.__version__}: {type(model).__name__}"


def check_logits(subject: Subject, progress: Progress) -> str:
    """The logits of transformers are those of the reference path, layer by layer."""
    _transformers()
    subject.check_size()
    from checkpoint_convert.verify.logits import compare_with_reference

    report = compare_with_reference(
        subject.path,
        trust_release_code=subject.trust_release_code,
        allow_pickle=subject.allow_pickle,
        progress=progress,
    )
    last = report.layers[-1]
    found = (
        f"largest difference {last.largest_difference:.2g} of logits up to {last.largest_magnitude:.3g}, "
        f"{report.positions} positions"
    )
    if report.first_departure is not None:
        raise ConversionError(
            f"{subject.path}: {found}: {report.first_departure} is the first that departs from the reference path; "
            "convert again"
        )
    return found


def check_generation(subject: Subject) -> str:
    """Greedy generation with a cache gives the tokens and the logits that it gives without one."""
    _transformers()
    subject.check_size()
    import torch

    from checkpoint_convert.verify.logits import PROMPTS, prompt_ids, relative_tolerance, transformers_errors

    model = subject.in_transformers("float32")
    config = model.config
    context = config.max_position_embeddings
    new = min(_NEW_TOKENS, context // 2)
    compared = 0
    for ids in prompt_ids(subject.path, PROMPTS[:2], config.vocab_size, context - new):
        prompt = torch.tensor([ids])
        with torch.inference_mode(), transformers_errors(subject.path):
            cached, whole = (_continued(model, prompt, new, use_cache=cached) for cached in (True, False))
        for number, (one, other) in enumerate(zip(cached, whole, strict=True)):
            magnitude = other.abs().max().item()
            bound = relative_tolerance("float32", config.num_hidden_layers) * magnitude
            difference = (one - other).abs().max().item()
            if not difference <= bound:
                raise ConversionError(
                    f"{subject.path}: token {number + 1} of a generation: logits with a cache differ from those "
                    f"without by {difference:.2g} of {magnitude:.3g}; the model code does not fit this transformers"
                )
            compared += 1
            if one.argmax() != other.argmax():  # two best within rounding: the texts part here
                break
    return f"{compared} tokens with a cache as without"


def _continued(model: Any, prompt: Any, new: int, *, use_cache: bool) -> Sequence[Any]:
    """The logits [V] of each token that greedy generation adds."""
    import torch
    from transformers import GenerationConfig

    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        use_cache=use_cache,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    # As an argument alone, transformers 4 would fill its defaults from the release's own: sampling, repetition penalty.
    model.generation_config = settings
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt))
    return [logits[0].float() for logits in out.logits]


def check_bits_per_byte(subject: Subject) -> str:
    """Bits per byte of the bundled text in each element type; those of the stored type are near float32's."""
    _transformers()
    subject.check_size()
    if not (subject.path / TOKENIZER).exists():
        raise Skipped(f"it has no {TOKENIZER}")
    found = {dtype: _bits_per_byte(subject, dtype) for dtype in _TYPES}
    text = ", ".join(f"{dtype} {bits:.4f}" for dtype, bits in found.items())
    with subject.opened() as (_, plan):
        needed = {"float32", plan.dtypes[0]} & found.keys()
    require_none(
        [
            f"{subject.path}: {dtype}: {found[dtype]:.4f} bits per byte ({text}); the weights do not load in the type "
            "in which they are stored"
            for dtype in sorted(needed)
            if not abs(found[dtype] - found["float32"]) <= _BITS_TOLERANCE * found["float32"]
        ]
    )
    return text


def _bits_per_byte(subject: Subject, dtype: str) -> float:
    """Each text alone, after an end-of-text token, predicts its tokens and its end, as `cerebras-jais score` has it."""
    import torch

    from checkpoint_convert.verify.logits import prompt_ids, transformers_errors

    model = subject.in_transformers(dtype)
    texts, config = bundled_texts(), model.config
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id or 0
    nats = 0.0
    for ids in prompt_ids(subject.path, texts, config.vocab_size, 2**31):
        row, length = torch.tensor([[end, *ids, end]]), config.max_position_embeddings
        for start in range(0, row.shape[1] - 1, length):
            piece = row[:, start : start + length + 1]
            with torch.inference_mode(), transformers_errors(subject.path):
                logits = model(input_ids=piece[:, :-1], use_cache=False).logits.float()
            nats += torch.nn.functional.cross_entropy(logits[0], piece[0, 1:], reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def bundled_texts() -> list[str]:
    """The first document of each file of the sample that this package brings."""
    folder = files("cerebras_jais") / "data" / "sample"
    names = ("arabic.jsonl", "english.jsonl", "code.jsonl")
    return [json.loads((folder / name).read_text(encoding="utf-8").partition("\n")[0])["text"] for name in names]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise Skipped("transformers is not installed; install cerebras_jais[eval]") from None
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers
