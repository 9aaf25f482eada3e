"""OpenAI's own client talks to the server: plain, streamed, with stop strings, counts and errors.

Contract: what the client makes of the responses, its pydantic models included, is what the engine wrote.
"""

import time

import pytest

from tests.cerebras_jais.serve.scripted_engine import NAME, ScriptedEngine, answer_to, serving
from tests.process import wait_until

openai = pytest.importorskip("openai")
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


def test_a_stream_that_the_client_closes_frees_the_model():
    engine = ScriptedEngine()
    with serving(engine) as running, openai.OpenAI(base_url=running.url, api_key="x", max_retries=0) as client:
        engine.step = lambda: time.sleep(0.01)
        with ask(client, "x" * 1000, stream=True) as stream:
            next(iter(stream))
        wait_until(lambda: engine.cancelled == 1, "the answer's end")
        assert ask(client, "ab").choices[0].message.content == "ba|ab"


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
