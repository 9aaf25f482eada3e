"""Scores are the log-probabilities the model gives, over every token once, and bits per byte follow from them."""

import math

import pytest
import torch

from cerebras_jais.chat.forward import Forward
from cerebras_jais.data.documents import Document
from cerebras_jais.evaluate.score import Scored, score_documents, score_texts
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from tests import tolerances
from tests.cerebras_jais.model.examples import jais_section

EOS = 0


def encode(document):
    return [1 + byte % 90 for byte in document.text.encode()]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(DecoderConfig.from_section(jais_section())).eval()


def documents():
    return [
        Document("a short one", "en", "memory"),
        Document("نص قصير بالعربية", "ar", "memory"),
        Document("another, long enough to be cut into several pieces of the context", "en", "memory"),
    ]


def test_nats_are_the_log_probabilities_of_all_tokens_and_the_end(model):
    scores = {s.language: s for s in score_documents(model, documents()[:2], encode, EOS)}
    for document in documents()[:2]:
        ids = torch.tensor([[EOS, *encode(document), EOS]])
        # The Arabic one has 30 bytes: longer than the context of 24, so it is cut after it.
        pieces = [ids[:, :25], ids[:, 24:]] if document.language == "ar" else [ids]
        nats = 0.0
        for piece in pieces:
            log_p = model.logits(piece[:, :-1]).log_softmax(-1)
            nats -= log_p.gather(-1, piece[:, 1:, None]).sum().item()
        score = scores[document.language]
        assert score.nats == pytest.approx(nats, rel=tolerances.SAME_IN_FLOAT32)
        assert score.tokens == ids.shape[1] - 1
        assert score.bits_per_byte == pytest.approx(nats / math.log(2) / len(document.text.encode()), rel=1e-4)


def test_a_model_as_it_generates_has_the_score_of_the_model(model):
    wanted = score_documents(model, documents(), encode, EOS)
    for found, score in zip(score_documents(Forward(model), documents(), encode, EOS), wanted, strict=True):
        assert (found.documents, found.tokens, found.n_bytes) == (score.documents, score.tokens, score.n_bytes)
        assert found.nats == pytest.approx(score.nats, rel=tolerances.SAME_IN_FLOAT32)


def test_documents_of_a_language_add_up(model):
    each = [score_documents(model, [d], encode, EOS)[0] for d in documents()]
    both = {s.language: s for s in score_documents(model, documents(), encode, EOS)}
    assert both["en"].documents == 2
    assert both["en"].nats == pytest.approx(each[0].nats + each[2].nats, rel=1e-6)
    assert both["en"].n_bytes == each[0].n_bytes + each[2].n_bytes


def test_a_uniform_model_needs_log2_of_the_vocabulary_per_token(model):
    with torch.no_grad():
        model.model.embedding_layer.word_embeddings.weight.zero_()
    score = score_documents(model, documents()[:1], encode, EOS)[0]
    assert score.loss == pytest.approx(math.log(97), rel=1e-5)


def test_of_a_conversation_the_tokens_that_count_are_scored_across_pieces(model):
    ids = torch.randint(1, 97, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    counted = [5 <= place < 12 or place >= 45 for place in range(60)]
    (score,) = score_texts(model, [Scored("ar", ids, counted, 10)], 24)
    nats = 0.0
    for start in (0, 24, 48):
        piece = torch.tensor([ids[start : start + 25]])
        log_p = model.logits(piece[:, :-1]).log_softmax(-1).gather(-1, piece[:, 1:, None])[0, :, 0]
        nats -= log_p[torch.tensor(counted[start + 1 : start + 25])].sum().item()
    assert score.nats == pytest.approx(nats, rel=tolerances.SAME_IN_FLOAT32)
    assert (score.documents, score.tokens, score.n_bytes) == (1, sum(counted), 10)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_tokens_that_count_score_in_the_engine_as_in_the_decoder(model, weights):
    ids = torch.randint(model.config.vocab_size, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    texts = [Scored("en", ids, [number % 3 > 0 for number in range(40)], 100)]
    (expected,) = score_texts(model, texts, 16)
    (found,) = score_texts(Forward(model, weights), texts, 16)
    tolerance = {"float32": tolerances.SAME_IN_FLOAT32, "bfloat16": tolerances.SAME_IN_BFLOAT16}[weights]
    assert found.tokens == expected.tokens
    assert found.loss == pytest.approx(expected.loss, abs=tolerance)
