"""A model on this machine that answers questions: by the engine of `chat`, or by transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cerebras_jais.catalog.chat import chat_template
from cerebras_jais.chat.batch import identity_of_model
from cerebras_jais.chat.engine import Completion, card_sampling, check_device, open_engine
from cerebras_jais.chat.prompts import chat_prompt, release_template
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.chat.weights import Weights
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.judge.questions import Question
from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import CONFIG, GENERATION_CONFIG, has_chat_template
from checkpoint_convert.open_model import opening

_UNSAID = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
"""What transformers takes where generation_config.json does not say it."""


@dataclass(frozen=True)
class Writer:
    """A chat model.

    Attributes:
        identity: JSON values that change when its files do, or how it computes.
        sampling: how it answers where nothing else is said.
        prompt_ids: the tokens of a question in its prompt; raises UserError for one that it cannot read.
        complete: answers to such prompts, in their order.
    """

    identity: object
    sampling: Sampling
    prompt_ids: Callable[[Question], list[int]]
    complete: Callable[[Sequence[Sequence[int]], Sequence[Sampling]], list[Completion]]


def open_writer(
    path: Path,
    *,
    tokenizer: Path | None = None,
    config: Path | None = None,
    allow_pickle: bool = False,
    weights: Weights = "float32",
    device: str = "cpu",
    run_code: bool = False,
    as_chat: bool = False,
) -> Writer:
    """Open a chat model: of the family with the engine, any other release with transformers.

    Args:
        run_code: whether the code in a release may be run.
        as_chat: whether a model without a chat template gets the family's prompt, as Jais before the family needs.

    Other arguments are those of `open_engine`. Raises UserError for what cannot be opened or is no chat model.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a checkpoint (.mdl) or a release")
    check_device(device)
    computed = [weights, torch.device(device).type]
    if path.is_dir() and not _is_ours(path, allow_pickle, run_code):
        identity = ["transformers", identity_of_model(path, tokenizer=None, config=None), *computed]
        return _by_transformers(path, identity, weights, device, run_code, as_chat)
    engine = open_engine(
        path, tokenizer=tokenizer, config=config, allow_pickle=allow_pickle, weights=weights, device=device
    )
    if not as_chat:
        engine.check_chats()

    def prompt_ids(question: Question) -> list[int]:
        messages = [{"role": "user", "content": question.text}]
        if engine.is_chat:
            ids = engine.chat_ids(messages, question.language)
        else:
            ids = engine.encode(chat_prompt(messages, question.language, normalizer=engine.tokenizer.normalizer))
        engine.note_on(len(ids))
        return ids

    identity = [identity_of_model(path, tokenizer=tokenizer, config=config), *computed]
    return Writer(identity, engine.chat_sampling, prompt_ids, engine.complete)


def _is_ours(path: Path, allow_pickle: bool, run_code: bool) -> bool:
    """Whether the engine answers for a release: it is of the family, and has no other chat template.

    The special tokens of another template would be text to the engine. Raises UserError for a release of the family
    that cannot be read, such as a damaged one: without its code, transformers cannot open it, either.
    """
    if has_chat_template(path) and release_template(path) != chat_template():
        return False
    try:
        with opening(path, allow_pickle=allow_pickle):
            return True
    except UserError:
        if not run_code and read_json(path / CONFIG).get("model_type") == "jais":
            raise
        return False


def _by_transformers(
    path: Path, identity: object, weights: Weights, device: str, run_code: bool, as_chat: bool
) -> Writer:
    read_json(path / CONFIG)  # says what is no release better than transformers
    if weights == "int4":
        raise UserError(f"{path}: transformers opens it, which has no int4 weights; take bfloat16")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=run_code, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, trust_remote_code=run_code, local_files_only=True, dtype=weights
        )
        model.to(device).eval()
    except Exception as error:  # of the release's own code too
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        hint = "; --run-code lets the code in the release run" if "trust_remote_code" in str(error) else ""
        raise UserError(f"{path}: transformers cannot open it: {reason}{hint}") from error
    if not tokenizer.chat_template and not as_chat:
        raise UserError(
            f"{path}: has no chat template; give a model tuned on conversations, or --chat for Jais' prompt"
        )
    said = read_json(path / GENERATION_CONFIG) if (path / GENERATION_CONFIG).is_file() else {}

    def prompt_ids(question: Question) -> list[int]:
        messages = [{"role": "user", "content": question.text}]
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        else:
            text = chat_prompt(messages, question.language)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def complete(prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> list[Completion]:
        return [_complete(model, tokenizer, ids, sampling) for ids, sampling in zip(prompts, samplings, strict=True)]

    return Writer(identity, card_sampling({**_UNSAID, **said}), prompt_ids, complete)


def _complete(model: Any, tokenizer: Any, ids: Sequence[int], sampling: Sampling) -> Completion:
    drawn = {} if sampling.is_greedy else {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")}
    torch.manual_seed(sampling.seed or 0)
    prompt_BL = torch.tensor([list(ids)], device=model.device)
    made_BL = model.generate(
        prompt_BL,
        attention_mask=torch.ones_like(prompt_BL),
        do_sample=not sampling.is_greedy,
        max_new_tokens=sampling.max_new_tokens,
        repetition_penalty=sampling.repetition_penalty,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        **drawn,
    )
    new = made_BL[0, len(ids) :].tolist()
    ends = model.generation_config.eos_token_id
    stopped = bool(new) and new[-1] in (ends if isinstance(ends, list) else [ends])
    text = tokenizer.decode(new, skip_special_tokens=True)
    return Completion(text, tuple(new), "stop" if stopped else "length", len(ids))
