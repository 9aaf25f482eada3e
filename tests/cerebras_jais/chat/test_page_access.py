"""The page for everyone.

Contract: it is used by keyboard alone; every control has a name in the language of the interface; every text stands out
from what is behind it; a screen 320 pixels wide holds it; nothing moves for who wants no motion.
"""

import re
import threading

import pytest

from tests.cerebras_jais.chat.browser import (
    ARABIC,
    DIRECTION,
    ENGLISH,
    MIXED_ANSWER,
    always,
    answers,
    endless,
    scripted_page,
)
from tests.scripted_endpoint import asked_in, failure, streamed

pytestmark = [pytest.mark.browser, pytest.mark.slow]


# What has the focus: its text, or the id of a field; nothing for the page itself.
FOCUSED = "(e => e === document.body ? '' : e.innerText.trim() || e.id)(document.activeElement)"


def test_the_page_is_used_by_keyboard_alone(browser):
    with scripted_page(browser, answers) as visit:
        press = visit.tab.keyboard.press
        order = []
        for _ in range(9):
            press("Tab")
            order.append(visit.tab.evaluate(FOCUSED))
        examples = ["ما هي عاصمة الامارات؟", "What is the capital of UAE?"]
        top = ["Skip to the message", "New conversation", "العربية", "Settings"]
        assert order == ["Send", "", *top, *examples, "input"]  # from the input, where a visit begins
        press("Shift+Tab")
        press("Enter")  # an example goes into the input
        assert visit.input.input_value() == ENGLISH
        assert visit.tab.evaluate(FOCUSED) == "input"
        press("Shift+Enter")
        visit.tab.keyboard.type("Briefly.")
        press("Enter")
        visit.ended()
        assert asked_in(visit.endpoint.bodies[-1]) == f"{ENGLISH}\nBriefly."
        visit.tab.locator("#settings summary").focus()
        press("Enter")
        press("Tab")
        assert visit.tab.evaluate(FOCUSED) == "system"
        press("Escape")
        assert visit.tab.evaluate(FOCUSED) == "Settings"
        assert not visit.tab.locator("#system").is_visible()
        visit.tab.locator(".skip").focus()
        assert visit.tab.locator(".skip").bounding_box()["y"] >= 0
        press("Enter")
        assert visit.tab.evaluate(FOCUSED) == "input"


def test_enter_that_ends_a_composition_does_not_send(browser):
    with scripted_page(browser, answers) as visit:
        visit.input.fill(ARABIC)
        for how in ({"isComposing": True}, {"keyCode": 229}):
            visit.input.evaluate(
                "(e, how) => e.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, ...how}))", how
            )
        assert visit.input.input_value() == ARABIC
        assert visit.endpoint.bodies == []


@pytest.mark.parametrize("locale", ["en-US", "ar-AE"])
def test_every_control_has_a_name_in_the_language_of_the_interface(browser, locale):
    with scripted_page(browser, answers, locale=locale) as visit:
        visit.ask(ARABIC)
        visit.tab.locator("#settings summary").click()
        visit.tab.locator("#key-field").evaluate("e => { e.hidden = false; }")
        visit.tab.locator("#stop").evaluate("e => { e.hidden = false; }")
        tree = visit.tab.context.new_cdp_session(visit.tab).send("Accessibility.getFullAXTree")["nodes"]
        named = {}
        for node in tree:
            properties = {entry["name"]: entry["value"].get("value") for entry in node.get("properties", [])}
            if not node.get("ignored") and (properties.get("focusable") or node["role"]["value"] == "heading"):
                named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
        assert {role: len(names) for role, names in named.items()} == {
            "RootWebArea": 1,
            "link": 1,
            "heading": 3,
            "button": 5,
            "DisclosureTriangle": 1,
            "textbox": 3,
            "spinbutton": 2,
        }
        named["button"].remove("English" if locale == "ar-AE" else "العربية")  # the switch, in the other language
        names = [name for names in named.values() for name in names]
        arabic = [bool(re.search("[\u0621-\u064a]", name)) for name in names]
        assert all(names)
        assert arabic == [locale == "ar-AE"] * len(names)


# The lowest ratio of contrast of each text with what is behind it, as WCAG 2 defines it.
CONTRASTS = """() => {
  const numbers = text => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const blend = (over, under) => {
    const alpha = over[3] ?? 1;
    return [0, 1, 2].map(i => alpha * over[i] + (1 - alpha) * under[i]);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    if (!e) return [255, 255, 255];
    const color = numbers(getComputedStyle(e).backgroundColor);
    return (color[3] ?? 1) === 1 ? color : blend(color, behind(e.parentElement));
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    const shown = e.checkVisibility() && (own || e.matches("input, textarea, svg"));
    if (!shown) continue;
    for (const pseudo of e.matches("textarea") ? [null, "::placeholder"] : [null]) {
      const ground = behind(e), color = blend(numbers(getComputedStyle(e, pseudo).color), ground);
      const [dark, bright] = [light(color), light(ground)].sort((a, b) => a - b);
      found.push([(bright + 0.05) / (dark + 0.05), e.tagName + "#" + e.id + "." + e.className]);
    }
  }
  return found;
}"""


@pytest.mark.parametrize("contrast", ["no-preference", "more"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser, scheme, contrast):
    replies = [streamed(*MIXED_ANSWER, finish="length"), failure(400, "A detail.")]
    with scripted_page(
        browser, lambda body, attempt: replies.pop(0), color_scheme=scheme, contrast=contrast, may_fail=True
    ) as visit:
        visit.ask(ENGLISH)
        visit.ask(ARABIC)
        visit.tab.locator("#settings summary").click()
        visit.tab.locator("#key-field").evaluate("e => { e.hidden = false; }")
        found = visit.tab.evaluate(CONTRASTS)
        assert len(found) > 30
        assert [pair for pair in found if pair[0] < (7 if contrast == "more" else 4.5)] == []
        luminous = visit.style("html", "backgroundColor") == "rgb(255, 255, 255)"
        assert luminous == (scheme == "light")


@pytest.mark.parametrize("locale", ["en-US", "ar-AE"])
def test_a_small_screen_holds_everything_and_fingers_find_the_buttons(browser, locale):
    size = {"width": 320, "height": 480}
    with scripted_page(browser, always("m" * 300), viewport=size, locale=locale, has_touch=True) as visit:
        visit.ask("q" * 300)
        wide = "document.documentElement.scrollWidth"
        assert visit.tab.evaluate(wide) == 320
        boxes = [found.bounding_box() for found in visit.tab.locator("header button, summary, #send").all()]
        assert all(min(box["width"], box["height"]) >= 44 for box in boxes)
        visit.tab.locator("summary").click()
        assert visit.tab.evaluate(wide) == 320
        panel = visit.tab.locator(".panel").bounding_box()
        assert panel["x"] >= 0 and panel["x"] + panel["width"] <= 320
        assert visit.tab.evaluate(f"{DIRECTION}(document.querySelector('.panel'))") == visit.style("html", "direction")


@pytest.mark.parametrize(("motion", "moves"), [("reduce", "none"), ("no-preference", "pulse")])
def test_nothing_moves_for_who_wants_no_motion(browser, motion, moves):
    with scripted_page(browser, endless(threading.Event()), reduced_motion=motion) as visit:
        visit.input.fill(ENGLISH)
        visit.input.press("Enter")
        visit.tab.get_by_text("0 1 2 ").wait_for()
        cursor = "getComputedStyle(document.querySelector('article.answer p'), '::after').animationName"
        assert visit.tab.evaluate(cursor) == moves
        visit.input.press("Escape")
        visit.ended()
