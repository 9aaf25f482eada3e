"""A model tuned on questions of XQuAD reads them better than an untuned one: by at least 20 F1.

Contract: a small model, trained for some steps on the prompts and answers of 16 questions, Arabic and English, answers
these with an F1 of at least 0.2 more than the same model before.
"""

from copy import deepcopy

import pytest
import torch

from cerebras_jais.chat.engine import Engine
from cerebras_jais.chat.forward import Forward
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.data.documents import read_documents
from cerebras_jais.data.tokenizer import train_tokenizer
from cerebras_jais.encoding import encode_texts
from cerebras_jais.evaluate.harness.tasks.reading import prompt, questions, score
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from tests.cerebras_jais.model.examples import jais_section
from tests.xquad import xquad_files

pytestmark = [pytest.mark.xquad, pytest.mark.slow]
OF_EACH, STEPS = 8, 60


def shortest(file):
    """The questions of a file with the shortest contexts, one of each context."""
    of_context = {doc["context"]: doc for doc in questions(file)}
    return sorted(of_context.values(), key=lambda doc: len(doc["context"]))[:OF_EACH]


def mean_f1(model, tokenizer, docs):
    engine = Engine("model", Forward(deepcopy(model).eval()), tokenizer, (0,))
    sampling = Sampling(max_new_tokens=32, stop=("\n",))
    prompts = [engine.encode(prompt(doc)) for doc in docs]
    answers = engine.complete(prompts, [sampling] * len(prompts))
    return sum(score(doc, [one.text])["f1"] for doc, one in zip(docs, answers, strict=True)) / len(docs)


def test_a_tuned_model_beats_an_untuned_one_on_its_questions():
    files = xquad_files()
    docs = [doc for file in files for doc in shortest(file)]
    tokenizer = train_tokenizer((document for file in files for document in read_documents(file)), 2048)
    torch.manual_seed(0)
    section = jais_section(vocab_size=2048, hidden_size=96, filter_size=256, max_position_embeddings=512)
    model = LanguageModel(DecoderConfig.from_section(section))
    before = mean_f1(model, tokenizer, docs)
    rows = []
    for doc in docs:
        asked, answer = encode_texts(tokenizer, [prompt(doc), f" {doc['answers'][0]}\n"])
        rows.append((asked + answer, len(asked)))
    length = max(len(ids) for ids, _ in rows) - 1
    inputs, labels = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(2))
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, (ids, asked) in enumerate(rows):
        inputs[number, : len(ids) - 1], labels[number, : len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
        mask[number, asked - 1 : len(ids) - 1] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        model({"input_ids": inputs, "labels": labels, "attention_mask": mask}).backward()
        optimizer.step()
    assert mean_f1(model, tokenizer, docs) >= before + 0.2
