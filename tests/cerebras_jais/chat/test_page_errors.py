"""The page when something fails.

Contract: an error is a text in the language of the interface that says what to do, with what the server said; the
question is not lost, what has come of an answer stays and is marked, and the next question works.
"""

import json
import threading

import pytest

from tests.cerebras_jais.chat.browser import ENGLISH, ENGLISH_ANSWER, answers, scripted_page
from tests.scripted_endpoint import Reply, event, failure

pytestmark = pytest.mark.browser

CUT = event("half an ") + event("answer") + event(finish="stop")
FAILURES = {
    "busy": (failure(429, "The queue has 8 requests."), "queue is full", "قائمة انتظار"),
    "overloaded": (
        Reply(503, b'{"error": {"message": "64 requests wait.", "code": "overloaded"}}'),
        "queue is full",
        "قائمة انتظار",
    ),
    "stopping": (failure(503, "Stopping."), "is stopping", "يتوقف"),
    "refused": (failure(400, "The prompt has 3000 tokens; this model reads 2048."), "refused", "رفض"),
    "failed": (failure(500, "broken"), "server failed", "خطأ في الخادم"),
    "not the API": (Reply(502, b"<html>gateway"), "server failed", "خطأ في الخادم"),
    "garbage": (Reply(content=b"data: {garbage\n\n"), "connection broke", "انقطع"),
    "no events": (Reply(content=b"<html>"), "connection broke", "انقطع"),
    "error event": (Reply(content=b'data: {"error": {"message": "out of memory"}}\n\n'), "server failed", "خطأ"),
    "stopping event": (
        Reply(content=b'data: {"error": {"message": "ending", "code": "stopping"}}\n\n'),
        "is stopping",
        "يتوقف",
    ),
    "empty": (Reply(content=event(finish="stop") + b"data: [DONE]\n\n"), "empty answer", "فارغة"),
}


@pytest.mark.slow
def test_an_error_says_what_to_do_in_both_languages_and_the_question_is_not_lost(browser):
    waiting = [reply for reply, _, _ in FAILURES.values()]

    def fails(body, attempt):
        return waiting[attempt] if attempt < len(waiting) else answers(body, attempt)

    with scripted_page(browser, fails, may_fail=True) as visit:
        alert = visit.tab.get_by_role("alert")
        visit.input.fill(ENGLISH)
        for reply, english, arabic in FAILURES.values():
            visit.input.press("Enter")
            visit.ended()
            assert english in alert.inner_text()
            if reply.content.startswith(b'{"error"'):
                assert json.loads(reply.content)["error"]["message"] in alert.inner_text()
            visit.tab.locator("#language").click()
            assert arabic in alert.inner_text()
            visit.tab.locator("#language").click()
            assert visit.input.input_value() == ENGLISH
            assert visit.tab.locator("article").count() == 0
        visit.tab.context.set_offline(True)
        visit.input.press("Enter")
        visit.ended()
        assert "cannot be reached" in alert.inner_text()
        visit.tab.context.set_offline(False)
        visit.input.press("Enter")
        visit.ended()
        assert alert.inner_text() == ""
        assert visit.paragraphs("answer") == [(ENGLISH_ANSWER, "ltr")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "note"),
    [
        (Reply(content=CUT[: -len(event(finish="stop"))]), "Incomplete"),
        (Reply(content=CUT), None),
        (Reply(content=CUT.replace(b"\n", b"\r\n").replace(b'"stop"', b'"length"')), "Ended at the longest length"),
    ],
    ids=["no end", "no DONE", "length"],
)
def test_an_answer_that_did_not_end_says_so_and_stays(browser, reply, note):
    with scripted_page(browser, lambda body, attempt: reply, may_fail=True) as visit:
        visit.ask(ENGLISH)
        assert visit.paragraphs("answer") == [("half an answer", "ltr")]
        notes = visit.tab.locator("article.answer .note").all_inner_texts()
        assert [text.startswith(note) for text in notes] == ([True] if note else [])
        assert ("connection broke" in visit.tab.get_by_role("alert").inner_text()) == (note == "Incomplete")
        visit.tab.reload()
        assert visit.tab.locator("article.answer .note").all_inner_texts() == notes


@pytest.mark.slow
def test_a_connection_that_breaks_leaves_what_has_come(browser):
    seen = threading.Event()

    def breaks(body, attempt):
        def pieces():
            yield event("half an answer")
            seen.wait(60)

        return Reply(headers={"Content-Length": "9999"}, stream=pieces())

    with scripted_page(browser, breaks, may_fail=True) as visit:
        visit.input.fill(ENGLISH)
        visit.input.press("Enter")
        visit.tab.get_by_text("half an answer").wait_for()
        seen.set()
        visit.ended()
        assert visit.paragraphs("answer") == [("half an answer", "ltr")]
        assert visit.tab.locator("article.answer .note").inner_text() == "Incomplete"
        assert "connection broke" in visit.tab.get_by_role("alert").inner_text()
