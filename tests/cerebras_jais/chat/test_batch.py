"""`generate --batch`: the answers of a file, resumed after an end at any line, and refusals that name the line."""

import json
import os
import shutil

import pytest

from cerebras_jais.chat.batch import identity_of_model
from cerebras_jais.errors import UserError
from tests.cerebras_jais.chat.test_chat_command import QUESTION, SHORT, TUNED, release, run

LINES = [
    {"prompt": QUESTION, "id": 7},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]},
    *({"prompt": f"What is {number}?"} for number in range(9)),
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return release(tmp_path_factory.mktemp("tuned"), TUNED)


def batch(model, folder, lines=LINES, *options):
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return run("generate", model, "--chat", "--batch", file, "--output", folder / "answers.jsonl", *SHORT, *options)


def answers(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_line_is_answered_as_it_is_alone_and_keeps_its_keys(tuned, tmp_path):
    done = batch(tuned, tmp_path)
    assert done.exit_code == 0 and "11 answers, 11 of them new" in done.output
    found = answers(tmp_path)
    assert found[0]["id"] == 7 and [entry.get("prompt") for entry in found] == [line.get("prompt") for line in LINES]
    for entry in (found[0], found[2], found[-1]):
        alone = run("generate", tuned, "--chat", "--prompt", entry["prompt"], *SHORT)
        assert alone.stdout.strip().endswith(entry["answer"].strip())
        assert entry["completion_tokens"] <= 6


def test_a_run_that_was_ended_goes_on_and_asks_nothing_twice(tuned, tmp_path):
    batch(tuned, tmp_path)
    file = tmp_path / "answers.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # as a kill leaves it
    assert "11 answers, 8 of them new" in batch(tuned, tmp_path).output
    assert file.read_bytes() == whole
    assert "11 answers, 0 of them new" in batch(tuned, tmp_path).output
    assert "11 answers, 11 of them new" in batch(tuned, tmp_path, LINES, "--seed", "5").output
    other = shutil.copytree(tuned, tmp_path / tuned.name)  # another model of the same name
    os.utime(other / "config.json", (0, 0))
    assert "11 answers, 11 of them new" in batch(other, tmp_path).output


def test_a_checkpoint_that_is_read_with_another_config_or_tokenizer_answers_for_itself(tmp_path):
    names = ("c.mdl", "a.yaml", "b.yaml", "one/tokenizer.json", "two/tokenizer.json")
    for file in (tmp_path / name for name in names):
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.name)
    model, a, b, *_ = (tmp_path / name for name in names)
    given = [(None, None), (None, a), (None, b), (tmp_path / "one", a), (tmp_path / "two", a)]
    found = [identity_of_model(model, tokenizer=tokenizer, config=config) for tokenizer, config in given]
    assert all(one not in found[:number] for number, one in enumerate(found))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a"}\n{"prompt": 5}\n', "questions.jsonl:2: `prompt` must be a text"),
        ("[1]\n", "questions.jsonl:1: must be an object"),
        ("{\n", "questions.jsonl:1"),
        ('{"prompt": "a", "messages": []}\n', "either `prompt` or `messages`"),
        ('{"messages": [{"role": "owner", "content": "x"}]}\n', "questions.jsonl:1"),
        ('{"prompt": "\\ud800"}\n', "questions.jsonl:1"),
        ("\n", "has no prompts"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tuned, tmp_path, line, said):
    file = tmp_path / "questions.jsonl"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        run("generate", tuned, "--chat", "--batch", file, "--output", tmp_path / "answers.jsonl")
    assert said in str(refused.value)
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "either --prompt or --batch"),
        (["--prompt", "a", "--batch", "b"], "either --prompt or --batch"),
        (["--batch", "b"], "belong together"),
        (["--batch", "missing.jsonl", "--output", "o"], "missing.jsonl: does not exist"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_model_is_read(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        run("generate", tmp_path / "no-model", *options)


def test_a_conversation_needs_the_chat_template(tuned, tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    with pytest.raises(UserError, match="give --chat"):
        run("generate", tuned, "--batch", file, "--output", tmp_path / "a.jsonl")
