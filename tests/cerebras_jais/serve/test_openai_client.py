"""OpenAI's own client talks to the server: plain, streamed, with stop strings, counts and errors.

Contract: what the client makes of the responses, its pydantic models included, is what the engine wrote; 50 clients at
once each have their own answer; a slow reader holds up nobody; a client that leaves ends its answer within a second of
the engine's work, whether it streams or waits; what is refused is the client's error of that status.
"""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from cerebras_jais.chat.engine import open_engine
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.serve import exchange
from cerebras_jais.serve.http11 import Connection
from tests.cerebras_jais.serve.releases import SECTIONS, make_release
from tests.cerebras_jais.serve.scripted_engine import NAME, Gate, ScriptedEngine, answer_to, serving
from tests.process import wait_until

ARABIC = "ما هي عاصمة الإمارات؟ 🐪"


@pytest.fixture(scope="module")
def client():
    with serving(key="right") as running, openai.OpenAI(base_url=running.url, api_key="right", max_retries=0) as found:
        yield found


def ask(client, text=ARABIC, **options):
    return client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": text}], **options)


def test_a_plain_answer_has_text_end_and_counts(client):
    found = ask(client, temperature=0, seed=1, max_tokens=500)
    assert found.choices[0].message.content == answer_to(ARABIC) and found.choices[0].finish_reason == "stop"
    assert found.usage.prompt_tokens == len(ARABIC.encode())
    assert found.usage.total_tokens == found.usage.prompt_tokens + len(answer_to(ARABIC).encode())


def test_a_streamed_answer_joins_to_the_plain_one_and_ends_with_its_counts(client):
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer_to(ARABIC)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop" and chunks[0].usage is None
    assert last.choices == [] and last.usage.completion_tokens == len(answer_to(ARABIC).encode())


def test_extra_fields_reach_the_server(client):
    assert ask(client, extra_body={"language": "ar", "top_k": 5, "repetition_penalty": 1.1}).choices
    with pytest.raises(openai.BadRequestError, match="language must be"):
        ask(client, extra_body={"language": "fr"})


def test_a_completion_may_have_several_prompts(client):
    found = client.completions.create(model=NAME, prompt=["ab", "cde"], max_tokens=50, stop="|")
    assert [choice.text for choice in found.choices] == ["ba", "edc"]
    chunks = client.completions.create(model=NAME, prompt="ab", max_tokens=50, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer_to("ab")


def test_the_model_is_listed_and_found(client):
    assert [model.id for model in client.models.list()] == [NAME] and client.models.retrieve(NAME).id == NAME


def test_errors_are_those_of_the_client(client):
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, max_tokens=10_000)
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="n is not supported"):
        ask(client, n=2)
    with pytest.raises(openai.AuthenticationError, match="the key is missing or wrong"):
        ask(client.with_options(api_key="wrong"))
    with pytest.raises(openai.APIStatusError) as too_large:
        ask(client, "x" * (3 << 20))
    assert too_large.value.status_code == 413


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": 5}, "messages must be a list"),
        ({"messages": [{"role": "user", "content": None}]}, "content must be a string"),
        ([1], "the body is no JSON object"),
        ({}, "messages must be a list"),
    ],
    ids=str,
)
def test_a_malformed_body_is_a_bad_request(client, body, said):
    with pytest.raises(openai.BadRequestError, match=said):
        client.post("/chat/completions", body=body, cast_to=object)


def test_a_wrong_host_is_misdirected(client):
    with pytest.raises(openai.APIStatusError, match="the Host field is no name of this server") as refused:
        ask(client.with_options(default_headers={"Host": "evil.example"}))
    assert refused.value.status_code == 421


@pytest.fixture(scope="module", params=SECTIONS)
def real(request, tmp_path_factory):
    """A model of random weights, and what it answers to a prompt alone: the greedy text and its tokens."""
    engine = open_engine(make_release(tmp_path_factory.mktemp(request.param), request.param, chat=True))

    def alone(prompt):
        done = engine.complete([engine.encode(prompt)], [Sampling(max_new_tokens=24)])[0]
        return done.text, done.token_ids

    return engine, alone


def test_a_stop_string_may_begin_and_end_inside_tokens(real):
    """Of a token in the middle of an answer its inner characters, and those from its second to the next one's first."""
    engine, _ = real

    def middle_of(seed):
        """The texts of a sampled answer's tokens, and the number of one of at least three characters."""
        sampling = Sampling(temperature=1.0, seed=seed, max_new_tokens=24)
        parts = [piece.text for piece in engine.stream(engine.encode(ARABIC), sampling)]
        found = (n for n in range(6, 18) if len(parts) == 24 and len(parts[n]) > 2 and parts[n + 1])
        return seed, parts, next((n for n in found if "".join(parts).find(parts[n][1:-1]) > len("".join(parts[:n]))), 0)

    seed, parts, number = next(found for found in map(middle_of, range(1000)) if found[2])
    text, token = "".join(parts), parts[number]
    with serving(engine) as running, openai.OpenAI(base_url=running.url, api_key="x", max_retries=0) as client:
        for stop, tokens in ((token[1:-1], number + 1), (token[1:] + parts[number + 1][0], number + 2)):
            options = {"prompt": ARABIC, "max_tokens": 24, "seed": seed, "stop": [stop, "never"]}
            found = client.completions.create(model=engine.name, **options)
            assert found.choices[0].text == text[: text.index(stop)] == "".join(parts[:number]) + token[0]
            assert found.choices[0].finish_reason == "stop" and found.usage.completion_tokens == tokens
            chunks = list(client.completions.create(model=engine.name, stream=True, **options))
            assert "".join(chunk.choices[0].text for chunk in chunks) == found.choices[0].text
            assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("real", ["jais"], indirect=True)
def test_fifty_clients_at_once_get_the_answers_that_each_gets_alone(real):
    engine, alone = real
    prompts = [f"{ARABIC} {number}" if number % 2 else f"What is {number}?" for number in range(50)]
    wanted = [alone(prompt)[0] for prompt in prompts]

    def answer(number):
        with openai.OpenAI(base_url=running.url, api_key="x", max_retries=0) as client:
            options = {"prompt": prompts[number], "temperature": 0, "max_tokens": 24}
            whole = client.completions.create(model=engine.name, **options).choices[0].text
            chunks = client.completions.create(model=engine.name, stream=True, **options)
            return whole, "".join(chunk.choices[0].text for chunk in chunks)

    with serving(engine) as running, ThreadPoolExecutor(50) as clients:
        assert list(clients.map(answer, range(50))) == [(text, text) for text in wanted]


def test_a_slow_reader_holds_up_nobody_and_gets_its_whole_answer():
    engine = ScriptedEngine()
    text = "x" * 1000
    with serving(engine) as running, openai.OpenAI(base_url=running.url, api_key="x", max_retries=0) as client:
        with ask(client, text, stream=True) as stream:
            chunks = iter(stream)
            first = next(chunks)
            for number in range(20):
                assert ask(client, f"{number}").choices[0].message.content == answer_to(f"{number}")
            rest = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert (first.choices[0].delta.content or "") + rest == answer_to(text)
        assert engine.answered == 21 and engine.cancelled == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_seen_within_two_looks_and_its_answer_ends(stream, monkeypatch):
    """Two looks are less than a second apart, and after them the engine makes one token at most."""
    engine, gate, looks = ScriptedEngine(), Gate(), []
    has_left = Connection.has_left
    monkeypatch.setattr(Connection, "has_left", lambda self: looks.append(1) or has_left(self))
    with serving(engine) as running, openai.OpenAI(base_url=running.url, api_key="x", max_retries=0) as client:
        engine.step = gate
        if stream:
            gate.open(3)
            with ask(client, "x" * 1000, stream=True) as chunks:
                next(iter(chunks))
        else:
            with pytest.raises(openai.APITimeoutError):
                ask(client, "x" * 1000, timeout=0.5)
        before = len(looks)
        wait_until(lambda: any(" 499 " in line for line in running.log), "the client's leaving to be seen")
        assert len(looks) - before <= 2 and 2 * exchange._POLL < 1
        gate.open(1)
        wait_until(lambda: engine.cancelled == 1, "the answer's end")
        gate.open()
        assert ask(client, "ab").choices[0].message.content == "ba|ab" and engine.answered == 1


def test_the_client_asks_again_where_the_queue_is_full():
    with serving(most_waiting=1) as running, openai.OpenAI(base_url=running.url, api_key="x") as client:
        refusals, submit = [], running.server._worker.submit

        def full_at_first(job):
            if not refusals:
                refusals.append(job)
                running.server._worker._most, before = 0, running.server._worker._most
                try:
                    submit(job)
                finally:
                    running.server._worker._most = before
            submit(job)

        running.server._worker.submit = full_at_first
        assert ask(client, "ab").choices[0].message.content == "ba|ab" and len(refusals) == 1
