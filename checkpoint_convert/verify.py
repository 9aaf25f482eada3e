"""Proof that a release computes what its checkpoint computes: the same prompts through both, logits side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.errors import ConversionError

# Text of both languages, digits, tashkeel and code, of different lengths; short enough for the smallest context.
PROMPTS = (
    "ما هي عاصمة الإمارات العربية المتحدة؟",
    "The highest mountain in the Emirates is",
    "العِلْمُ نُورٌ، وَالجَهْلُ ظَلَامٌ، وفي عام ٢٠٢٤",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Translate to Arabic: peace. الترجمة:",
)


@dataclass(frozen=True)
class LogitsReport:
    """How far the logits of a checkpoint and of a release lie apart.

    Attributes:
        prompts: how many prompts were read.
        positions: tokens at which all logits were compared.
        largest_difference: the largest absolute difference of any logit.
        largest_logit: the largest absolute logit of the reference path, for scale.
        same_choice: positions at which both put the same token first.
    """

    prompts: int
    positions: int
    largest_difference: float
    largest_logit: float
    same_choice: int


def compare_logits(checkpoint: str | Path, release: str | Path, config: Any = None) -> LogitsReport:
    """Run fixed Arabic and English prompts through the reference path and through transformers, both in float32.

    Args:
        checkpoint: the .mdl file.
        release: the Hugging Face directory; its tokenizer turns the prompts into ids (a release without one is given
            evenly spread ids instead). Its own code is run (`trust_remote_code`).
        config: DecoderConfig, where the checkpoint does not record it.

    Raises:
        UserError: a file that cannot be read or does not fit, or logits that are not finite: a difference from NaN says
            nothing.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from cerebras_jais.model.weights import load_model

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    ours = load_model(checkpoint, config)
    theirs = AutoModelForCausalLM.from_pretrained(release, trust_remote_code=True, local_files_only=True)
    theirs = theirs.float().eval()
    positions = same = 0
    difference = largest = 0.0
    prompts = _prompt_ids(Path(release), ours.config.vocab_size, ours.config.max_position_embeddings)
    with torch.inference_mode():
        for ids in prompts:
            row = torch.tensor([ids])
            mine, other = ours.logits(row)[0], theirs(input_ids=row).logits[0].float()
            for path, logits in ((checkpoint, mine), (release, other)):
                if not torch.isfinite(logits).all():
                    raise ConversionError(f"{path}: its logits are not all finite; look for NaN or inf in its weights")
            difference = max(difference, (mine - other).abs().max().item())
            largest = max(largest, mine.abs().max().item())
            positions += len(ids)
            same += int((mine.argmax(-1) == other.argmax(-1)).sum())
    return LogitsReport(len(prompts), positions, difference, largest, same)


def _prompt_ids(release: Path, vocab_size: int, longest: int) -> list[list[int]]:
    if (release / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(release / "tokenizer.json"))
        return [tokenizer.encode(text).ids[:longest] for text in PROMPTS]
    step = max(1, vocab_size // 64)
    return [[(start + i * step) % vocab_size for i in range(min(64, longest))] for start in range(len(PROMPTS))]
