"""Conversations in a real browser.

Contract: Arabic and English have each their own direction, in questions, answers, lines of both, and the input; markup
shows as text; an answer streams, stops, and leaves the server when it does; a reload keeps the conversation, in bounds;
the browser asks nothing of any other machine, and its console has no error (`opened` holds both at the end of a visit).
"""

import json
import threading
from itertools import pairwise

import pytest

from tests.cerebras_jais.chat.browser import (
    ARABIC,
    ARABIC_ANSWER,
    ENGLISH,
    ENGLISH_ANSWER,
    MIXED_ANSWER,
    always,
    answers,
    endless,
    scripted_page,
)
from tests.process import wait_until
from tests.scripted_endpoint import Reply, event, failure, streamed

pytestmark = pytest.mark.browser

TO_THE_END = "document.documentElement.scrollHeight - innerHeight - scrollY"  # pixels left to scroll


def test_an_arabic_and_an_english_conversation_run_each_in_its_direction(browser):
    with scripted_page(browser, answers) as visit:
        for letters, direction in ((ARABIC, "rtl"), ("", "ltr"), ("12 = ", "ltr"), (ENGLISH, "ltr")):
            visit.input.fill("")
            visit.input.press_sequentially(letters)
            assert visit.style("#input", "direction") == direction
        visit.input.fill("")
        visit.ask(ARABIC)
        visit.ask(ENGLISH)
        assert visit.paragraphs("question") == [(ARABIC, "rtl"), (ENGLISH, "ltr")]
        assert visit.paragraphs("answer") == [(ARABIC_ANSWER, "rtl"), (ENGLISH_ANSWER, "ltr")]
        asked = [(message["role"], message["content"]) for message in visit.endpoint.bodies[-1]["messages"]]
        assert asked == [("user", ARABIC), ("assistant", ARABIC_ANSWER), ("user", ENGLISH)]
        assert {key: visit.endpoint.bodies[-1][key] for key in ("model", "stream")} == {
            "model": "jais-590m-chat",
            "stream": True,
        }
        languages = visit.tab.locator("article p").evaluate_all("all => all.map(p => p.lang)")
        assert languages == ["ar", "ar", "en", "en"]


# Where the first letter of each line of an element is drawn: at its left or at its right edge.
EDGES = """e => {
  const box = e.getBoundingClientRect(), text = e.firstChild, found = [];
  let start = 0;
  for (const line of text.data.split("\\n")) {
    const range = document.createRange();
    range.setStart(text, start);
    range.setEnd(text, start + 1);
    const letter = range.getBoundingClientRect();
    found.push(letter.left - box.left < box.right - letter.right ? "left" : "right");
    start += line.length + 1;
  }
  return found;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["en-US", "ar-AE"])
def test_each_paragraph_and_each_line_is_drawn_from_its_own_side(browser, locale):
    with scripted_page(browser, always(MIXED_ANSWER), locale=locale) as visit:
        assert visit.style("html", "direction") == ("rtl" if locale == "ar-AE" else "ltr")
        assert visit.style("#input", "direction") == visit.style("html", "direction")
        visit.ask("...")
        assert [direction for _, direction in visit.paragraphs("answer")] == ["rtl", "ltr", "ltr", "rtl"]
        edges = visit.tab.locator("article.answer .text > p").evaluate_all(f"all => all.map({EDGES})")
        assert edges == [["right"], ["left", "right"], ["right"]]
        assert visit.tab.locator("article.answer pre").inner_text() == "x = 'أبوظبي'\n\nprint(x)"


@pytest.mark.slow
def test_markup_shows_as_text_and_pieces_make_what_the_whole_makes(browser):
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script> <b>bold</b> &amp; [a](javascript:alert(3))"
    text = f"{markup}\n\n\n``` a ``` not a fence\n`\n``\n```html\n{markup}\n\n```x\n``\n```\n"
    text += f"{MIXED_ANSWER}\n\n```\nopen\n``"
    with scripted_page(browser, always(text)) as visit:
        visit.tab.on("dialog", lambda dialog: visit.problems.append("a dialog"))
        visit.ask(markup)
        shown = visit.paragraphs("answer")
        assert visit.paragraphs("question") == [(markup, "ltr")]
        assert [content for content, _ in shown[:3]] == [
            markup,
            "``` a ``` not a fence\n`\n``",
            f"{markup}\n\n```x\n``",
        ]
        assert shown[-1][0] == "open\n``"
        assert visit.tab.locator("article :is(img, script, b, a)").count() == 0
        nodes = visit.tab.locator("article.answer :is(p:not(.note), code)")
        assert set(nodes.evaluate_all("all => all.map(e => e.childNodes.length)")) == {1}
        outer = visit.tab.locator("article.answer").evaluate("e => e.lastChild.previousSibling.outerHTML")
        visit.tab.reload()
        assert visit.tab.locator("article.answer").evaluate("e => e.lastChild.previousSibling.outerHTML") == outer


@pytest.mark.slow
def test_many_chunks_are_few_changes_and_one_announcement(browser):
    text = [f"word{n} " for n in range(2000)]

    def burst(body, attempt):
        return Reply(content=b"".join(map(event, text)) + event(finish="stop") + b"data: [DONE]\n\n")

    watch = """window.seen = {changes: 0, said: []};
    addEventListener("DOMContentLoaded", () => {
      new MutationObserver(all => { seen.changes += all.length; })
        .observe(document.getElementById("conversation"), {subtree: true, childList: true, characterData: true});
      const status = document.getElementById("status");
      new MutationObserver(() => { if (status.textContent) seen.said.push(status.textContent); })
        .observe(status, {childList: true, characterData: true});
    })"""
    with scripted_page(browser, burst, before=watch) as visit:
        visit.ask(ENGLISH)
        seen = visit.tab.evaluate("seen")
        assert seen["changes"] < len(text) / 5
        assert seen["said"] == ["Jais is writing.", "".join(text)]
        live = visit.tab.locator("[aria-live], [role=log], [role=status], [role=alert]")
        assert live.evaluate_all("all => all.map(e => e.id)") == ["alert", "status"]
        assert visit.tab.evaluate(TO_THE_END) <= 1  # the page has followed the answer


# Stopping.


@pytest.mark.slow
@pytest.mark.parametrize("by", ["Escape", "button", "new"])
def test_stopping_keeps_what_has_come_and_leaves_the_server(browser, by):
    left = threading.Event()
    with scripted_page(browser, endless(left)) as visit:
        visit.tab.on("dialog", lambda dialog: dialog.accept())
        visit.input.fill(ENGLISH)
        visit.tab.locator("#send").dblclick()  # its second click is not one on Stop
        visit.tab.get_by_text("0 1 2 3 4 ").wait_for()
        assert visit.tab.locator("article.answer").get_attribute("aria-busy") == "true"
        if by == "Escape":
            visit.input.press("Escape")
        else:
            visit.tab.get_by_role("button", name="Stop" if by == "button" else "New conversation").click()
        visit.ended()
        wait_until(left.is_set, "the server to be left")
        if by == "new":
            assert visit.tab.locator("article").count() == 0
            assert visit.input.input_value() == ""
            return
        ((text, _),) = visit.paragraphs("answer")
        assert all(int(after) == int(before) + 1 for before, after in pairwise(text.split()))
        assert visit.tab.locator("article.answer .note").inner_text() == "Stopped"
        assert visit.tab.evaluate("document.activeElement.id") == "input"


@pytest.mark.slow
def test_a_question_stopped_before_its_answer_is_back_in_the_input(browser):
    go_on = threading.Event()

    def silent(body, attempt):
        def pieces():
            yield b": nothing yet\n\n"
            go_on.wait(60)

        return Reply(stream=pieces())

    with scripted_page(browser, silent) as visit:
        visit.input.fill(ARABIC)
        visit.input.press("Enter")
        wait_until(lambda: visit.endpoint.bodies, "the question")
        visit.input.press("Escape")
        visit.ended()
        assert visit.input.input_value() == ARABIC
        assert visit.tab.locator("article").count() == 0
        go_on.set()


# What is kept.


@pytest.mark.slow
def test_a_reload_keeps_the_conversation_the_settings_and_what_is_typed(browser):
    with scripted_page(browser, answers) as visit:
        visit.tab.get_by_text("Settings").click()
        visit.tab.get_by_label("System message").fill("Answer briefly.")
        visit.tab.get_by_label("Temperature").fill("0.5")
        visit.tab.get_by_label("Longest answer, in tokens").fill("64")
        visit.tab.keyboard.press("Escape")
        visit.tab.get_by_role("button", name="العربية").click()
        visit.ask(ARABIC)
        visit.input.fill("half a")
        visit.tab.reload()
        assert visit.tab.locator("html").get_attribute("lang") == "ar"
        assert visit.input.input_value() == "half a"
        assert visit.paragraphs("answer") == [(ARABIC_ANSWER, "rtl")]
        visit.input.fill("")
        visit.ask(ENGLISH)
        body = visit.endpoint.bodies[-1]
        assert (body["temperature"], body["max_tokens"]) == (0.5, 64)
        assert [message["content"] for message in body["messages"]] == [
            "Answer briefly.",
            ARABIC,
            ARABIC_ANSWER,
            ENGLISH,
        ]
        visit.tab.on("dialog", lambda dialog: dialog.accept())
        visit.tab.locator("#new").click()
        visit.tab.reload()
        assert visit.tab.locator("article").count() == 0
        assert visit.tab.locator("#welcome").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize(("turns", "length", "kept"), [(250, 10, 200), (12, 100_000, 9)])
def test_what_is_kept_is_bounded(browser, turns, length, kept):
    old = {"turns": [{"question": f"q{n}", "answer": "a" * length, "note": ""} for n in range(turns)]}
    name, value = json.dumps("cerebras-jais chat"), json.dumps(json.dumps(old))
    before = f"localStorage.getItem({name}) ?? localStorage.setItem({name}, {value})"
    with scripted_page(browser, answers, before=before) as visit:
        assert visit.tab.locator("article.question").count() == turns
        visit.tab.reload()
        texts = [text for text, _ in visit.paragraphs("question")]
        assert texts == [f"q{n}" for n in range(turns - kept, turns)]
        assert visit.tab.evaluate(TO_THE_END) <= 1  # the newest is what one sees


@pytest.mark.slow
@pytest.mark.parametrize(
    "before",
    [
        "for (const name of ['getItem', 'setItem']) Storage.prototype[name] = () => { throw new Error('private'); }",
        "localStorage.setItem('cerebras-jais chat', '{\"turns\": 7')",
        'localStorage.setItem(\'cerebras-jais chat\', \'{"turns": [null], "language": "xx", "draft": null}\')',
    ],
    ids=["forbidden", "cut", "strange"],
)
def test_a_storage_that_is_forbidden_or_damaged_does_no_harm(browser, before):
    with scripted_page(browser, answers, before=before) as visit:
        visit.ask(ENGLISH)
        assert visit.paragraphs("answer") == [(ENGLISH_ANSWER, "ltr")]


@pytest.mark.slow
def test_copy_gives_the_answer_as_the_model_wrote_it(browser):
    with scripted_page(browser, always(MIXED_ANSWER), permissions=["clipboard-read", "clipboard-write"]) as visit:
        visit.ask(ARABIC)
        visit.tab.get_by_role("button", name="Copy").click()
        visit.tab.get_by_role("button", name="Copied").wait_for()
        assert visit.tab.evaluate("navigator.clipboard.readText()") == MIXED_ANSWER


@pytest.mark.slow
def test_a_key_is_asked_for_where_the_server_wants_one_and_stays_in_the_tab(browser):
    named = Reply(content=b'{"data": [{"id": "m"}]}')
    visits = []

    def guarded(reply):
        return reply if visits and visits[0].endpoint.keys[-1] == "Bearer s3cret" else failure(401, "Wrong key.")

    with scripted_page(
        browser, lambda body, attempt: guarded(streamed("Yes.")), lambda: guarded(named), may_fail=True
    ) as visit:
        visits.append(visit)
        key = visit.tab.get_by_label("API key")
        key.wait_for()
        assert "wants an API key" in visit.tab.get_by_role("alert").inner_text()
        key.fill("s3cret")
        key.press("Tab")
        visit.tab.get_by_text("m", exact=True).wait_for()
        visit.tab.keyboard.press("Escape")
        visit.ask(ENGLISH)
        assert visit.paragraphs("answer") == [("Yes.", "ltr")]
        assert "s3cret" not in visit.tab.evaluate("JSON.stringify(localStorage)")
        visit.tab.reload()
        visit.ask(ENGLISH)
        assert visit.tab.locator("article.answer").count() == 2
