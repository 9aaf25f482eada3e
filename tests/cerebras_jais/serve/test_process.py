"""`cerebras-jais serve` as a process: its answers are those of the reference path, and it ends as it is told.

Contract: greedy answers to Arabic and English prompts, plain, streamed and cut by a stop string within a token, are
what `generate` of the reference path writes; after SIGTERM the answer under way ends; a port that is taken and a base
model that is asked to chat are said in one line.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch
from tokenizers import Tokenizer

from cerebras_jais.serve.server import listen
from checkpoint_convert.load import load_release
from tests.card import prompt
from tests.cerebras_jais.serve.releases import make_release
from tests.chat_tokenizers import EOS
from tests.marks import slow_except

ROOT = Path(__file__).parents[3]
QUESTIONS = {"ar": "ما هي عاصمة الإمارات؟", "en": "What is the capital of UAE?"}
GREEDY = {"temperature": 0, "max_tokens": 24, "extra_body": {"repetition_penalty": 1}}


@contextlib.contextmanager
def process(release, *options):
    """A server of a release and its URL; killed if the block leaves it running."""
    command = [sys.executable, "-m", "cerebras_jais.cli", "serve", str(release), "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "no_proxy": "127.0.0.1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            line = started.stdout.readline()
            assert line.startswith("release answers at http://127.0.0.1:"), line + started.stderr.read()
            yield started, line.split()[3].rstrip(";")
        finally:
            started.kill()


def said_by(release, *options):
    """A server that does not start."""
    command = [sys.executable, "-m", "cerebras_jais.cli", "serve", str(release), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("family", slow_except(["jais"], ["jais", "llama"]))
def test_answers_are_those_of_the_reference_path_and_sigterm_lets_one_end(family, tmp_path):
    release = make_release(tmp_path, family, chat=True)
    model, tokenizer = load_release(release), Tokenizer.from_file(str(release / "tokenizer.json"))
    eos = tokenizer.token_to_id(EOS)

    def expected(text):
        """The ids that follow a text, without the end, and their text."""
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        written: list[int] = []
        while len(written) < GREEDY["max_tokens"]:
            with torch.no_grad():
                token = int(model.logits(torch.tensor([ids + written]))[0, -1].argmax())
            if token == eos:
                break
            written.append(token)
        return written, tokenizer.decode(ids + written)[len(tokenizer.decode(ids)) :]

    with (
        process(release, "--log-requests") as (server, url),
        openai.OpenAI(base_url=f"{url}v1", api_key="none") as client,
    ):
        for language, question in QUESTIONS.items():
            ids, text = expected(question)
            found = client.completions.create(model="release", prompt=question, **GREEDY)
            assert found.choices[0].text == text and found.usage.completion_tokens in (len(ids), len(ids) + 1)
            chunks = client.completions.create(model="release", prompt=question, stream=True, **GREEDY)
            assert "".join(chunk.choices[0].text for chunk in chunks) == text
            stop = text[len(text) // 2 :][:3]
            cut = client.completions.create(model="release", prompt=question, stop=[stop], **GREEDY)
            assert cut.choices[0].text == text[: text.index(stop)] and cut.choices[0].finish_reason == "stop"
            messages = [{"role": "user", "content": question}]
            answer = client.chat.completions.create(model="release", messages=messages, **GREEDY)
            assert answer.choices[0].message.content == expected(prompt(language, question))[1].lstrip()
        with pytest.raises(openai.BadRequestError, match="this server takes 1,024 together"):
            client.completions.create(model="release", prompt="x " * 3000)
        chunks = client.completions.create(
            model="release", prompt="x", stream=True, max_tokens=900, temperature=1, extra_body={"min_tokens": 900}
        )
        next(chunks)
        server.send_signal(signal.SIGTERM)
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
        _, errors = server.communicate()
    assert server.returncode == 143, errors
    lines = errors.splitlines()  # that of the last answer may come in between: another thread writes it
    assert "note: ending; an answer under way ends first" in lines
    assert "terminated" in lines and "Traceback" not in errors
    assert not [text for text in (*QUESTIONS.values(), "x x") if text in errors]


def test_a_base_model_continues_and_does_not_chat(tmp_path):
    release = make_release(tmp_path, "jais", chat=False)
    with process(release) as (server, url), openai.OpenAI(base_url=f"{url}v1", api_key="none") as client:
        assert client.completions.create(model="release", prompt="x", max_tokens=2).usage.prompt_tokens == 1
        with pytest.raises(openai.BadRequestError, match="is a base model"):
            client.chat.completions.create(model="release", messages=[{"role": "user", "content": "x"}])
        server.send_signal(signal.SIGINT)
        assert server.wait() == 130


def test_a_rotary_model_takes_no_longer_context(tmp_path):
    release = make_release(tmp_path, "llama", chat=False)
    done = said_by(release, "--max-tokens", "1025", "--port", "0")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "trained with a context of 1024, beyond which rotary positions do not work" in done.stderr


def test_a_taken_port_is_one_line_before_the_model_is_looked_at(tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        done = said_by(tmp_path / "absent", "--port", port)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: cannot listen at port {port} of 127.0.0.1: Address already in use; end the")
