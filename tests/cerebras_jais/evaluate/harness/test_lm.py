"""Our model in lm_eval answers as lm_eval's own `hf` backend does on the release.

Contract: likelihoods are within SCORE + SCORE_RELATIVE of `hf`, whether text options, letters, pairs of contexts with
one continuation, whole sentences behind an empty context, contexts that are too long or texts in windows, in Arabic and
English, for both families, and which is greedy is the same; greedy answers are the same texts. A record answers again
what was asked, and another model's does not.
"""

import pytest
from lm_eval.api.instance import Instance

from cerebras_jais.chat.engine import open_engine
from cerebras_jais.endpoint.record import open_record
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.harness.lm import JaisLM, tokens_before
from tests.cerebras_jais.evaluate.harness.examples import SECTIONS, write_release
from tests.tolerances import SCORE, SCORE_RELATIVE

ARABIC = "السؤال: ما لون السماء في النهار الصافي؟\nالجواب:"
ENGLISH = "Question: which colour has the sky on a clear day?\nAnswer:"
PAIRS = {
    "text options": [(ARABIC, f" {o}") for o in ("أزرق", "أحمر كالدم", "أخضر", "لا لون لها")]
    + [(ENGLISH, f" {o}") for o in ("blue", "red as blood", "green", "none of these")],
    "letters": [(ENGLISH, f" {o}") for o in "ABCD"] + [(ARABIC, f" {o}") for o in "أبجد"],
    "pairs of contexts": [
        (f"The cup does not fit into the bag because the {o}", " is too large.") for o in ("cup", "bag")
    ]
    + [(f"لا تدخل الكأس في الحقيبة لأن {o}", " كبيرة جدا.") for o in ("الكأس", "الحقيبة")],
    "empty context": [("", "الشمس تشرق من الشرق."), ("", "The sun rises in the east."), ("", " ")],
    "spaces at the end": [("one two  ", "three"), ("واحد اثنان ", "ثلاثة"), (ENGLISH + "\n", "\nblue")],
    "too long": [(ENGLISH * 12, " blue"), (ARABIC * 12, " أزرق"), (ENGLISH * 12, " red as blood" * 8)],
    "asked twice": [(ENGLISH, " blue"), (ENGLISH, " blue")],
}


@pytest.fixture(scope="module", params=SECTIONS)
def release(request, tmp_path_factory):
    return write_release(request.param, tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def theirs(release):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(release), trust_remote_code=True, dtype="float32", device="cpu", batch_size=3)


@pytest.fixture
def ours(release, tmp_path):
    with open_record(tmp_path / "record.jsonl") as record:
        yield JaisLM(open_engine(release), record, "model", before=tokens_before(release), batch_tokens=64)


def instances(kind, arguments):
    return [Instance(kind, {}, asked, number) for number, asked in enumerate(arguments)]


@pytest.mark.parametrize("kind", PAIRS)
def test_likelihoods_are_those_of_the_hf_backend(ours, theirs, kind):
    found = ours.loglikelihood(instances("loglikelihood", PAIRS[kind]))
    wanted = theirs.loglikelihood(instances("loglikelihood", PAIRS[kind]), disable_tqdm=True)
    for (score, greedy), (their_score, their_greedy) in zip(found, wanted, strict=True):
        assert score == pytest.approx(their_score, abs=SCORE, rel=SCORE_RELATIVE)
        assert greedy == their_greedy


def test_texts_in_windows_are_those_of_the_hf_backend(ours, theirs):
    texts = instances("loglikelihood_rolling", [(ENGLISH * 9,), (ARABIC * 9,), ("short",)])
    wanted = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(wanted, abs=SCORE, rel=SCORE_RELATIVE)


def test_greedy_answers_are_those_of_the_hf_backend(ours, theirs):
    settings = {"until": ["\n", "."], "max_gen_toks": 12}
    asked = instances("generate_until", [(text, dict(settings)) for text in (ARABIC, ENGLISH, ENGLISH * 12)])
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_a_pair_is_cut_where_its_tokens_are_those_of_the_whole_text(ours):
    for kind in ("text options", "letters", "pairs of contexts", "spaces at the end"):
        for context, continuation in PAIRS[kind]:
            first, second = ours._encode_pair(context, continuation)
            assert [*first, *second] == ours.tok_encode(context + continuation)
            assert first == ours.tok_encode(context.rstrip(" ") if context.strip() else context)[: len(first)]


def test_a_record_answers_again_and_only_for_its_model(release, tmp_path, monkeypatch):
    asked = instances("loglikelihood", PAIRS["text options"])
    questions = instances("generate_until", [(ENGLISH, {"until": ["\n"], "max_gen_toks": 4})])
    with open_record(tmp_path / "record.jsonl") as record:
        lm = JaisLM(open_engine(release), record, "model")
        found = lm.loglikelihood(asked), lm.generate_until(questions)
        made = len(record)
    with open_record(tmp_path / "record.jsonl") as record:
        lm = JaisLM(open_engine(release), record, "model")
        with monkeypatch.context() as patched:
            patched.setattr(lm.engine.forward, "hidden", None)
            patched.setattr(lm.engine, "complete", None)
            assert (lm.loglikelihood(asked), lm.generate_until(questions)) == found
        JaisLM(open_engine(release), record, "another").loglikelihood(asked)
        assert len(record) == made + len(asked)


def test_what_cannot_be_asked_is_refused(ours):
    with pytest.raises(UserError, match="continuation has"):
        ours.loglikelihood(instances("loglikelihood", [("a", ENGLISH * 20)]))
    with pytest.raises(UserError, match="sampled"):
        ours.generate_until(instances("generate_until", [("a", {"do_sample": True, "temperature": 1.0})]))
    with pytest.raises(UserError, match="answers of up to 500 tokens"):
        ours.generate_until(instances("generate_until", [("a", {"max_gen_toks": 500})]))
