"""The engine writes what transformers' `generate` writes, token for token.

Contract: greedy answers to 100 Arabic and English prompts of each family equal transformers', one prompt at a time, as
batches of unequal lengths, and where the prefix of the last prompt is used again; where the two likeliest logits differ
by less than 1e-4 either token is right, and those are under 1% of all; what is drawn has the frequencies of what
transformers draws, option by option; seeds repeat; pieces join to the whole.
"""

from collections import Counter
from itertools import zip_longest

import pytest
import torch

from cerebras_jais.chat.engine import open_engine
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.encoding import encode_texts
from cerebras_jais.errors import UserError
from checkpoint_convert.convert import convert_to_hf
from tests.cerebras_jais.data.clean.corpora import texts_of
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.chat_tokenizers import TOKENIZERS, VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint
from tests.xquad import LANGUAGES

TUNED = {"train_dataloader": {"data_dir": "data/chat/train", "use_vsl": True}, "ckpt_path": "base.mdl"}
SECTIONS = {"jais": jais_section, "llama": llama_section}
NEW, TIE = 16, 1e-4
DRAWN = (
    {"temperature": 0.15},
    {"top_k": 4},
    {"top_p": 0.6},
    {"repetition_penalty": 1.5},
    {"min_new_tokens": 2},
    {"max_new_tokens": 2},
    {"temperature": 0.12, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.2, "min_new_tokens": 1},
)


@pytest.fixture(scope="module", params=SECTIONS)
def made(request, tmp_path_factory):
    """The family, a chat release of it and its engine."""
    folder, family = tmp_path_factory.mktemp("engine"), request.param
    section = SECTIONS[family](vocab_size=VOCABULARY, max_position_embeddings=512)
    checkpoint = write_checkpoint(folder / "c.mdl", section, state_of(random_model(section)), fit=TUNED)
    convert_to_hf(checkpoint, folder / "release", tokenizer=write_tokenizer(family, folder / "tokenizer"))
    return family, folder / "release", open_engine(folder / "release")


def prompts_of(family, corpus):
    """50 prompts in each language: lines of a corpus, cut to unequal numbers of tokens."""
    texts = []
    for language in LANGUAGES:
        lines = [line for text in texts_of(corpus, language) for line in text.splitlines() if line.strip()]
        texts += lines[:: len(lines) // 50][:50]
    return [ids[: 1 + 7 * number % 120] for number, ids in enumerate(encode_texts(TOKENIZERS[family](), texts))]


@pytest.fixture(scope="module", params=["sample", pytest.param("xquad", marks=pytest.mark.xquad)])
def prompts(request, made):
    return prompts_of(made[0], request.param)


@pytest.fixture(scope="module")
def theirs(made):
    """The release as transformers opens it."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(made[1], trust_remote_code=True).eval()


def generated(model, prompt, **options):
    """What transformers generates for a prompt: its output, with logits."""
    return model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        **{"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, **options},
    )


@pytest.fixture(scope="module")
def wanted(theirs, prompts):
    """Of each prompt transformers' tokens, and how far the two likeliest logits of each are apart."""
    found = []
    for prompt in prompts:
        out = generated(theirs, prompt, max_new_tokens=NEW, do_sample=False)
        apart = [(logits.topk(2).values @ torch.tensor([1.0, -1.0])).item() for logits in out.logits]
        found.append((out.sequences[0, len(prompt) :].tolist(), apart))
    return found


def assert_equal_but_for_ties(engine, prompts, answers, wanted, record_property):
    """The tokens are equal up to a tie and, asked again behind transformers' choice there, after it."""
    gaps, differing = [gap for _, apart in wanted for gap in apart], 0
    for prompt, answer, (tokens, apart) in zip(prompts, answers, wanted, strict=True):
        while list(answer) != tokens:
            at = next(n for n, pair in enumerate(zip_longest(answer, tokens)) if len(set(pair)) > 1)
            assert apart[at] < TIE, (prompt, answer, tokens)
            differing, known = differing + 1, tokens[: at + 1]
            left = len(tokens) - len(known)
            more = engine.complete([[*prompt, *known]], [Sampling(max_new_tokens=left)]) if left else []
            answer = [*known, *(token for done in more for token in done.token_ids)]
    ties = sum(gap < TIE for gap in gaps)
    record_property("ties", f"{ties} of {len(gaps)} tokens, {differing} of them taken otherwise")
    print(f"{ties} ties in {len(gaps)} tokens of {len(prompts)} prompts, {differing} of them taken otherwise")
    assert len(prompts) == 100
    assert ties < 0.01 * len(gaps)


@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers_one_at_a_time(made, prompts, wanted, record_property):
    engine, sampling = made[2], Sampling(max_new_tokens=NEW)
    answers = [engine.complete([prompt], [sampling])[0].token_ids for prompt in prompts]
    assert_equal_but_for_ties(engine, prompts, answers, wanted, record_property)


def test_greedy_answers_are_those_of_transformers_as_batches_of_unequal_lengths(made, prompts, wanted, record_property):
    engine, answers = made[2], []
    for start in range(0, len(prompts), 20):
        batch = prompts[start : start + 20]
        answers += [done.token_ids for done in engine.complete(batch, [Sampling(max_new_tokens=NEW)] * len(batch))]
    assert_equal_but_for_ties(engine, prompts, answers, wanted, record_property)


@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers_where_a_prefix_is_used_again(made, prompts, wanted, record_property):
    engine, sampling = made[2], Sampling(max_new_tokens=NEW)
    answers = []
    for prompt in prompts:
        engine.complete([[*prompt[: len(prompt) // 2], 7, 9]], [Sampling(max_new_tokens=3)])
        answers.append(engine.complete([prompt], [sampling])[0].token_ids)
    assert_equal_but_for_ties(engine, prompts, answers, wanted, record_property)


def frequencies(answers, position, eos):
    """How often each token stands at a position; None where an answer has ended before."""
    return Counter(
        answer[position] if position < len(answer) and not {*answer[:position]} & {*eos} else None for answer in answers
    )


@pytest.mark.slow
@pytest.mark.parametrize("made", ["jais"], indirect=True)
@pytest.mark.parametrize("options", DRAWN, ids=lambda options: " ".join(options))
def test_what_is_drawn_has_the_frequencies_of_transformers_draws(made, theirs, options, monkeypatch):
    """Two samples of 1,000 answers differ by chi squared as two of one distribution do, at each position."""
    engine, count, options = made[2], 1000, {"max_new_tokens": 3, "temperature": 0.1, **options}
    likely = generated(theirs, [1], max_new_tokens=1, do_sample=False).logits[0][0].topk(40).indices.tolist()
    prompt, eos = likely[::2], likely[1::2]  # tokens that are often repeated, and tokens that often end an answer
    monkeypatch.setattr(engine, "eos", tuple(eos))
    torch.manual_seed(0)
    out = generated(theirs, prompt, do_sample=True, num_return_sequences=count, eos_token_id=eos, **options)
    samplings = [Sampling(seed=seed, **options) for seed in range(count)]
    ours = [done.token_ids for done in engine.complete([prompt] * count, samplings)]
    assert max(map(len, ours)) == options["max_new_tokens"]
    samples = ours, out.sequences[:, len(prompt) :].tolist()
    for position in range(options["max_new_tokens"]):
        a, b = (frequencies(answers, position, eos) for answers in samples)
        cells = [(a[token], b[token]) for token in {*a, *b} if a[token] + b[token] >= 10]
        cells.append((count - sum(x for x, _ in cells), count - sum(y for _, y in cells)))  # the rare ones together
        squares = sum((x - y) ** 2 / (x + y) for x, y in cells if x + y)
        free = max(1, len(cells) - 1)
        assert squares < free + 5 * (2 * free) ** 0.5, (position, cells)


def test_a_seed_repeats_and_pieces_join_to_the_whole(made):
    engine, few = made[2], prompts_of(made[0], "sample")[::10]
    samplings = [Sampling(temperature=1.0, top_p=0.9, seed=seed, max_new_tokens=NEW) for seed in range(len(few))]
    batch = engine.complete(few, samplings)
    for prompt, sampling, done in zip(few, samplings, batch, strict=True):
        pieces = list(engine.stream(prompt, sampling))
        assert "".join(piece.text for piece in pieces) == done.text
        assert tuple(token for piece in pieces for token in piece.token_ids) == done.token_ids
        assert pieces[-1].finish_reason == done.finish_reason
    others = {engine.complete([few[5]], [Sampling(temperature=1.0, seed=seed)])[0].token_ids for seed in range(4)}
    assert len(others) == 4


def test_a_cancelled_answer_ends(made):
    engine, prompt = made[2], prompts_of(made[0], "sample")[5]
    asked = iter([False, False, False, True, True])
    pieces = list(engine.stream(prompt, Sampling(max_new_tokens=400), lambda: next(asked)))
    assert pieces[-1].finish_reason == "cancelled"
    assert len(pieces) < 6


def test_a_prompt_beyond_the_context_is_refused_with_rotary_positions_and_noted_with_alibi(made):
    family, _, engine = made
    long = [5] * 600
    if family == "llama":
        with pytest.raises(UserError, match=r"600 tokens.*trained with 512.*rotary"):
            engine.complete([long], [Sampling(max_new_tokens=1)])
    else:
        assert "ALiBi" in engine.note_on(len(long))
        assert len(engine.complete([long], [Sampling(max_new_tokens=1)])[0].token_ids) == 1
