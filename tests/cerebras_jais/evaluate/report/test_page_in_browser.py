"""The page in a real browser.

Contract: Arabic lines run from the right and English ones from the left, names of models in neither's way; the browser
fetches nothing but the file, its console says nothing, and markup in data is text; the page is no wider than the
screen; the keyboard alone opens what is closed and scrolls what is wide; light and dark are those of the browser.
"""

import pytest

from cerebras_jais.catalog.models import find_model
from cerebras_jais.evaluate.report.compare import compare
from cerebras_jais.evaluate.report.page import page
from cerebras_jais.evaluate.report.results import read_run
from tests.cerebras_jais.chat.browser import DIRECTION, chromium
from tests.cerebras_jais.evaluate.report.examples import card_run, choice

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODEL = find_model("jais-family-13b")
MARKUP = "<img src='https://example.org/x.png' onerror='document.title=1'>"
PROMPT = f"السؤال: ما هي عاصمة الإمارات (UAE)؟\nThe capital is أبوظبي.\n{MARKUP}"
CONTRAST = """() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(
      value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
  };
  const ratios = [];
  for (const element of document.querySelectorAll("h1, h2, p, th, td, dt, dd, a, summary, li .text, li .said")) {
    const [one, other] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    ratios.push((one + 0.05) / (other + 0.05));
  }
  return Math.min(...ratios);
}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    arabic = card_run(MODEL.scores, "نموذج-صغير")
    lines = [choice(n, n % 2 == 0, prompt=PROMPT, options=["أبوظبي", "Dubai", MARKUP], gold=n % 3) for n in range(4)]
    arabic.samples["arabicmmlu_civics_high_school"] = lines
    arabic.samples["arabicmmlu_biology_high_school"] = []
    path = folder / "report.html"
    text = page([compare(read_run(arabic.write(folder / "results")), MODEL)], 3)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(params=[("light", 1280), ("dark", 375)], ids=["light and wide", "dark and narrow"])
def tab(browser, file, request):
    scheme, width = request.param
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    asked, said = [], []
    context.on("request", lambda wanted: asked.append(wanted.url))
    context.on("console", lambda message: said.append(message.text))
    context.on("weberror", lambda error: said.append(str(error.error)))
    tab = context.new_page()
    tab.goto(file.as_uri())
    yield tab
    context.close()
    assert [address for address in asked if not address.startswith("data:")] == [file.as_uri()]
    assert said == []


def test_each_line_of_a_question_and_each_option_has_its_own_direction(tab):
    found = (
        tab.locator("article")
        .first.locator("p, li > .text")
        .evaluate_all(f"all => all.map(e => [e.textContent, {DIRECTION}(e), e.lang])")
    )
    arabic, english, markup = PROMPT.split("\n")
    assert found == [
        [arabic, "rtl", "ar"],
        [english, "ltr", ""],
        [markup, "ltr", ""],
        ["أبوظبي", "rtl", "ar"],
        ["Dubai", "ltr", ""],
        [MARKUP, "ltr", ""],
    ]


def test_an_arabic_line_is_drawn_from_the_right_edge(tab):
    left, right = tab.locator("article p").first.evaluate(
        """e => {
          const box = e.getBoundingClientRect(), range = document.createRange();
          range.setStart(e.firstChild, 0);
          range.setEnd(e.firstChild, 1);
          const letter = range.getBoundingClientRect();
          return [letter.left - box.left, box.right - letter.right];
        }"""
    )
    assert right < 2 < left


def test_an_arabic_name_leaves_the_sentence_around_it_as_it_is(tab):
    assert tab.locator("h1").evaluate(DIRECTION) == "ltr"
    places = tab.locator("h1").evaluate(
        """e => {
          const left = part => {
            const walker = document.createTreeWalker(e, NodeFilter.SHOW_TEXT), range = document.createRange();
            while (!walker.nextNode().data.includes(part));
            const text = walker.currentNode, start = text.data.indexOf(part);
            range.setStart(text, start);
            range.setEnd(text, start + part.length);
            const {x, y} = range.getBoundingClientRect();
            return [y, x];
          };
          return [left("نموذج"), left("against"), left("jais-")];
        }"""
    )
    assert places == sorted(places)


def test_the_page_is_no_wider_than_the_screen_and_its_text_can_be_read(tab):
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate(CONTRAST) >= 4.5


def test_the_keyboard_reaches_every_link_table_and_fold(tab):
    wanted = tab.locator("a, summary, .scroll:visible").count()
    reached = set()
    for _ in range(3 * wanted):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate(
                "[...document.querySelectorAll('a, summary, .scroll')].filter(e => e.checkVisibility())"
                ".indexOf(document.activeElement)"
            )
        )
    assert set(range(wanted)) <= reached
    fold = tab.locator("#published ~ details").first
    fold.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert fold.get_attribute("open") is not None
    fold.locator(".scroll").focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("e => e.scrollLeft > 0", arg=fold.locator(".scroll").element_handle())


def test_the_page_has_the_colours_of_the_browser(tab):
    light = tab.evaluate("matchMedia('(prefers-color-scheme: light)').matches")
    ground = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if light else "rgb(16, 21, 19)")
