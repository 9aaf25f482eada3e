"""The engine writes what transformers' `generate` writes, token for token.

Contract: greedy answers of both families equal transformers', one prompt at a time, as a batch of unequal lengths, and
where the prefix of the last prompt is used again; where the two likeliest logits differ by less than 1e-4 either token
is right, and those are under 1% of all; seeds repeat; pieces join to the whole.
"""

import pytest
import torch

from cerebras_jais.chat.engine import open_engine
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.encoding import encode_texts
from cerebras_jais.errors import UserError
from checkpoint_convert.convert import convert_to_hf
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.chat_tokenizers import TOKENIZERS, VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint

TUNED = {"train_dataloader": {"data_dir": "data/chat/train", "use_vsl": True}, "ckpt_path": "base.mdl"}
SECTIONS = {"jais": jais_section, "llama": llama_section}
NEW, TIE = 16, 1e-4


@pytest.fixture(scope="module", params=SECTIONS)
def made(request, tmp_path_factory):
    """The family, a chat release of it, its engine, and prompts in both languages."""
    folder, family = tmp_path_factory.mktemp("engine"), request.param
    section = SECTIONS[family](vocab_size=VOCABULARY, max_position_embeddings=512)
    checkpoint = write_checkpoint(folder / "c.mdl", section, state_of(random_model(section)), fit=TUNED)
    convert_to_hf(checkpoint, folder / "release", tokenizer=write_tokenizer(family, folder / "tokenizer"))
    texts = [document.text for document in read_documents(sample_corpus_path())][:100]
    ids = encode_texts(TOKENIZERS[family](), texts)
    prompts = [found[: 1 + 7 * number % 60] for number, found in enumerate(ids)]
    return family, folder / "release", open_engine(folder / "release"), prompts


@pytest.fixture(scope="module")
def wanted(made):
    """Of each prompt transformers' tokens, and how far the two likeliest logits of each are apart."""
    transformers = pytest.importorskip("transformers")
    _, release, _, prompts = made
    model = transformers.AutoModelForCausalLM.from_pretrained(release, trust_remote_code=True).eval()
    found = []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        apart = [(logits.topk(2).values @ torch.tensor([1.0, -1.0])).item() for logits in out.logits]
        found.append((out.sequences[0, len(prompt) :].tolist(), apart))
    return found


def equal_but_for_ties(answers, wanted):
    """Whether the tokens are equal up to a tie; ties are under 1% of all."""
    ties = 0
    for answer, (tokens, apart) in zip(answers, wanted, strict=True):
        differs = next((n for n, pair in enumerate(zip(answer, tokens, strict=False)) if len(set(pair)) > 1), None)
        if differs is None:
            assert len(answer) == len(tokens)
        else:
            assert apart[differs] < TIE
            ties += 1
    assert ties < 0.01 * sum(len(tokens) for tokens, _ in wanted)


@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers_one_at_a_time(made, wanted):
    _, _, engine, prompts = made
    sampling = Sampling(max_new_tokens=NEW)
    equal_but_for_ties([engine.complete([prompt], [sampling])[0].token_ids for prompt in prompts], wanted)


def test_greedy_answers_are_those_of_transformers_as_batches_of_unequal_lengths(made, wanted):
    _, _, engine, prompts = made
    answers = []
    for start in range(0, len(prompts), 20):
        batch = prompts[start : start + 20]
        answers += [done.token_ids for done in engine.complete(batch, [Sampling(max_new_tokens=NEW)] * len(batch))]
    equal_but_for_ties(answers, wanted)


@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers_where_a_prefix_is_used_again(made, wanted):
    _, _, engine, prompts = made
    sampling = Sampling(max_new_tokens=NEW)
    answers = []
    for prompt in prompts:
        engine.complete([[*prompt[: len(prompt) // 2], 7, 9]], [Sampling(max_new_tokens=3)])
        answers.append(engine.complete([prompt], [sampling])[0].token_ids)
    equal_but_for_ties(answers, wanted)


def test_a_seed_repeats_and_pieces_join_to_the_whole(made):
    _, _, engine, prompts = made
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=3, max_new_tokens=NEW)
    once, again = (engine.complete([prompts[5]], [sampling])[0] for _ in range(2))
    assert once == again
    pieces = list(engine.stream(prompts[5], sampling))
    assert "".join(piece.text for piece in pieces) == once.text
    assert pieces[-1].finish_reason == once.finish_reason
    others = {engine.complete([prompts[5]], [Sampling(temperature=1.0, seed=s)])[0].token_ids for s in range(4)}
    assert len(others) == 4


def test_a_cancelled_answer_ends(made):
    _, _, engine, prompts = made
    asked = iter([False, False, False, True, True])
    pieces = list(engine.stream(prompts[5], Sampling(max_new_tokens=400), lambda: next(asked)))
    assert pieces[-1].finish_reason == "cancelled"
    assert len(pieces) < 6


def test_a_prompt_beyond_the_context_is_refused_with_rotary_positions_and_noted_with_alibi(made):
    family, _, engine, _ = made
    long = [5] * 600
    if family == "llama":
        with pytest.raises(UserError, match=r"600 tokens.*trained with 512.*rotary"):
            engine.complete([long], [Sampling(max_new_tokens=1)])
    else:
        assert "ALiBi" in engine.note_on(len(long))
        assert len(engine.complete([long], [Sampling(max_new_tokens=1)])[0].token_ids) == 1
