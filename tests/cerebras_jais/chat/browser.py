"""Debian's chromium on the page of the server, whose endpoint a test scripts."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from cerebras_jais.chat.page import page as the_page
from tests.scripted_endpoint import Reply, Scripted, asked_in, event, scripted, streamed

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

ARABIC, ENGLISH = "ما هي عاصمة الإمارات؟", "What is the capital of UAE?"
ARABIC_ANSWER, ENGLISH_ANSWER = "عاصمة الإمارات هي أبوظبي (Abu Dhabi).", "The capital is Abu Dhabi (أبوظبي)."
MIXED_ANSWER = f"{ARABIC_ANSWER}\n\n{ENGLISH_ANSWER}\nوهي جزيرة.\n\n```python\nx = 'أبوظبي'\n\nprint(x)\n```\n\n1. واحد"


def answers(body, attempt):
    """Each question is answered in its language, a character at a time."""
    return streamed(*(ARABIC_ANSWER if "ا" in asked_in(body) else ENGLISH_ANSWER))


def always(text, **how):
    return lambda body, attempt: streamed(*text, **how)


def endless(left):
    """An answer without an end; `left` is set when the other end has gone."""

    def pieces():
        try:
            for n in count():
                yield event(f"{n} ")
                threading.Event().wait(0.005)
        finally:
            left.set()

    return lambda body, attempt: Reply(stream=pieces())


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; the test is skipped where it or playwright is not installed."""
    api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield started
        started.close()


@dataclass
class Visit:
    """A tab that shows the page.

    Attributes:
        tab: playwright's page.
        origin: the address of the server.
        endpoint: what it was asked, where a script answers.
        addresses: every address that the browser has asked for.
        problems: what the browser's console has said of errors.
        may_fail: whether answers of an error's status are expected, which the console names too.
    """

    tab: Any
    origin: str
    endpoint: Scripted = field(default_factory=Scripted)
    addresses: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    may_fail: bool = False

    @property
    def input(self) -> Any:
        return self.tab.locator("#input")

    def ask(self, text: str) -> None:
        """Type a question as a person does, send it, and wait until its answer has ended."""
        self.input.press_sequentially(text)
        self.input.press("Enter")
        self.ended()

    def ended(self) -> None:
        self.tab.locator("#send").wait_for(state="visible")

    def paragraphs(self, kind: str) -> list[tuple[str, str]]:
        """Text and computed direction of each paragraph of the questions or of the answers."""
        found = self.tab.locator(f"article.{kind} .text > *")
        return [tuple(pair) for pair in found.evaluate_all(f"all => all.map(e => [e.textContent, {DIRECTION}(e)])")]

    def style(self, selector: str, name: str) -> str:
        return self.tab.locator(selector).evaluate("(e, name) => getComputedStyle(e)[name]", name)


DIRECTION = "(e => getComputedStyle(e).direction)"


@contextmanager
def opened(browser: Any, origin: str, may_fail: bool = False, before: str = "", **options: Any) -> Iterator[Visit]:
    """Open the page of a server. At the end it has asked for nothing elsewhere, and the console has no error.

    Args:
        before: JavaScript that runs before the page's own.
        options: of the browser's context, such as `locale` and `viewport`.
    """
    context = browser.new_context(**{"locale": "en-US", "reduced_motion": "reduce", **options})
    context.set_default_timeout(60_000)
    visit = Visit(context.new_page(), origin, may_fail=may_fail)
    context.on("request", lambda request: visit.addresses.append(request.url))
    context.on("console", lambda said: visit.problems.append(said.text) if said.type == "error" else None)
    context.on("weberror", lambda error: visit.problems.append(str(error.error)))
    if before:
        context.add_init_script(before)
    visit.tab.goto(origin)
    yield visit
    context.close()
    assert [address for address in visit.addresses if not address.startswith((f"{origin}/", "data:"))] == []
    expected = "Failed to load resource" if visit.may_fail else "no problem at all"
    assert [problem for problem in visit.problems if expected not in problem] == []


@contextmanager
def scripted_page(browser: Any, script: Any, models: Any = None, **options: Any) -> Iterator[Visit]:
    """The page of a server whose answers `script` makes, as for `scripted`; `models` replies to /v1/models."""
    named = Reply(
        content=json.dumps({"object": "list", "data": [{"id": "jais-590m-chat", "object": "model"}]}).encode()
    )
    gets = {
        "/": lambda: Reply(content=the_page().content, headers=the_page().headers),
        "/v1/models": models or (lambda: named),
    }
    with scripted(script, gets) as endpoint, opened(browser, endpoint.url.removesuffix("/v1"), **options) as visit:
        visit.endpoint = endpoint
        yield visit
