"""What is drawn from is exactly what transformers' processors make of the same logits, in its order."""

import pytest
import torch

from cerebras_jais.chat.sampling import Sampling, choose, processed_logits
from cerebras_jais.errors import UserError

CASES = [
    {"temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 1.7},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.4},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "repetition_penalty": 0.8, "min_new_tokens": 4},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 0.0, "repetition_penalty": 1.5, "min_new_tokens": 9},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_logits_drawn_from_are_those_of_transformers(options):
    process = pytest.importorskip("transformers.generation.logits_process")
    sampling, seen, prompt, eos = Sampling(**options), [3, 8, 8, 40, 2, 7], 3, [2]
    chain = [process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    if sampling.min_new_tokens:
        chain.append(process.MinNewTokensLengthLogitsProcessor(prompt, sampling.min_new_tokens, eos, device="cpu"))
    if not sampling.is_greedy:
        chain.append(process.TemperatureLogitsWarper(sampling.temperature))
        chain += [process.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        chain += [process.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    for seed in range(20):
        logits = 3 * torch.randn(1, 300, generator=torch.Generator().manual_seed(seed))
        theirs = logits.clone()
        for one in chain:
            theirs = one(torch.tensor([seen]), theirs)
        assert torch.equal(processed_logits(logits[0], sampling, seen, len(seen) - prompt, eos), theirs[0])


def test_tokens_are_drawn_with_their_probabilities():
    generator, sampling, count = torch.Generator().manual_seed(0), Sampling(temperature=0.8, top_k=6), 20_000
    logits = torch.randn(12, generator=generator)
    probability = processed_logits(logits, sampling, [], 0, []).softmax(-1)
    drawn = torch.tensor([choose(logits, sampling, [], 0, [], generator) for _ in range(count)]).bincount(minlength=12)
    assert ((drawn / count - probability).abs() <= 5 * (probability * (1 - probability) / count).sqrt()).all()


@pytest.mark.parametrize(
    "field",
    [{"temperature": -1}, {"top_k": 1.5}, {"top_p": 2}, {"repetition_penalty": 0}, {"stop": ("",)}, {"seed": -1}],
)
def test_a_wrong_option_is_named(field):
    with pytest.raises(UserError, match=next(iter(field))):
        Sampling(**field)
