"""Answers to questions by the engine, by transformers and by an endpoint: resumed, whole, or refused in a line."""

import json

import pytest
import torch

from cerebras_jais.chat.engine import open_engine
from cerebras_jais.endpoint.client import Endpoint
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.judge.answering import answer_there, fastchat_temperature, record_of
from cerebras_jais.evaluate.judge.answers import read_answers
from cerebras_jais.evaluate.judge.questions import read_questions
from tests.cerebras_jais.chat.test_chat_command import QUESTION, SHORT, TUNED, release
from tests.cerebras_jais.evaluate.judge.judges import run
from tests.scripted_endpoint import asked_in, failure, mirrored, scripted, stormy

LINES = [
    {"question_id": 1, "category": "generic", "turns": [QUESTION]},
    {"question_id": "two", "category": "math", "turns": ["What is 2 + 2?"], "reference": ["4"]},
    *({"question_id": number, "category": "fermi", "turns": [f"How many are {number}?"]} for number in range(3, 12)),
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return release(tmp_path_factory.mktemp("tuned"), TUNED)


@pytest.fixture
def questions(tmp_path, monkeypatch):
    """A file of LINES in the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES), encoding="utf-8")
    return file


def test_the_engines_answers_are_those_of_generate_and_stand_beside_their_questions(tuned, questions, tmp_path):
    done = run("answers", tuned, "--questions", questions, *SHORT)
    assert "release-mine.jsonl: 11 answers of release, 11 of them new" in done.output
    lines = [json.loads(line) for line in (tmp_path / "release-mine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {
        "questions": "mine",
        "question_id": 1,
        "category": "generic",
        "language": "ar",
        "turns": [QUESTION],
        "model": "release",
        "answer": lines[0]["answer"],
        "finish_reason": lines[0]["finish_reason"],
        "prompt_tokens": len(open_engine(tuned).chat_ids([{"role": "user", "content": QUESTION}], "ar")),
        "completion_tokens": lines[0]["completion_tokens"],
    }
    for line in lines[:2]:
        alone = run("generate", tuned, "--chat", "--prompt", line["turns"][0], *SHORT)
        assert alone.stdout.strip().endswith(line["answer"].strip())
    found = read_answers(tmp_path / "release-mine.jsonl")
    assert [answered.question for answered in found] == read_questions(str(questions))


@pytest.mark.parametrize(
    "cut", [0.1, pytest.param(0.5, marks=pytest.mark.slow), pytest.param(0.99, marks=pytest.mark.slow)]
)
def test_a_run_that_was_ended_goes_on_where_it_was(tuned, questions, tmp_path, cut):
    words = ("answers", tuned, "--questions", questions, "--output", tmp_path / "a.jsonl", "--max-new-tokens", 6)
    run(*words)
    whole, record = (tmp_path / "a.jsonl").read_bytes(), record_of(tmp_path / "a.jsonl")
    content = record.read_bytes()
    record.write_bytes(content[: int(cut * len(content))])  # as a kill leaves it
    left = len(LINES) - record.read_bytes().count(b"\n")
    (tmp_path / "a.jsonl").unlink()
    assert f"11 answers of release, {left} of them new" in run(*words).output
    assert (tmp_path / "a.jsonl").read_bytes() == whole
    assert record.read_bytes() == content
    run(*words, "--seed", 1)  # other answers, which the record keeps beside the first
    assert (tmp_path / "a.jsonl").read_bytes() != whole
    assert record.read_bytes().startswith(content)
    run(*words)
    assert (tmp_path / "a.jsonl").read_bytes() == whole


def test_temperatures_of_fastchat_are_by_category():
    found = {question.category: fastchat_temperature(question) for question in read_questions("vicuna-en")}
    assert {category for category, temperature in found.items() if temperature == 0} == {"coding", "math"}
    assert set(found.values()) == {0, 0.7}


def test_an_endpoints_answers_are_in_order_whatever_it_does_and_asked_once(questions, tmp_path):
    read = read_questions(str(questions))

    def ask(url):
        made, refused = answer_there(
            Endpoint(url, backoff=0.001),
            "m",
            "name",
            read,
            "mine",
            lambda _: {},
            tmp_path / "e.jsonl",
            3,
            lambda _: None,
        )
        assert refused == 0
        return made, [(each.question.id, each.text, each.model) for each in read_answers(tmp_path / "e.jsonl")]

    with scripted(stormy) as served:
        made, found = ask(served.url)
        before = len(served.bodies)
        assert made == len(read)
        assert ask(served.url) == (0, found)
        assert len(served.bodies) == before
    assert found == [(question.id, question.text[::-1], "name") for question in read]


def test_the_command_asks_an_endpoint_by_fastchats_temperatures_and_counts_refusals(questions, tmp_path):
    def script(body, attempt):
        return failure(400, "too long") if "2 + 2" in asked_in(body) else mirrored(body, attempt)

    with scripted(script) as served:
        words = (
            "--base-url",
            served.url,
            "--model",
            "a/b",
            "--questions",
            questions,
            "--fastchat",
            "--max-new-tokens",
            9,
        )
        done = run("answers", *words)
    assert "1 question refused by the endpoint" in done.output
    (answered,) = [each for each in read_answers(tmp_path / "a_b-mine.jsonl") if each.question.id == "two"]
    assert (answered.text, answered.finish) == ("", "refused")
    sent = {asked_in(body): (body["temperature"], body["max_tokens"]) for body in served.bodies}
    assert sent["What is 2 + 2?"] == (0, 9) and sent[QUESTION] == (0.7, 9)


def test_another_release_answers_through_transformers_as_it_does_there(tmp_path, questions):
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tests.chat_tokenizers import TOKENIZERS, VOCABULARY

    torch.manual_seed(0)
    folder = tmp_path / "llama-chat"
    config = LlamaConfig(
        vocab_size=VOCABULARY + 4,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=0,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["llama"](), eos_token="</s>", bos_token="<s>")
    tokenizer.chat_template = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"
    tokenizer.save_pretrained(folder)
    run("answers", folder, "--questions", questions, "--max-new-tokens", 5, "--output", tmp_path / "t.jsonl")
    theirs, encoder = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for answered in read_answers(tmp_path / "t.jsonl")[:4]:
        prompt = f"<s>[INST] {answered.question.text} [/INST]"
        inputs = encoder(prompt, add_special_tokens=False, return_tensors="pt")
        made = theirs.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=5, do_sample=False
        )
        assert answered.text == encoder.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    drawn = ("--temperature", 1, "--max-new-tokens", 5, "--output", tmp_path / "d.jsonl", "--questions", questions)
    run("answers", folder, *drawn)
    once = (tmp_path / "d.jsonl").read_bytes()
    record_of(tmp_path / "d.jsonl").unlink()
    (tmp_path / "d.jsonl").unlink()
    run("answers", folder, *drawn)
    assert (tmp_path / "d.jsonl").read_bytes() == once
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(UserError, match="is a base model"):
        run("answers", folder, "--questions", questions)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="transformers cannot open it"):
        run("answers", folder, "--questions", questions)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "mine.jsonl:1: expected an object"),
        ("{", "mine.jsonl:1: not valid JSON"),
        ('{"text": "x"}', 'mine.jsonl:1: "question_id" must be'),
        ('{"question_id": true, "turns": ["x"]}', 'mine.jsonl:1: "question_id" must be'),
        ('{"question_id": 1, "turns": "x"}', 'mine.jsonl:1: "turns" must be a list of one text'),
        ('{"question_id": 1, "turns": ["x", "y"]}', 'mine.jsonl:1: "turns" has 2 turns'),
        ('{"question_id": 1, "turns": [" "]}', 'mine.jsonl:1: "turns" is empty'),
        ('{"question_id": 1, "category": 5, "turns": ["x"]}', 'mine.jsonl:1: "category" must be'),
        ('{"question_id": 1, "language": "fr", "turns": ["x"]}', 'mine.jsonl:1: "language" must be'),
        (
            '{"question_id": 1, "turns": ["x"]}\n{"question_id": 1, "turns": ["y"]}',
            "mine.jsonl:2: question_id 1 is there",
        ),
        ("\n", "has no questions"),
    ],
)
def test_a_file_of_questions_in_a_wrong_format_is_named_with_its_line(questions, tuned, line, said):
    questions.write_text(line, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        run("answers", tuned, "--questions", questions)
    assert said in str(refused.value)


def test_what_cannot_answer_is_one_line_and_leaves_nothing(questions, tuned, tmp_path):
    before = sorted(tmp_path.iterdir())
    for words, said in (
        ((), "give either a MODEL, or --base-url"),
        ((tuned, "--base-url", "http://127.0.0.1:9/v1"), "give either a MODEL, or --base-url"),
        (("--base-url", "http://127.0.0.1:9/v1"), "give either a MODEL, or --base-url"),
        ((tuned, "--fastchat", "--temperature", 1), "leave --temperature out"),
        ((tmp_path / "none",), "no such file or folder"),
        ((questions,), "mine.jsonl"),
        ((tuned, "--output", tmp_path / "no" / "a.jsonl"), "does not exist; create it first"),
    ):
        with pytest.raises(UserError) as refused:
            run("answers", *words, "--questions", questions)
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="no such file; give one of JSON lines, or one of vicuna-en, vicuna-ar"):
        run("answers", tuned, "--questions", "vicuna")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="was not made by this"):
        run("answers", tuned, "--questions", questions, "--output", tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    (tmp_path / "mine.txt").unlink()
    assert sorted(tmp_path.iterdir()) == before


def test_a_base_model_is_refused_unless_it_is_to_have_the_familys_prompt(tuned, tmp_path, questions):
    base = release(tmp_path, None)
    with pytest.raises(UserError, match="is a base model"):
        run("answers", base, "--questions", questions)
    run("answers", base, "--questions", questions, "--chat", *SHORT, "--output", tmp_path / "base.jsonl")
    run("answers", tuned, "--questions", questions, *SHORT, "--output", tmp_path / "tuned.jsonl")
    texts = [[each.text for each in read_answers(tmp_path / f"{name}.jsonl")] for name in ("base", "tuned")]
    assert texts[0] == texts[1]  # the same weights: `release` draws them by a seed


def test_a_damaged_release_of_the_family_is_said_to_be_damaged_and_no_code_is_offered(tmp_path, questions):
    damaged = release(tmp_path, TUNED)
    (weights,) = damaged.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=weights.name) as refused:
        run("answers", damaged, "--questions", questions)
    assert "run-code" not in str(refused.value)


def test_the_arabic_questions_are_said_not_to_be_the_cards(tmp_path):
    with scripted() as served:
        words = ("--base-url", served.url, "--model", "m", "--output", tmp_path / "a.jsonl")
        assert "not the card's" in run("answers", *words, "--questions", "vicuna-ar").stderr
