"""The verb `report`.

Contract: Markdown for a terminal or one HTML page, which has everything the comparison has; text from files is text in
both; a page loads nothing and runs nothing; wrong input is one clear line, and leaves no file.
"""

import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from cerebras_jais.catalog.models import MODELS, find_model
from cerebras_jais.commands.report import report
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.report.card import average
from tests.cerebras_jais.evaluate.report.examples import ARABIC, ENGLISH_TASKS, Results, card_run, choice
from tests.marks import slow_except

MODEL = find_model("jais-family-13b")


def said(*arguments):
    """What the verb prints; its errors are raised."""
    result = CliRunner().invoke(report, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*arguments):
    result = CliRunner().invoke(report, [str(argument) for argument in arguments])
    assert isinstance(result.exception, UserError)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def cells(markdown, name):
    """The cells of the first row of a name."""
    (row, *_) = [line for line in markdown.splitlines() if re.match(rf"\| {re.escape(name)} ", line)]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return card_run(MODEL.scores).write(tmp_path_factory.mktemp("measured"))


def test_markdown_has_each_number_its_verdict_its_class_and_how_it_was_made(measured):
    text = said(measured, "--against", "jais-family-13b")
    assert text.startswith("# my-model against jais-family-13b\n")
    assert cells(text, "ArabicMMLU")[:5] == ["ArabicMMLU", "34.0 ± 0.4", "34.0", "+0.0", "cannot be told apart"]
    assert cells(text, "ArabicMMLU")[5] == "comparable"
    for part in ("arabicmmlu v1", "acc", "0-shot", "14,575 questions", "no chat template", "bfloat16", "prompts "):
        assert part in cells(text, "ArabicMMLU")[6]
    assert cells(text, "EXAMS")[4:6] == ["not judged: the same data in another form", "close"]
    assert cells(text, "LitQA")[1:4] == ["–", "58.3", "–"]
    assert "12 can be compared with jais-family-13b: 12 cannot be told apart from the published score." in text
    assert cells(text, "Average of all 11 columns, as in the card")[2] == "54.6"
    assert cells(text, "Average of all 14 columns, as in the card")[1:3] == ["–", "46.1"]
    assert cells(text, "demo_ar, exact_match")[1] == "50.0 ± 10.4 %"


def test_markdown_tables_are_aligned(measured):
    lines = said(measured, "--against", "jais-family-13b").splitlines()
    tables = re.findall(r"(?:^\|.*\n)+", "\n".join(lines) + "\n", re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({len(line) for line in table.splitlines()}) == 1


@pytest.mark.parametrize("model", slow_except(MODELS[:2], MODELS), ids=lambda model: model.name)
def test_every_published_number_and_average_of_a_model_is_in_its_report(measured, model):
    text = said(measured, "--against", model.name)
    for language, heading in (("ar", "### Arabic"), ("en", "### English")):
        part = text.partition(heading)[2].partition("\n### ")[0]
        scores = dict(model.scores[language])
        published = f"{scores.pop('Average'):.1f}"
        rows = [[cell.strip() for cell in line.split("|")] for line in part.splitlines() if line.startswith("|")][2:]
        shown = {row[1].removesuffix(" †"): row[3] for row in rows if not row[1].startswith("Average")}
        assert shown == {column: f"{score:.1f}" for column, score in scores.items()}
        assert {row[1]: row[3] for row in rows}[f"Average of all {len(scores)} columns, as in the card"] == published


def test_numbers_that_are_likely_copies_have_a_dagger(measured):
    text = said(measured, "--against", "jais-adapted-7b-chat")
    daggers = re.findall(r"^\| (\S+) †", text, re.MULTILINE)
    assert daggers == ["agqa", "agrc"]
    assert "† The card has the same numbers in neighbouring columns of jais-adapted-70b-chat" in text
    assert "†" not in said(measured, "--against", "jais-family-13b")


def test_without_a_published_model_there_are_no_published_columns(measured):
    text = said(measured)
    assert text.startswith("# my-model\n")
    assert not {"published", "difference", "verdict"} & {cell.strip() for cell in text.split("|")}
    assert cells(text, "ArabicMMLU")[1:3] == ["34.0 ± 0.4", "comparable"]


# ---- the page -------------------------------------------------------------------------------------------------------

VOID = {"meta", "link", "br"}


class Parsed(HTMLParser):
    """The elements and texts of a page; every element that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def page_of(folder, *arguments, name="report.html"):
    assert said(folder, "--output", folder / name, *arguments) == ""
    text = (folder / name).read_text(encoding="utf-8")
    return text, Parsed(text)


def test_the_page_has_the_tables_the_plots_and_the_card(measured):
    text, page = page_of(measured, "--against", "jais-family-13b")
    assert text == said(measured, "--against", "jais-family-13b", "--format", "html")
    for model in MODELS:
        assert page.texts.count(model.name) >= 2
        for language in ("ar", "en"):
            assert f"{average(model.scores[language]):.2f}" in page.texts
            assert {f"{score:.1f}" for score in model.scores[language].values()} <= {
                shown.removesuffix(" †") for shown in page.texts
            }
    plots = [attributes for tag, attributes in page.elements if tag == "svg" and "role" in attributes]
    assert [plot["aria-label"].partition(",")[2][:9] for plot in plots] == [" Arabic: ", " English:"]
    assert text.count('title="as jais-family-') == 24
    assert text.count('title="as jais-adapted-') == 4


def test_the_page_runs_nothing_and_names_no_other_machine(measured):
    text, page = page_of(measured, "--against", "jais-family-13b")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "audio", "video", "base"}
    for _tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith(("#", "data:"))
        assert "src" not in attributes
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for _, a in page.elements if a.get("href", "").startswith("#")} <= set(ids)


HOSTILE = "<img src=x onerror=alert(1)></p></style><script>alert('{{ 7*7 }}')</script>&amp;\u202e"


def test_markup_in_names_and_in_data_is_text(tmp_path):
    lines = [choice(n, n == 0, prompt=f"{HOSTILE}\n{ARABIC['prompt']}", options=[HOSTILE, "b"]) for n in range(2)]
    results = Results(f"m{HOSTILE}").task("boolq", "acc", 0.5, 3270, samples=lines).task(f"t{HOSTILE}", "acc", 0.5)
    folder = results.write(tmp_path)
    _text, page = page_of(folder, "--against", "jais-family-13b")
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert HOSTILE in page.texts
    markdown = said(folder, "--against", "jais-family-13b")
    assert "<" not in markdown.replace("\\<", "")
    assert "\u202e" not in markdown


def test_the_number_of_samples_is_as_asked(measured):
    _, page = page_of(measured, "--samples", "2", name="two.html")
    articles = sum(tag == "article" for tag, _ in page.elements)
    assert articles == 2 * 2 * (len(ENGLISH_TASKS) - 1 + 2) + 2  # CrowS-Pairs has none, demo_ar one of each
    text, _ = page_of(measured, "--samples", "0", name="none.html")
    assert "<article" not in text
    assert 'id="samples"' not in text


def test_several_models_stand_in_one_page(measured, tmp_path):
    other = card_run(MODEL.scores, "other", shift=-4, parameters=None).write(tmp_path)
    text = said(measured, other, "--against", "jais-family-13b", "--format", "html")
    page = Parsed(text)
    assert "my-model and other against jais-family-13b" in page.texts
    assert text.count('class="ours"><title>') == 4
    assert text.count('class="across"') == 2


def test_nothing_measured_of_the_card_still_makes_a_report(tmp_path):
    folder = Results().task("demo_ar", "acc", 0.4, 24, samples=[choice(0, True)]).write(tmp_path)
    _text, page = page_of(folder, "--against", "jais-family-590m")
    assert [a["aria-label"] for tag, a in page.elements if a.get("role") in ("img", "region")] == [
        "Other scores of my-model",
        "Published Arabic scores",
        "Published English scores",
    ]
    text = said(folder, "--against", "jais-family-590m")
    assert "None of the card's 25 columns was measured." in text
    assert re.findall("^###? .*", text, re.MULTILINE) == ["## my-model", "### Not in the card"]


def test_a_language_without_a_comparable_column_is_said_to_have_no_plot(tmp_path):
    folder = Results().task("boolq", "acc", 0.7, 3270).task("arabic_exams", "acc", 0.4, 537).write(tmp_path)
    _text, page = page_of(folder, "--against", "jais-family-590m")
    assert "Arabic: no column that can be compared was measured." in page.texts


@pytest.mark.slow
def test_the_demo_suite_of_a_tiny_release_ends_in_a_report(tmp_path):
    pytest.importorskip("lm_eval")
    from cerebras_jais.commands.evaluate import evaluate
    from tests.cerebras_jais.evaluate.harness.examples import write_release

    release, scores = write_release("jais", tmp_path / "model", context=512), tmp_path / "scores"
    arguments = [str(release), "--suite", "demo", "--output", str(scores)]
    assert CliRunner().invoke(evaluate, arguments, catch_exceptions=False).exit_code == 0
    text = said(scores, "--against", "jais-family-590m")
    assert "parameters: 90,380; precision: float32" in text
    for task in ("demo_ar", "demo_en"):
        assert re.fullmatch(r"\d+\.\d ± \d+\.\d %", cells(text, f"{task}, acc")[1])
        assert "24 questions" in cells(text, f"{task}, acc")[2]
    _, page = page_of(scores)
    assert {"demo_ar", "demo_en"} <= set(page.texts)
    assert any(attributes.get("lang") == "ar" for _, attributes in page.elements)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_wrong_input_is_one_line_and_leaves_no_file(measured, tmp_path):
    out = tmp_path / "report.html"
    assert all(model.name in refusal(measured, "--against", "jais-13b", "--output", out) for model in MODELS)
    assert "has no results_*.json" in refusal(tmp_path, "--output", out)
    assert "given twice" in refusal(measured, measured, "--output", out)
    broken = Results().task("race", "acc", 0.5, samples=[{"acc": 1.0, "filter": "none"}]).write(tmp_path / "broken")
    assert "not a sample" in refusal(broken, "--output", out)
    assert not out.exists()
