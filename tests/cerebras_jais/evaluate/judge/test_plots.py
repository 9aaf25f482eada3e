"""The two figures: a panel for each language and set, equal bytes of equal judgements, or a line that says why not."""

import re

import pytest

from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.judge.judgements import read_judgements
from cerebras_jais.evaluate.judge.plots import plot
from tests.cerebras_jais.evaluate.judge.judges import fair, judged, run, write_answers
from tests.scripted_endpoint import scripted


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Judgements of two models in each language, compared and rated."""
    folder = tmp_path_factory.mktemp("judged")
    with scripted(fair) as served:
        for of_set in ("vicuna-en", "vicuna-ar"):
            texts = [[f"It is {n % m}." for n in range(12)] for m in (5, 7)]
            files = [
                write_answers(folder / f"{name}-{of_set}.jsonl", name, each, of_set)
                for name, each in zip(("alpha", "beta"), texts, strict=True)
            ]
            judged(served.url, folder / f"p-{of_set}", "pairwise", *files)
            judged(served.url, folder / f"s-{of_set}", "single", files[0])
    return folder


@pytest.mark.parametrize(("kind", "labels"), [("p", ["alpha against beta", "won", "lost"]), ("s", ["alpha"])])
def test_a_figure_has_a_panel_for_each_language(folders, tmp_path, kind, labels):
    words = (folders / f"{kind}-vicuna-ar", folders / f"{kind}-vicuna-en", "--output", tmp_path / "f.svg")
    assert run("judge", "plot", *words).exit_code == 0
    texts = re.findall(r"<text [^>]*>([^<]+)</text>", (tmp_path / "f.svg").read_text(encoding="utf-8"))
    for panel in ("Arabic (vicuna-ar), judged by m", "English (vicuna-en), judged by m"):
        assert texts.count(panel) == 1
    assert all(texts.count(label) == 2 for label in labels)
    assert run("judge", "plot", *words[:2], "--output", tmp_path / "f.png").exit_code == 0
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_judgements_give_the_same_bytes(folders, tmp_path):
    found = [read_judgements(folders / "p-vicuna-en")]
    for name in ("f.svg", "f.png"):
        assert plot(found, tmp_path / name) == plot(found, tmp_path / name)


def test_what_makes_no_figure_is_one_line(folders, tmp_path):
    for words, said in (
        ((folders / "p-vicuna-ar", folders / "s-vicuna-ar", "--output", tmp_path / "f.png"), "do not share a chart"),
        ((folders / "p-vicuna-ar", "--output", tmp_path / "f.pdf"), "must end in .png or .svg"),
        ((tmp_path, "--output", tmp_path / "f.png"), "has no judgements.jsonl"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            run("judge", "plot", *words)
    assert not list(tmp_path.iterdir())
