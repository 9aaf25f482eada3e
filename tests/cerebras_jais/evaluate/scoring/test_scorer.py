"""Scores are those of the decoder that reads each sequence alone, and what sequences share is read once.

Contract: for both families, interpolated positions and grouped queries, a request's likelihood is the sum of the
log-softmax of the decoder's logits, whatever the budget of a batch; each distinct beginning is one token of work,
counted where tokens enter the model, and each wanted row of logits is made once; no tensor has more elements than the
stated bounds allow; a run that goes on gives the same floats as one that was not interrupted.
"""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from cerebras_jais.chat.forward import Forward
from cerebras_jais.evaluate.scoring import scorer as module
from cerebras_jais.evaluate.scoring.scorer import score_requests
from cerebras_jais.evaluate.scoring.tree import Request
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.checkpoint_convert.examples import random_model
from tests.tolerances import SCORE, SCORE_RELATIVE

VOCABULARY = 97
SECTIONS = {
    "jais": jais_section(),
    "jais-interpolated": jais_section(pos_scaling_factor=4.0),
    "llama": llama_section(),
    "llama-grouped": llama_section(kv_groups=4),
}


@pytest.fixture(params=SECTIONS)
def pair(request):
    model = random_model(SECTIONS[request.param])
    return model, Forward(deepcopy(model))  # which takes the weights over


def drawn(seed=0, questions=6, preamble=20):
    """Options of questions that share a preamble, one of them long, and pairs of contexts with one continuation."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count):
        return torch.randint(VOCABULARY, (count,), generator=generator).tolist()

    shared, found = ids(preamble), []
    for number in range(questions):
        context = shared + ids(5 + 3 * number)
        found += [Request((*context, *option), len(option)) for option in (ids(4), ids(1), ids(1), ids(9))]
    continuation = ids(6)
    found += [Request((*context, *continuation), 6) for context in (ids(7), ids(8))]
    return [*found, Request(tuple(ids(110)), 109), Request((3, 4), 1), found[0]]


def alone(model, request):
    """ln p of a request's scored tokens by the decoder, and whether each is the likeliest."""
    with torch.inference_mode():
        logits = model.logits(torch.tensor([request.tokens[:-1]]))[0, -request.predicted :].double()
    targets = torch.tensor(request.tokens[-request.predicted :])
    found = logits.log_softmax(-1)[torch.arange(request.predicted), targets]
    return found.sum().item(), bool((logits.argmax(-1) == targets).all())


@pytest.mark.parametrize("batch_tokens", [7, 64, 2048])
def test_scores_are_those_of_the_decoder_on_each_sequence_alone(pair, batch_tokens):
    model, forward = pair
    requests = drawn()
    found = dict(score_requests(forward, requests, batch_tokens=batch_tokens))
    assert sorted(found) == list(range(len(requests)))
    for number, request in enumerate(requests):
        likelihood, greedy = alone(model, request)
        assert found[number].log_likelihood == pytest.approx(likelihood, abs=SCORE, rel=SCORE_RELATIVE)
        assert found[number].is_greedy == greedy


PRODUCTS = (torch.ops.aten.linear.default, torch.ops.mkldnn._linear_pointwise.default)  # as chat/weights.py chooses


class Counted(TorchDispatchMode):
    """Counts the tokens that are embedded and the rows of logits, and keeps the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.tokens = self.rows = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.embedding.default:
            self.tokens += args[1].numel()
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
            if func in PRODUCTS and out.shape[-1] == VOCABULARY:
                self.rows += out.shape[0]
        return out


def counted(forward, requests, **options):
    with Counted() as counts:
        list(score_requests(forward, requests, **options))
    return counts


@pytest.mark.parametrize("batch_tokens", [7, 2048])
def test_each_distinct_beginning_is_read_once_and_each_wanted_row_made_once(batch_tokens):
    forward, requests = Forward(random_model(SECTIONS["jais"])), drawn()
    counts = counted(forward, requests, batch_tokens=batch_tokens)
    inputs = [request.tokens[:-1] for request in requests]
    assert counts.tokens == len({row[:end] for row in inputs for end in range(1, len(row) + 1)})
    wanted = {row[: len(row) - n] for row, r in zip(inputs, requests, strict=True) for n in range(r.predicted)}
    assert counts.rows == len(wanted)


def test_options_cost_their_context_once_and_their_own_tokens():
    forward, requests = Forward(random_model(SECTIONS["jais"])), drawn(questions=1)[:4]
    context = len(requests[0].tokens) - requests[0].predicted
    assert counted(forward, requests).tokens <= context + sum(request.predicted for request in requests)


def test_no_tensor_grows_with_the_length_times_the_vocabulary_or_with_the_length_squared(monkeypatch):
    monkeypatch.setattr(module, "_LOGITS", 10 * VOCABULARY)
    monkeypatch.setattr(module, "_BIAS_ELEMENTS", 12 * 400)
    forward = Forward(random_model(SECTIONS["jais"]))
    weights = VOCABULARY * forward.config.hidden_size
    for length in (200, 400):
        counts = counted(forward, [Request(tuple(range(90)) * 5, length)], batch_tokens=64)
        assert counts.largest <= max(weights, 64 * forward.config.filter_size * 2, 450 * forward.config.hidden_size)


@pytest.mark.parametrize("name", ["jais", "llama"])
def test_a_run_that_goes_on_gives_the_same_floats(name):
    forward, requests = Forward(random_model(SECTIONS[name])), drawn()
    whole = dict(score_requests(forward, requests, batch_tokens=40))
    for kept in (0, 1, 9, len(requests) - 1, len(requests)):
        answered = set(list(whole)[:kept])
        rest = dict(score_requests(forward, requests, answered, batch_tokens=40))
        assert rest == {number: score for number, score in whole.items() if number not in answered}


@settings(max_examples=40)
@given(st.data())
def test_any_set_of_requests_is_scored_and_goes_on(data):
    model = random_model(SECTIONS["jais"])
    forward = Forward(deepcopy(model))
    sequences = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), min_size=1, max_size=8))
    requests = [Request(tuple(row), data.draw(st.integers(0, len(row) - 1))) for row in sequences]
    tokens = data.draw(st.integers(1, 12))
    whole = dict(score_requests(forward, requests, batch_tokens=tokens))
    for number, request in enumerate(requests):
        expected = alone(model, request)[0] if request.predicted else 0.0
        assert whole[number].log_likelihood == pytest.approx(expected, abs=SCORE, rel=SCORE_RELATIVE)
    answered = data.draw(st.sets(st.sampled_from(range(len(requests)))))
    rest = dict(score_requests(forward, requests, answered, batch_tokens=tokens))
    assert rest == {number: score for number, score in whole.items() if number not in answered}
