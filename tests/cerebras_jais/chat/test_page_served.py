"""The page and the server that it comes from.

Contract: `Server` sends the page so that a real browser runs it; a conversation in both languages is what the engine
says; a stopped answer frees the engine; the key is asked for; a server that ends is said to. `cerebras-jais serve` does
all that with a model, whose greedy answer on the page is the one that a plain request gets.
"""

import json
import re
import signal
import subprocess
import sys
import threading

import pytest

from cerebras_jais.endpoint.client import Endpoint, ask
from checkpoint_convert.convert import convert_to_hf
from tests.cerebras_jais.chat.browser import ARABIC, ENGLISH, opened
from tests.cerebras_jais.serve.scripted_engine import Gate, ScriptedEngine, answer_to, serving
from tests.chat_tokenizers import VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import jais_section, random_model, state_of, write_checkpoint
from tests.process import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def address(running):
    return running.url.removesuffix("/v1")


def test_a_conversation_with_the_server_is_what_the_engine_says(browser):
    with serving() as running, opened(browser, address(running)) as visit:
        visit.tab.get_by_text(running.engine.name).wait_for()
        visit.ask(ARABIC)
        visit.ask(ENGLISH)
        assert visit.paragraphs("question") == [(ARABIC, "rtl"), (ENGLISH, "ltr")]
        assert visit.paragraphs("answer") == [(answer_to(ARABIC), "rtl"), (answer_to(ENGLISH), "ltr")]
        visit.tab.reload()
        assert visit.paragraphs("answer") == [(answer_to(ARABIC), "rtl"), (answer_to(ENGLISH), "ltr")]


@pytest.mark.parametrize("how", ["Escape", "leaving"])
def test_a_stopped_answer_frees_the_engine(browser, how):
    gate = Gate()
    engine = ScriptedEngine(gate)
    with serving(engine) as running, opened(browser, address(running)) as visit:
        visit.input.fill(ENGLISH)
        visit.input.press("Enter")
        gate.reached.wait(60)
        gate.open(3)
        visit.tab.locator("article.answer p").wait_for()
        if how == "Escape":
            visit.input.press("Escape")
            visit.ended()
            assert answer_to(ENGLISH).startswith(visit.paragraphs("answer")[0][0])
        else:
            visit.tab.goto("about:blank")

        def cancelled():
            gate.open(1)
            return engine.cancelled

        wait_until(cancelled, "the engine to be free")
        gate.open()


def test_the_key_of_a_server_is_asked_for(browser):
    with serving(key="s3cret") as running, opened(browser, address(running), may_fail=True) as visit:
        visit.tab.get_by_label("API key").fill("s3cret")
        visit.tab.get_by_label("API key").press("Tab")
        visit.tab.get_by_text(running.engine.name).wait_for()
        visit.tab.keyboard.press("Escape")
        visit.ask(ENGLISH)
        assert visit.paragraphs("answer") == [(answer_to(ENGLISH), "ltr")]


def test_a_server_that_ends_is_said_to_and_the_text_is_not_lost(browser):
    pause = threading.Event()  # for ever unset
    engine = ScriptedEngine(lambda: pause.wait(0.01))
    with serving(engine) as running, opened(browser, address(running), may_fail=True) as visit:
        visit.input.fill(ENGLISH * 40)
        visit.input.press("Enter")
        visit.tab.locator("article.answer p").wait_for()
        running.server.stop(0.0)
        visit.ended()
        assert visit.tab.locator("article.answer .note").inner_text() == "Incomplete"
        assert "send again" in visit.tab.get_by_role("alert").inner_text()
        visit.ask(ARABIC)
        assert "cannot be reached" in visit.tab.get_by_role("alert").inner_text()
        assert visit.input.input_value() == ARABIC


def test_a_tiny_jais_talks_on_its_page(browser, tmp_path):
    pytest.importorskip("cerebras_jais.chat.engine")
    section = jais_section(vocab_size=VOCABULARY, max_position_embeddings=2048)
    tuned = {"train_dataloader": {"data_dir": "data/chat/train", "use_vsl": True}, "ckpt_path": "base.mdl"}
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)), fit=tuned)
    convert_to_hf(checkpoint, tmp_path / "tiny", tokenizer=write_tokenizer("jais", tmp_path / "tokenizer"))
    command = [sys.executable, "-m", "cerebras_jais.cli", "serve", str(tmp_path / "tiny"), "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            origin = re.search(r"http://[\d.:]+", server.stdout.readline())[0]
            with opened(browser, origin) as visit:
                visit.tab.get_by_text("Settings").click()
                visit.tab.get_by_label("Temperature").fill("0")
                visit.tab.get_by_label("Longest answer, in tokens").fill("16")
                visit.tab.keyboard.press("Escape")
                visit.ask(ARABIC)
                visit.ask(ENGLISH)
                assert [direction for _, direction in visit.paragraphs("question")] == ["rtl", "ltr"]
                turns = visit.tab.evaluate("JSON.parse(localStorage.getItem('cerebras-jais chat')).turns")
                messages = []
                for turn in turns:
                    messages.append({"role": "user", "content": turn["question"]})
                    body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 16}
                    plain = ask(Endpoint(f"{origin}/v1"), json.dumps(body).encode())
                    assert plain.text == turn["answer"]
                    messages.append({"role": "assistant", "content": turn["answer"]})
                assert [turn["question"] for turn in turns] == [ARABIC, ENGLISH]
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 128 + signal.SIGTERM
