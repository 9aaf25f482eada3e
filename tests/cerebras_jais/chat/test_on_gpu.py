"""Answers on a GPU are those of a CPU."""

import pytest
import torch

from cerebras_jais.chat.engine import open_engine
from cerebras_jais.chat.sampling import Sampling
from checkpoint_convert.convert import convert_to_hf
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.chat_tokenizers import VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint

pytestmark = pytest.mark.gpu
LENGTHS = (1, 7, 40, 700)  # the last goes through the model in two pieces
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)


def answers(release, prompts, **options):
    """The ids of the answers to the prompts, each alone, then all as one batch."""
    engine = open_engine(release, **options)
    alone = [[token for piece in engine.stream(prompt, GREEDY) for token in piece.token_ids] for prompt in prompts]
    together = [[] for _ in prompts]
    for pieces in engine.stream_batch(prompts, [GREEDY] * len(prompts)):
        for ids, piece in zip(together, pieces, strict=True):
            ids += piece.token_ids if piece else ()
    return alone, together


@pytest.fixture(scope="module", params=["jais", "llama"])
def release(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    section = {"jais": jais_section, "llama": llama_section}[request.param](
        vocab_size=VOCABULARY, max_position_embeddings=1024
    )
    checkpoint = write_checkpoint(folder / "c.mdl", section, state_of(random_model(section)))
    convert_to_hf(checkpoint, folder / "release", tokenizer=write_tokenizer(request.param, folder / "tokenizer"))
    return folder / "release"


def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


def test_greedy_answers_are_those_of_a_cpu(release):
    assert answers(release, prompts(), device="cuda") == answers(release, prompts())


def test_bfloat16_weights_answer(release):
    alone, together = answers(release, prompts(), device="cuda", weights="bfloat16")
    assert all(alone)
    assert all(together)
